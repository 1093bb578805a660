"""The units: systemd finds them good, and what they start says what `Type=notify` and the watchdog want to hear."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from fleetproxy.settings.load import load
from fleetproxy.testing.spawned import Spawned

UNITS = Path(__file__).parents[2] / "deploy/systemd"
SERVICE, WORKER = UNITS / "fleetproxy.service", UNITS / "fleetproxy-worker@.service"


class _Repeatable(configparser.RawConfigParser):
    """Keys as they are written."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit(path: Path) -> dict[str, str]:
    parser = _Repeatable(strict=True, interpolation=None)
    parser.read(path)
    return dict(parser["Service"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze comes with systemd")
def test_systemd_finds_the_units_good_and_well_confined(tmp_path: Path) -> None:
    program = shutil.which("true")
    copies = []
    for path in (SERVICE, WORKER):
        copies.append(tmp_path / path.name)
        copies[-1].write_text(path.read_text().replace("/usr/bin/fleetproxy", str(program)))
    words = ["systemd-analyze", "verify", "--man=no", *map(str, copies)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    for path in copies:
        words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-300:]


def test_the_units_are_confined_notify_and_drain() -> None:
    service, worker = unit(SERVICE), unit(WORKER)
    for one in (service, worker):
        for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictSUIDSGID"):
            assert one[key] == "true"
        assert (one["ProtectSystem"], one["CapabilityBoundingSet"], one["KillMode"]) == ("strict", "", "mixed")
        assert int(one["TimeoutStopSec"]) > 60  # above both defaults of draining
        assert "6" in one["RestartPreventExitStatus"].split()
    assert (service["Type"], service["NotifyAccess"], service["WatchdogSec"]) == ("notify", "main", "30")
    assert (worker["Type"], worker["NotifyAccess"]) == ("notify", "main")
    assert (
        float(service["TimeoutStopSec"]) > load(environment={}, folder=Path("/nonexistent")).settings.timeouts.drain_s
    )
    made = dict(word.split("=", 1) for word in shlex.split(service["Environment"]))
    assert made["FLEETPROXY_DATA_DIR"] == f"/var/lib/{service['StateDirectory']}"
    assert made["FLEETPROXY_RUNTIME_DIR"] == f"/run/{service['RuntimeDirectory']}"
    # Both variables are settings of ours: a misspelt one would be an error at the start.
    assert load(environment=made, folder=Path("/nonexistent")).settings.data_dir == made["FLEETPROXY_DATA_DIR"]


def test_tmpfiles_and_sysusers_agree_with_the_unit() -> None:
    service = unit(SERVICE)
    (user,) = [
        line.split() for line in (UNITS / "fleetproxy.sysusers.conf").read_text().splitlines() if line[:2] == "u "
    ]
    assert user[1] == service["User"] == service["Group"]
    folders = {
        words[1]: (words[2], words[3])
        for line in (UNITS / "fleetproxy.tmpfiles.conf").read_text().splitlines()
        if (words := line.split()) and words[0] == "d"
    }
    assert folders["/var/lib/fleetproxy"] == (service["StateDirectoryMode"], service["User"])
    assert folders["/run/fleetproxy"] == (service["RuntimeDirectoryMode"], service["User"])
    if shutil.which("systemd-tmpfiles"):
        for tool, name in (("systemd-tmpfiles", "tmpfiles"), ("systemd-sysusers", "sysusers")):
            words = [tool, "--cat-config", str(UNITS / f"fleetproxy.{name}.conf")]
            assert subprocess.run(words, capture_output=True, check=False).returncode == 0


class Listener:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(path))
        self._channel.settimeout(0.2)
        self.heard: list[str] = []

    def until(self, words: str, within_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + within_s
        while not any(words in message for message in self.heard):
            assert time.monotonic() < deadline_s, self.heard
            with contextlib.suppress(TimeoutError):
                self.heard.append(self._channel.recv(4096).decode())

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "notify")
    yield made
    made.close()


def test_what_the_service_unit_starts_tells_systemd_all_it_wants_to_hear(systemd: Listener, tmp_path: Path) -> None:
    service = unit(SERVICE)
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/usr/bin/fleetproxy"
    config = tmp_path / "fleetproxy.toml"
    config.write_text("port = 0\n[timeouts]\ndrain_s = 1\n")
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "400000",
        "FLEETPROXY_CONFIG": str(config),
        "FLEETPROXY_DATA_DIR": str(tmp_path / "data"),
        "FLEETPROXY_RUNTIME_DIR": str(tmp_path / "run"),
    }
    one = Spawned([sys.executable, "-m", "fleetproxy", *words], tmp_path / "log", environment)
    one.spawn()
    try:
        systemd.until("READY=1")
        ready = next(message for message in systemd.heard if "READY=1" in message)
        assert f"MAINPID={one.pid}" in ready
        assert "STATUS=Serving" in ready
        systemd.heard.clear()
        systemd.until("WATCHDOG=1", 2.0)
        # ExecReload
        assert re.fullmatch(r"/bin/kill -HUP \$MAINPID", service["ExecReload"])
        os.kill(one.pid, signal.SIGHUP)
        systemd.until("RELOADING=1", 10.0)
        systemd.until("READY=1", 10.0)
        # KillMode=mixed: SIGTERM to the main process alone.
        one.signal(signal.SIGTERM)
        systemd.until("STOPPING=1", 10.0)
        assert one.wait(20) == 0
    finally:
        one.kill()


