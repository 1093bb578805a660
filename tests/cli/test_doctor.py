"""`fleetproxy doctor`: a sound fleet is all ok; what is broken is told with the way to mend it."""

from __future__ import annotations

import http.server
import json
import os
import socket
import stat
import tarfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from fleetproxy.testing.service import ADMIN_KEY
from tests.cli.spoken import Place, Said, say

DEAD = "http://127.0.0.1:1"


def doctor(folder: Path, text: str = "", *words: str, **environment: str) -> Said:
    """The doctor on a configuration of its own."""
    config = folder / "fleetproxy.toml"
    config.write_text(f"port = 0\n{text}")
    words = ("doctor", "--config", str(config), "--data-dir", str(folder / "data"), "--json", *words)
    return say(*words, HOME=str(folder), **environment)


def findings(said: Said, area: str) -> list[tuple[str, str]]:
    return [(one["level"], one["text"]) for one in said.json if one["area"] == area]


def test_a_sound_fleet_is_all_ok_but_for_its_short_test_keys(place: Place) -> None:
    said = say("doctor", "--config", str(place.service.config), "--json", "--deep", HOME=str(place.folder))
    assert said.code == 0, said.out
    bad = [one for one in said.json if one["level"] != "ok"]
    clocks = [one for one in bad if "its clock is" in one["text"]]  # those of the fakes stand still
    assert {one["area"] for one in clocks} == {"server big", "server small", "server vllm"}
    assert {one["area"] for one in bad if one not in clocks} == {"secrets"}
    assert all(one["fix"] for one in bad)
    areas = {one["area"] for one in said.json}
    assert areas >= {
        "python", "packages", "time zones", "open files", "configuration", "data folder", "disk", "port", "server big",
        "server vllm", "service", "readiness", "clock", "streams", "sockets", "telemetry",
    }  # fmt: skip
    assert any("a token of" in text for _, text in findings(said, "server big"))
    strict = say("doctor", "--config", str(place.service.config), "--json", "--strict", HOME=str(place.folder))
    assert strict.code == 7


def test_each_line_has_a_sign_and_the_fix_below_it(tmp_path: Path) -> None:
    (tmp_path / "fleetproxy.toml").write_text(f'port = 0\nservers = ["gone={DEAD}"]\n')
    words = ("doctor", "--config", str(tmp_path / "fleetproxy.toml"), "--data-dir", str(tmp_path / "data"))
    plain = say(*words, HOME=str(tmp_path))
    assert plain.code == 7
    lines = plain.out.splitlines()
    (at,) = [place for place, line in enumerate(lines) if line.startswith("✗ fail  server gone")]
    assert "cannot be connected to: Connection refused" in lines[at]
    assert lines[at + 1].lstrip().startswith("→ is it started")
    assert "\x1b" not in plain.out
    assert lines[-1].endswith(" 1 failed")
    assert "\x1b[31m✗ fail\x1b[0m" in say(*words, HOME=str(tmp_path), FORCE_COLOR="1").out
    assert "\x1b" not in say(*words, HOME=str(tmp_path), FORCE_COLOR="1", NO_COLOR="1").out


class Lying(http.server.BaseHTTPRequestHandler):
    """A server with a list and a clock of its own."""

    answer: object = {}
    date = ""

    def do_GET(self) -> None:
        self.say(self.answer)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.say({})

    def say(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.date or super().date_time_string(timestamp)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "answer", "date", "says"),
    [
        ("ollama", {"models": 5}, "", ("fail", "no list of models")),
        ("openai", {"data": {"a": 1}}, "", ("fail", "no list of models")),
        ("ollama", {"models": [{"x": 1}, 7, {"name": "m", "size": "big"}]}, "", ("ok", "a token of m")),
        ("openai", {"data": [{"x": 1}, None]}, "", ("warn", "has no model to try")),
        ("ollama", {"models": []}, "Sun, 06 Nov 1994 08:49:37 -0000", ("warn", "s behind ours")),
        ("ollama", {"models": []}, "Sun, 06 Nov 99999 08:49:37 GMT", ("warn", "0 models")),
    ],
)
def test_a_server_that_answers_nonsense_is_told_not_stumbled_over(
    tmp_path: Path, kind: str, answer: object, date: str, says: tuple[str, str]
) -> None:
    handler = type("Told", (Lying,), {"answer": answer, "date": date})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        said = doctor(tmp_path, f'[[servers]]\nname = "x"\nurl = "{url}"\nkind = "{kind}"\n', "--deep")
        server.shutdown()
        serving.join()
    told = findings(said, "server x")
    assert any(level == says[0] and says[1] in text for level, text in told), told


def test_servers_added_while_it_runs_are_looked_at_too(place: Place) -> None:
    number = place.service.admin("POST", "/api/servers", {"name": "late", "url": DEAD})["id"]
    try:
        place.polled()
        said = say("doctor", "--config", str(place.service.config), "--json", HOME=str(place.folder))
        ((level, text),) = findings(said, "server late")
        assert (said.code, level) == (7, "fail")
        assert text.startswith("offline, the fleet tells: ")
    finally:
        place.service.admin("DELETE", f"/api/servers/{number}")


