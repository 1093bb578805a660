"""The verbs that call a running fleetproxy, against a real one: what they print, where, and their exit codes."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fleetproxy.cli import COMMANDS
from fleetproxy.testing.spawned import until
from tests.cli.spoken import KEY, Place, say

MODEL = "llama3.2:3b"


@pytest.fixture
def rested(place: Place) -> Place:
    """Nothing is in memory before."""
    for server, models in (("big", (MODEL, "qwen3:8b")), ("small", (MODEL,))):
        for model in models:
            place.say("stop", model, "--server", server)
    place.polled()
    return place


# --- looking ---


def test_list_has_ollamas_columns_and_who_has_each_model(place: Place) -> None:
    said = place.say("list")
    assert (said.code, said.err) == (0, "")
    assert said.lines[0] == ["NAME", "ID", "SIZE", "MODIFIED", "SERVER"]
    rows = {row[0]: row for row in said.lines[1:]}
    assert rows[MODEL][-1].split(", ") == ["big", "small"]
    assert rows["gemma3:4b"][-1].strip() == "laptop"
    assert rows["meta-llama/Llama-3.1-8B"][-1].strip() == "vllm"
    assert len(rows[MODEL][1].strip()) == 12
    assert rows[MODEL][2].strip() == "2 GB"
    assert [row[0] for row in place.say("ls", "llama3").lines[1:]] == [
        name for name in rows if name.startswith("llama3")
    ]


def test_lists_for_programs(place: Place) -> None:
    whole = place.say("list", "--json").json
    assert {model["name"]: model["servers"] for model in whole}[MODEL] == ["big", "small"]
    head, *rows = place.say("list", "-o", "csv").out.splitlines()
    assert head == "name,digest,size_bytes,modified_at,servers,parameters,quantization"
    assert len(rows) == len(whole)
    assert place.say("list", "-o", "name").out.split() == [model["name"] for model in whole]
    assert "3.2B" in place.say("list", "-o", "wide", "llama3.2").out


def test_somebody_without_a_key_sees_what_every_client_sees(place: Place) -> None:
    place.polled()  # a model that a test before pulled or deleted may be known to one of the two alone
    said = place.from_afar("list", "--json")
    assert said.code == 0

    def same() -> bool:
        seen = place.from_afar("list", "--json").json
        return {model["name"] for model in seen} == {model["name"] for model in place.say("list", "--json").json}

    until(same, 5, "both lists are the same")
    refused = place.from_afar("servers")
    assert (refused.code, refused.out) == (5, "")
    assert "give a key with --key or FLEETPROXY_KEY" in refused.err
    assert place.from_afar("servers", key=KEY).code == 0
    assert place.from_afar("servers", key="wrong-key").code == 5


def test_ps_shows_each_copy_with_its_server(rested: Place) -> None:
    for server in ("big", "small"):
        assert rested.say("run", MODEL, "hello", "--server", server).code == 0
    rested.polled()
    said = rested.say("ps")
    assert said.lines[0] == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL", "SERVER"]
    assert sorted(row[-1].strip() for row in said.lines[1:] if row[0] == MODEL) == ["big", "small"]
    assert "100% GPU" in said.out
    copies = rested.say("ps", "--json").json
    assert {copy["server"] for copy in copies if copy["name"] == MODEL} == {"big", "small"}
    assert rested.say("stop", MODEL, "--server", "small").err == f"{MODEL} let go by small\n"
    rested.polled()
    assert {copy["server"] for copy in rested.say("ps", "--json").json if copy["name"] == MODEL} == {"big"}
    assert rested.say("stop", MODEL).code == 0
    rested.polled()
    missing = rested.say("stop", MODEL)
    assert missing.code == 3
    assert "is not loaded on any server" in missing.err


def test_show_tells_what_a_model_is_and_who_has_it(place: Place) -> None:
    said = place.say("show", MODEL)
    assert said.code == 0
    for words in ("architecture", "3.2B", "Capabilities", "tools", "Servers", "big", "small"):
        assert words in said.out
    assert place.say("show", MODEL, "--json").json["details"]["parameter_size"] == "3.2B"
    assert place.say("show", MODEL, "--license").out == "MIT\n"
    other = place.say("show", "meta-llama/Llama-3.1-8B")
    assert other.code == 0
    assert "vllm" in other.out
    missing = place.say("show", "nothing")
    assert (missing.code, missing.out) == (3, "")
    assert "not found" in missing.err


def test_status_at_one_glance(place: Place) -> None:
    said = place.say("status")
    assert said.code == 0
    assert f"at {place.service.url}: ✓ ready" in said.out
    assert "servers 3/3 online   workers 1" in said.out
    assert any(line.startswith("laptop") and "llm worker" in line for line in said.out.splitlines())
    value = place.say("status", "--json").json
    assert value["state"] == "ready"
    assert {backend["name"] for backend in value["backends"]} == {"big", "small", "vllm", "laptop"}


def test_callers_who_left_are_told_apart_from_failures(place: Place) -> None:
    before = {one["name"]: one for one in place.say("status", "--json").json["backends"]}["vllm"]
    body = {"model": "meta-llama/Llama-3.1-8B", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    with socket.create_connection((place.service.host, place.service.port)) as caller:
        encoded = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(encoded)}\r\n\r\n"
        place.fakes["vllm"].fault("hang", path="/v1/chat")
        caller.sendall(head.encode() + encoded)
        until(lambda: place.say("status", "--json").json["in_flight"], 5, "it is asked")

    def left() -> bool:
        found = {one["name"]: one for one in place.say("status", "--json").json["backends"]}["vllm"]
        assert found["failed"] == before["failed"]
        return bool(found["left"] == before["left"] + 1)

    until(left, 10, "it has left")


def test_top_prints_once_where_there_is_no_terminal(place: Place) -> None:
    said = place.say("top", "--interval", "0.2")
    assert said.code == 0
    assert "\x1b" not in said.out
    assert "req/s" in said.out.splitlines()[0]
    rows = place.say("top", "--interval", "0.2", "--json").json["backends"]
    assert all(row["requests_per_s"] is not None for row in rows)


# --- asking ---


def test_run_asks_once_and_prints_only_the_answer(place: Place) -> None:
    said = place.say("run", MODEL, "hello", "--verbose", "--server", "small")
    assert said.code == 0
    assert said.out.strip()
    assert "server:         small" in said.err
    assert "answer tokens:" in said.err
    piped = place.say("run", MODEL, "--server", "small", text="hello")
    assert (piped.code, piped.out) == (0, said.out)


def test_run_reaches_models_that_speak_openai_alone(place: Place) -> None:
    said = place.say("run", "meta-llama/Llama-3.1-8B", "hello", "--verbose")
    assert said.code == 0
    assert said.out.strip()
    assert "server:         vllm" in said.err
    missing = place.say("run", "nothing", "hello")
    assert (missing.code, missing.out) == (3, "")
    assert "not found" in missing.err


def test_an_answer_that_breaks_off_is_exit_code_1(rested: Place) -> None:
    rested.fakes["small"].fault("reset_mid", path="/api/chat")
    said = rested.say("run", MODEL, "hello", "--server", "small")
    assert said.code == 1
    assert said.err.startswith("fleetproxy run: ")


def test_bench_measures_and_compares_with_the_server_itself(place: Place) -> None:
    words = ["bench", "--model", MODEL, "--server", "big", "-n", "4", "-c", "2", "--tokens", "8"]
    said = place.say(*words, "--direct", place.fakes["big"].url)
    assert said.code == 0, said.err
    for part in ("TTFT", "ITL", "tokens/s", "overhead TTFT", "big 4"):
        assert part in said.out
    value = place.say(*words, "--json").json["fleet"]
    assert (value["requests"], value["failed"], value["servers"]) == (4, 0, {"big": 4})
    assert 0 < value["ttft_ms"]["p50"] <= value["ttft_ms"]["p95"] <= value["total_ms"]["most"]
    failing = place.say("bench", "--model", "nothing", "-n", "2", "--json")
    assert failing.code == 1
    assert failing.json["fleet"]["failed"] == 2
    assert "failed 2x" in failing.err


# --- changing ---


def test_pull_goes_where_it_is_told_and_says_how_far_it_is(rested: Place) -> None:
    said = rested.say("pull", "tinyllama", "--server", "small")
    assert (said.code, said.out) == (0, "")
    assert said.err.splitlines()[0] == "small: pulling manifest"
    assert said.err.splitlines()[-1] == "tinyllama is on small"
    rested.polled()
    assert "small" in rested.say("list", "tinyllama").out
    lines = rested.say("pull", "tinyllama", "--server", "big", "--json").out.splitlines()
    assert json.loads(lines[-1]) == {"status": "success"}
    rested.polled()
    refused = rested.say("rm", "tinyllama")
    assert refused.code == 2
    assert "is on big, small: say --server NAME, or --all" in refused.err
    assert rested.say("rm", "tinyllama", "--all").err.splitlines() == [
        "deleted tinyllama from big",
        "deleted tinyllama from small",
    ]
    rested.polled()
    assert rested.say("rm", "tinyllama").code == 3


def test_servers_are_listed_added_switched_and_removed(place: Place) -> None:
    said = place.say("servers")
    assert [row[0] for row in said.lines] == ["NAME", "big", "small", "vllm"]
    assert "● online" in said.out
    extra = place.fakes["behind"].url
    assert place.say("servers", "add", f"extra={extra}", "--vram", "8", "--max-concurrent", "2").code == 0
    again = place.say("servers", "add", f"extra={extra}")
    assert again.code == 1
    assert "extra" in again.err
    (entry,) = [one for one in place.say("servers", "--json").json if one["name"] == "extra"]
    assert (entry["origin"], entry["max_concurrent"], entry["vram_total_bytes"]) == ("api", 2, 8 * 1024**3)
    for what, is_disabled in (("disable", True), ("enable", False)):
        assert place.say("servers", what, "extra").err == f"server extra {what}d\n"
        shown = {one["name"]: one for one in place.service.admin("GET", "/api/servers")}
        assert shown["extra"]["isDisabled"] is is_disabled
    assert place.say("servers", "remove", "extra").code == 0
    assert place.say("servers", "remove", "extra").code == 3
    assert place.say("servers", "remove", "big").code == 1  # the file's
    assert place.say("servers", "remove").code == 2
    assert place.say("servers", "add", "x=http://user:secret@h").code == 2


def test_drain_waits_until_a_server_is_empty(place: Place) -> None:
    fake = place.fakes["small"]
    fake.fault("slow", path="/api/chat", seconds=1.0)
    asking = threading.Thread(
        target=lambda: place.service.fetch("POST", "/api/chat", _CHAT, {"X-Ollama-Pin-Server": "small"})
    )
    asking.start()
    deadline_s = time.monotonic() + 5
    while place.service.in_flight() == 0:
        assert time.monotonic() < deadline_s
    early = place.say("drain", "small", "--wait", "--within", "0.1")
    assert early.code == 124
    assert "small still serves 1" in early.err
    done = place.say("drain", "small", "--wait", "--within", "20")
    asking.join()
    assert done.code == 0
    assert done.err.splitlines()[-1] == "small is empty"
    assert "◐ draining" in place.say("servers").out
    assert place.say("undrain", "small").err == "small gets requests again\n"
    assert "draining" not in place.say("servers").out
    nobody = place.say("drain", "nobody")
    assert nobody.code == 3
    assert "there is no server or worker 'nobody'" in nobody.err


def test_a_dial_in_worker_is_drained_by_its_name(place: Place) -> None:
    done = place.say("drain", "laptop", "--wait", "--within", "20")
    assert done.code == 0, done.err
    until(lambda: worker_status(place) == "draining", 5, "it is shown as draining")
    assert place.say("undrain", "laptop").code == 0
    until(lambda: worker_status(place) == "idle", 5, "it works again")


def worker_status(place: Place) -> str:
    shown = {one["name"]: one["status"] for one in place.say("status", "--json").json["backends"]}
    return str(shown["laptop"])


def test_explain_says_who_would_be_asked_and_why_not_the_others(place: Place) -> None:
    said = place.say("explain", "--model", "qwen3:8b")
    assert said.code == 0, said.err
    assert said.out.startswith("qwen3:8b at /api/chat: ")
    table = said.out.partition("\n\n")[2].splitlines()
    assert table[0].split() == ["PLACE", "SERVER", "VERDICT", "MODEL", "BUSY", "LINE", "FREE", "VRAM", "WHY"]
    assert any("big" in line and "chosen" in line for line in table)
    assert any("small" in line and "model missing" in line for line in table)
    value = place.say("explain", "--model", "qwen3:8b", "--pin", "big", "--json").json
    assert [one["serverName"] for one in value["considered"] if one["verdict"] == "chosen"] == ["big"]
    nobody = place.say("explain", "--model", MODEL, "--pin", "nobody")
    assert nobody.code == 7
    assert nobody.out.count("does not exist") == 1
    wrong = place.say("explain", "--model", MODEL, "--path", "/nonsense")
    assert wrong.code == 1


_CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}).encode()


# --- whom, and with which key ---


class _Notes(http.server.BaseHTTPRequestHandler):
    """Answers lists, and remembers the heads it saw."""

    seen: list[dict[str, str]] = []

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        body = b'{"models":[]}' if self.path in ("/api/tags", "/api/state") else b"{}"
        self.send_response(401 if self.path == "/api/servers" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def notes() -> Iterator[tuple[str, list[dict[str, str]]]]:
    _Notes.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Notes) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", _Notes.seen
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("words", "environment", "key"),
    [
        (["--url", "{}", "--key", "word"], {"FLEETPROXY_URL": "http://h:1", "FLEETPROXY_KEY": "other"}, "word"),
        ([], {"FLEETPROXY_URL": "http://{}", "OLLAMA_HOST": "h:1", "FLEETPROXY_KEY": "ours"}, "ours"),
        ([], {"OLLAMA_HOST": "{}", "OLLAMA_API_KEY": "theirs"}, "theirs"),
        ([], {"FLEETPROXY_URL": "http://{}/v1"}, None),
    ],
)
def test_address_and_key_come_from_options_then_variables(
    notes: tuple[str, list[dict[str, str]]], words: list[str], environment: dict[str, str], key: str | None
) -> None:
    address, seen = notes
    said = say(
        "list", *(word.format(address) for word in words), **{n: v.format(address) for n, v in environment.items()}
    )
    assert said.code == 0, said.err
    assert seen
    for head in seen:
        assert head.get("x-ollama-api-key") == key
        # An unknown Bearer token goes on to the servers behind a proxy: ours must not.
        assert "authorization" not in head


@pytest.mark.parametrize(
    "word", ["list", "ps", "status", "servers", "drain", "show", "run", "pull", "rm", "stop", "explain", "bench"]
)
def test_nobody_there_is_exit_code_4_and_a_way_out(word: str) -> None:
    more = {"explain": ["--model", "m"], "bench": ["--model", "m"]}.get(
        word, [] if word in ("list", "ps", "status", "servers") else ["m"]
    )
    said = say(word, *more, "--url", "http://127.0.0.1:1")
    assert (said.code, said.out) == (4, "")
    assert said.err == (
        f"fleetproxy {word}: nobody listens at http://127.0.0.1:1; start it with `fleetproxy serve`, or name another "
        "with --url\n"
    )


class _Rude(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"error": "red \x1b[31m\x9b2J\nand more"}).encode()
        self.send_response(500)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_what_an_error_says_steers_no_terminal() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Rude) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        words = (["list"], ["show", "m"], ["run", "m", "hello"], ["bench", "--model", "m", "-n", "1"])
        said = [say(*one, "--url", f"http://127.0.0.1:{server.server_port}") for one in words]
        server.shutdown()
        serving.join()
    for one in said:
        assert one.code == 1
        (line,) = one.err.splitlines()
        assert line.endswith("red \ufffd[31m\ufffd2J and more")


def test_an_address_that_is_none_is_wrong_usage() -> None:
    said = say("list", "--url", "ftp://h")
    assert said.code == 2
    assert '"ftp" is no scheme' in said.err


def test_a_server_that_says_nothing_is_exit_code_124() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = say("status", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.2")
    assert said.code == 124
    assert "within 0.2 s; allow more with --timeout" in said.err


@pytest.mark.parametrize("word", sorted(COMMANDS))
def test_every_help_begins_with_examples_of_its_own(word: str) -> None:
    said = say(word, "--help")
    assert said.code == 0
    head, _, rest = said.out.partition("\n\n")
    examples = head.splitlines()
    assert examples[0] == "examples:"
    assert len(examples) > 1
    assert any(f"fleetproxy {word}" in line for line in examples)
    assert "7 done, with findings" in rest