@pytest.mark.parametrize("family", ["llm", "asr", "mcp"])
def test_what_the_worker_unit_starts_runs_and_leaves_at_sigterm(family: str, systemd: Listener, tmp_path: Path) -> None:
    program, *words = shlex.split(unit(WORKER)["ExecStart"].replace("%i", family))
    assert program == "/usr/bin/fleetproxy"
    environment = {"SERVER_URL": "ws://127.0.0.1:1", "CLIENT_KEY": "word", "FLEETPROXY_LOG__FORMAT": "text"}
    environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    one = Spawned([sys.executable, "-m", "fleetproxy", *words], tmp_path / "log", environment)
    one.spawn()
    try:
        systemd.until("READY=1", 15)
        systemd.until("STATUS=Not connected: ws://127.0.0.1:1", 15)
        one.signal(signal.SIGTERM)
        systemd.until("STOPPING=1", 15)
        assert one.wait(20) == 0
    finally:
        one.kill()


def test_a_worker_tells_systemd_to_whom_it_is_connected_and_nothing_in_the_servers_name(
    systemd: Listener, tmp_path: Path
) -> None:
    def turn_away(caller: ServerConnection) -> None:
        caller.recv()
        caller.close(1008, "go\nMAINPID=1")

    with serve(turn_away, "127.0.0.1", 0) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        environment = {"SERVER_URL": url, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        one = Spawned([sys.executable, "-m", "fleetproxy", "worker", "llm"], tmp_path / "log", environment)
        one.spawn()
        try:
            systemd.until(f"STATUS=Connected to {url}/api/llm/connect", 15)
            systemd.until("STATUS=Not connected: the server closed the connection (1008: go MAINPID=1)", 15)
            one.signal(signal.SIGTERM)
            assert one.wait(20) == 0
        finally:
            one.kill()
            server.shutdown()
            serving.join()
    assert "MAINPID=1" not in "\n".join(systemd.heard).splitlines()


def test_the_metrics_agent_of_the_unit_tells_systemd_that_it_is_there(systemd: Listener, tmp_path: Path) -> None:
    _, *words = shlex.split(unit(WORKER)["ExecStart"].replace("%i", "metrics"))
    environment = {"AGENT_LISTEN": "127.0.0.1:0", "NOTIFY_SOCKET": str(tmp_path / "notify")}
    one = Spawned([sys.executable, "-m", "fleetproxy", *words], tmp_path / "log", environment)
    one.spawn()
    try:
        systemd.until("READY=1", 15)
        one.signal(signal.SIGTERM)
        systemd.until("STOPPING=1", 15)
        assert one.wait(20) == 0
    finally:
        one.kill()