def test_mistakes_of_the_configuration_are_told_with_their_places(tmp_path: Path) -> None:
    said = doctor(tmp_path, 'prot = 1\nservers = ["a=ftp://x"]\n')
    assert said.code == 7
    told = [text for level, text in findings(said, "configuration") if level == "fail"]
    assert any('unknown key "prot"' in text and "fleetproxy.toml:2" in text for text in told)


@pytest.mark.parametrize(
    ("text", "area", "level", "says"),
    [
        ('host = "0.0.0.0"\nopen = true\n', "access", "warn", "asks nobody for a key"),
        ('host = "0.0.0.0"\n[auth]\napi_key = "0123456789abcdef01"\n', "access", "warn", "without TLS"),
        ('host = "0.0.0.0"\n[auth]\napi_key = "0123456789abcdef01"\n', "workers", "warn", "dial in without a key"),
        ('[auth]\napi_key = "aaaaaaaaaaaaaaaaaaaa"\n', "secrets", "warn", "auth.api_key can be guessed"),
        ('[auth]\nadmin_username = "root"\nadmin_password = "password123"\n', "secrets", "fail", "auth.admin_password"),
        ('servers = ["x=http://no-such-host.invalid"]\n', "server x", "fail", "has no address"),
    ],
)
def test_what_is_unwise_is_told(tmp_path: Path, text: str, area: str, level: str, says: str) -> None:
    told = findings(doctor(tmp_path, text), area)
    assert any(found == level and says in words for found, words in told), told


def test_a_data_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    assert findings(doctor(tmp_path), "data folder") == [("fail", f"{tmp_path}/data is no folder")]


def test_a_taken_port_names_its_holder(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as taken:
        (tmp_path / "fleetproxy.toml").write_text(f"port = {taken.server_port}\n")
        words = ("doctor", "--config", str(tmp_path / "fleetproxy.toml"), "--data-dir", str(tmp_path / "data"))
        serving = threading.Thread(target=taken.serve_forever, args=(0.01,))
        serving.start()
        said = say(*words, "--json", HOME=str(tmp_path))
        taken.shutdown()
        serving.join()
    ((level, text),) = findings(said, "port")
    assert level == "fail"
    assert f"(process {os.getpid()})" in text


def test_certificates_that_end_are_told(tmp_path: Path) -> None:
    authority = trustme.CA()
    for days, level in ((-1, "fail"), (3, "warn"), (90, "ok")):
        made = authority.issue_cert("fleet.example", not_after=datetime.now(UTC) + timedelta(days=days, hours=1))
        made.private_key_pem.write_to_path(tmp_path / "key.pem")
        (tmp_path / "cert.pem").write_bytes(b"".join(piece.bytes() for piece in made.cert_chain_pems))
        said = doctor(tmp_path, f'[tls]\ncert = "{tmp_path}/cert.pem"\nkey = "{tmp_path}/key.pem"\n')
        assert [found for found, _ in findings(said, "certificate")] == [level]
        # A reload does not read them: `tls` is in `settings.fixed.FIXED`.
        assert ("restart" in said.out) is (level == "fail")
        assert "SIGHUP" not in said.out


class Between:
    """What stands between clients and us: passes one connection at a time, and holds every stream back."""

    def __init__(self, behind: tuple[str, int]) -> None:
        self._behind = behind
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._behind) as far:
            head = near.recv(65536)
            if b"upgrade: websocket" in head.lower():
                near.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                return
            far.sendall(head.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nconnection: close\r\n", 1))
            held = b""
            far.settimeout(10)
            try:
                while piece := far.recv(65536):
                    held += piece
                near.sendall(held)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def between(place: Place) -> Iterator[Between]:
    made = Between((place.service.host, place.service.port))
    yield made
    made.close()


def test_a_proxy_in_between_that_holds_streams_back_is_found(place: Place, between: Between) -> None:
    words = ("doctor", "--config", str(place.service.config), "--url", between.url, "--json")
    said = say(*words, HOME=str(place.folder))
    assert said.code == 7
    ((level, text),) = findings(said, "streams")
    assert (level, "holds streams back" in text) == ("fail", True)
    ((level, text),) = findings(said, "sockets")
    assert (level, "400 Bad Request" in text) == ("warn", True)


def test_the_bundle_has_no_secret_in_it(place: Place, tmp_path: Path) -> None:
    archive = tmp_path / "support.tar.gz"
    words = ("doctor", "--config", str(place.service.config), "--json", "--bundle", str(archive))
    said = say(*words, HOME=str(place.folder), FLEETPROXY_KEY="a-key-of-mine")
    assert said.code == 0
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    with tarfile.open(archive) as packed:
        files = {entry.name: packed.extractfile(entry).read().decode() for entry in packed}  # type: ignore[union-attr]
    assert set(files) == {
        f"fleetproxy-doctor/{name}" for name in ("findings.json", "versions.txt", "settings.toml", "notes.txt")
    }
    whole = "\n".join(files.values())
    assert ADMIN_KEY not in whole
    assert "a-key-of-mine" not in whole
    assert json.loads(files["fleetproxy-doctor/findings.json"])


def test_the_doctor_sends_no_request_to_a_disabled_server(tmp_path: Path) -> None:
    said = doctor(tmp_path, f'[[servers]]\nname = "off"\nurl = "{DEAD}"\nenabled = false\n')
    assert findings(said, "server off") == [("ok", "disabled in the settings, not asked")]
