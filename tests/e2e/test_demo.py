"""`fleetproxy demo`: up in seconds, alive, and gone without a trace."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetproxy.testing.demo import FLEETPROXY
from fleetproxy.testing.processes import children
from fleetproxy.testing.spawned import Spawned, fetch, until


class Demo(Spawned):
    """A demo in a world of its own: home and temporary folder are empty and watched."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.home, self.scratch = folder / "home", folder / "t"
        for made in (self.home, self.scratch):
            made.mkdir()
        environment = {
            "HOME": str(self.home),
            "TMPDIR": str(self.scratch),
            "XDG_RUNTIME_DIR": "",
            "FLEETPROXY_PORT": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        super().__init__([sys.executable, "-m", "fleetproxy", "demo", *words], folder / "demo.log", environment)

    @property
    def url(self) -> str:
        found = re.search(r"proxy +(http://\S+)", self.text())
        return found.group(1) if found else ""

    def login(self) -> str:
        """The session cookie of the login it printed."""
        password = re.search(r"password: (\S+)\)", self.text())
        assert password
        body = json.dumps({"username": "demo", "password": password.group(1)}).encode()
        status, headers, _ = fetch(self.url, "POST", "/api/auth/login", body, {"Origin": self.url})
        assert status == 200
        return headers["set-cookie"].partition(";")[0]

    def get(self, path: str, cookie: str) -> Any:
        status, _, body = fetch(self.url, "GET", path, None, {"Cookie": cookie})
        assert status == 200, (path, status, body)
        return json.loads(body)


@pytest.fixture
def demo(request: pytest.FixtureRequest) -> Iterator[Demo]:
    # Not tmp_path: beside other test processes its name alone is too long for the demo's sockets.
    with tempfile.TemporaryDirectory(prefix="fpd-", dir="/tmp") as folder:
        made = Demo(Path(folder), *request.param)
        made.spawn()
        until(lambda: made.url or not made.alive, 40, "the card")
        assert made.alive, made.text()
        yield made
        made.kill()


def _family(pid: int) -> list[int]:
    found = []
    for child, _ in children(pid):
        found += [child, *_family(child)]
    return found


@pytest.mark.parametrize("demo", [("--port", "0", "--speed", "5", "--seed", "3")], indirect=True)
def test_the_demo_lives_and_leaves_nothing(demo: Demo) -> None:
    text = demo.text()
    for expected in (
        "export OLLAMA_HOST=",
        "export OPENAI_BASE_URL=",
        "export ANTHROPIC_BASE_URL=",
        "curl http",
        "/dashboard/",
    ):
        assert expected in text
    command = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl"))
    said = subprocess.run(["sh", "-c", f"{command} -sS"], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(said.stdout.splitlines()[-1])["done"] is True
    cookie = demo.login()
    servers = demo.get("/api/servers", cookie)
    assert {server["name"] for server in servers} == {"workstation", "laptop", "rack", "minipc"}
    assert all(server["isOnline"] for server in servers)

    def busy() -> bool:
        rows = demo.get("/api/requests", cookie)["requests"]
        return len({row["sourceIp"] for row in rows}) >= 4 and len({row["targetHost"] for row in rows} - {None}) >= 3

    until(busy, 30, "traffic from several sources at several servers")
    until(lambda: demo.get("/api/workers", cookie)["workers"], 15, "a machine that dialled in")
    until(lambda: len(demo.get("/api/users", cookie)) == 4, 15, "users")
    family = _family(demo.pid)
    assert len(family) >= 4
    demo.signal(signal.SIGINT)
    assert demo.wait(20) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 5, "every process left")
    assert list(demo.scratch.iterdir()) == []
    assert list(demo.home.rglob("*")) == []
    assert "Traceback" not in demo.text()


@pytest.mark.parametrize("demo", [("--port", "0", "--seed", "3")], indirect=True)
def test_a_week_lies_behind_the_demo(demo: Demo) -> None:
    cookie = demo.login()

    def past() -> Any:
        found = demo.get("/api/analytics?hours=168", cookie)
        return found if found["summary"]["totalRequests"] > 1000 else None

    found = until(past, 15, "the history in the store")
    assert len({bucket["bucket"][:10] for bucket in found["requestsOverTime"]}) >= 7
    assert found["summary"]["uniqueUsers"] == 3
    assert found["summary"]["uniqueModels"] >= 6
    residency = demo.get("/api/analytics/residency?hours=168", cookie)
    assert {stay["serverName"] for stay in residency["stays"]} >= {"workstation", "laptop", "rack", "minipc"}
    events = demo.get("/api/server-events?hours=168", cookie)
    assert {event["eventType"] for event in events} >= {"offline", "online"}

    def plan() -> Any:
        found = demo.get("/api/scheduled-jobs/timeline?hours=24", cookie)
        return found["conflicts"]

    assert {conflict["conflictType"] for conflict in until(plan, 15, "jobs")} >= {"same_model"}


@pytest.mark.parametrize("demo", [("--port", "0", "--no-traffic", "--duration", "4")], indirect=True)
def test_a_quiet_demo_ends_by_itself(demo: Demo) -> None:
    assert demo.get("/api/requests", demo.login())["requests"] == []
    assert demo.wait(20) == 0
    assert list(demo.scratch.iterdir()) == []


@pytest.mark.parametrize("demo", [("--port", "0", "--no-traffic")], indirect=True)
def test_a_killed_demo_takes_its_service_along(demo: Demo) -> None:
    family = _family(demo.pid)
    demo.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 15, "every process left")


@pytest.mark.parametrize(("parent", "code"), [(os.getpid, 0), (lambda: os.getpid() + 1, 1)], ids=["alive", "dead"])
def test_a_process_of_a_demo_begins_only_while_the_demo_lives(parent: Callable[[], int], code: int) -> None:
    """The demo may be killed before its process has asked to be told of it."""
    words = [sys.executable, "-c", FLEETPROXY, str(parent()), "--version"]
    assert subprocess.run(words, stdout=subprocess.DEVNULL, timeout=30, check=False).returncode == code


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        made = Demo(tmp_path, "--port", str(port))
        made.spawn()
        assert made.wait(20) == 1
        assert made.text().strip().splitlines() == [
            f"fleetproxy: port {port} cannot be had: Address already in use; choose one with --port"
        ]
    assert list(made.scratch.iterdir()) == []
