from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetproxy.worker.agent import Agent
from fleetproxy.worker.options import resolve
from fleetproxy.worker.status import MetricsPage, StatusPage, make_token, state_word


async def ask(app: Any, method: str, path: str, client: str = "127.0.0.1", **headers: str) -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": (client, 1),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.fixture
async def agent() -> Agent:
    return Agent(resolve("llm", {"worker_id": "w", "worker_name": "box"}, {}))


async def test_status_and_version_have_nfrxs_fields(agent: Agent) -> None:
    page = StatusPage(agent, "t")
    status, body = await ask(page, "GET", "/status")
    told = json.loads(body)
    assert status == 200
    assert (told["state"], told["worker_id"], told["worker_name"], told["current_jobs"]) == (
        "connecting",
        "w",
        "box",
        0,
    )
    for field in ("connected_to_server", "connected_to_backend", "max_concurrency", "last_error", "last_heartbeat"):
        assert field in told
    status, body = await ask(page, "GET", "/version")
    assert set(json.loads(body)) == {"Version", "BuildSHA", "BuildDate"}


async def test_states_follow_what_happens(agent: Agent) -> None:
    standing = agent.standing
    standing.connected_to_server = True
    assert state_word(agent) == "not_ready"
    standing.connected_to_backend = True
    assert state_word(agent) == "connected_idle"
    standing.draining = True
    assert state_word(agent) == "draining"
    standing.leaving = True
    assert state_word(agent) == "terminating"


async def test_control_is_for_this_machine_with_the_token_only(agent: Agent) -> None:
    page = StatusPage(agent, "t0ken")
    assert (await ask(page, "GET", "/control/drain"))[0] == 405
    assert (await ask(page, "POST", "/control/drain", client="10.0.0.1", x_auth_token="t0ken"))[0] == 403
    assert (await ask(page, "POST", "/control/drain"))[0] == 401
    assert (await ask(page, "POST", "/control/drain", x_auth_token="wrong"))[0] == 401
    assert not agent.standing.draining
    for _ in range(2):
        assert (await ask(page, "POST", "/control/drain", x_auth_token="t0ken"))[0] == 200
    assert agent.standing.draining
    assert not agent.standing.leaving, "drained twice over HTTP is drained, not ended"
    assert (await ask(page, "POST", "/control/undrain", x_auth_token="t0ken"))[0] == 200
    assert not agent.standing.draining
    assert (await ask(page, "POST", "/control/shutdown", x_auth_token="t0ken"))[0] == 200
    assert agent.standing.leaving


async def test_without_a_token_nobody_controls(agent: Agent) -> None:
    assert (await ask(StatusPage(agent, ""), "POST", "/control/drain"))[0] == 401


async def test_other_paths_and_methods(agent: Agent) -> None:
    page = StatusPage(agent, "t")
    assert (await ask(page, "GET", "/"))[0] == 404
    assert (await ask(page, "POST", "/status"))[0] == 405


async def test_metrics_are_prometheus_text(agent: Agent) -> None:
    status, body = await ask(MetricsPage(agent), "GET", "/metrics")
    assert status == 200
    assert b"fleetproxy_worker_requests_total 0\n" in body
    assert (await ask(MetricsPage(agent), "GET", "/"))[0] == 404


def test_the_token_is_private_and_serves_every_worker_of_the_family(tmp_path: Path) -> None:
    path = tmp_path / "made" / "worker-llm.token"
    first = make_token(path)
    assert path.read_text().strip() == first == make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    second = make_token(path)
    assert second != first, "others may have read it"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short\n")
    assert make_token(path) not in {first, second, "short"}
