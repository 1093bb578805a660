from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from control_plane import Control

from fleetproxy.control.registry import _path
from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.settings import Discovery, Settings
from fleetproxy.testing.fakes import Fake, Fault, Profile
from fleetproxy.testing.http import HttpServer, Reply
from fleetproxy.testing.message import Request


class Registry:
    """Both registries: what they were asked, what they say."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.there: set[str] = set()
        self.broken = False

    async def handle(self, request: Request, reply: Reply) -> None:
        self.asked.append(f"{request.method} {request.target}")
        await reply.send(500 if self.broken else 200 if request.target in self.there else 404, b"{}")


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    registry = Registry()
    server = HttpServer(registry.handle)
    await server.listen()
    registry.url = f"http://127.0.0.1:{server.port}"  # type: ignore[attr-defined]
    yield registry
    await server.close()


@pytest.fixture
def settings(registry: Registry) -> Settings:
    url = registry.url  # type: ignore[attr-defined]
    return Settings(discovery=Discovery(ollama_registry_url=url, huggingface_url=url))


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with Fake(Profile(models=("phi:latest", "llama3.2:3b"), api_key="server-key")) as fake:
        yield fake


@pytest.fixture
async def admin(control: Control, fake: Fake) -> httpx.AsyncClient:
    url = httpx.URL(fake.url)
    ollama = Backend(name="gpu1", id=1, column=0, host="127.0.0.1", port=url.port or 0, api_key="server-key")
    vllm = Backend(name="vllm", id=2, column=1, kind="openai", host="127.0.0.1", port=url.port or 0)
    control.fleet.seen = [(ollama, BackendState(online=True)), (vllm, BackendState(online=True))]
    return await control.admin()


async def ended(admin: httpx.AsyncClient, action_id: int) -> dict[str, object]:
    for _ in range(500):
        action = next(a for a in (await admin.get("/api/models/actions")).json() if a["id"] == action_id)
        if action["status"] != "pending":
            return action
        await asyncio.sleep(0.01)
    raise AssertionError("the action did not end")


async def ask(fake: Fake, path: str) -> dict[str, list[dict[str, object]]]:
    async with httpx.AsyncClient(base_url=fake.url, headers={"authorization": "Bearer server-key"}) as client:
        return (await client.get(path)).json()


# --- registries ----------------------------------------------------------------------------------------------------


async def test_names_are_looked_for_where_they_would_be(admin: httpx.AsyncClient, registry: Registry) -> None:
    registry.there = {"/v2/library/phi/manifests/latest", "/api/models/org/model"}
    check = (await admin.get("/api/models/registry-check", params={"model": "phi"})).json()
    assert check == {
        "modelName": "phi",
        "existsOnOllama": True,
        "existsOnHuggingFace": False,
        "isCustom": False,
        "checkedAt": "2026-11-01T12:00:00.000Z",
    }
    hub = (await admin.get("/api/models/registry-check", params={"model": "hf.co/org/model:Q4"})).json()
    assert (hub["existsOnHuggingFace"], hub["isCustom"]) == (True, False)
    own = (await admin.get("/api/models/registry-check", params={"model": "mine:7b"})).json()
    assert own["isCustom"]
    assert registry.asked == [
        "HEAD /v2/library/phi/manifests/latest",
        "GET /api/models/org/model",
        "HEAD /v2/library/mine/manifests/7b",
    ]


async def test_answers_are_remembered_for_a_day_failures_for_minutes(
    admin: httpx.AsyncClient, registry: Registry, control: Control
) -> None:
    registry.broken = True
    assert (await admin.get("/api/models/registry-check?model=phi")).json()["isCustom"]
    registry.broken, registry.there = False, {"/v2/library/phi/manifests/latest"}
    assert (await admin.get("/api/models/registry-check?model=phi")).json()["isCustom"]
    control.clock.pass_(minutes=6)
    assert not (await admin.get("/api/models/registry-check?model=phi")).json()["isCustom"]
    asked = len(registry.asked)
    control.clock.pass_(hours=23)
    await admin.get("/api/models/registry-check?model=phi")
    assert len(registry.asked) == asked
    control.clock.pass_(hours=2)
    await admin.get("/api/models/registry-check?model=phi")
    assert len(registry.asked) == asked + 1


async def test_a_model_must_be_named(admin: httpx.AsyncClient) -> None:
    for query in ("", "?model=", "?model=" + "x" * 300):
        answer = await admin.get(f"/api/models/registry-check{query}")
        assert (answer.status_code, answer.json()) == (400, {"error": "model parameter required"})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b", "a/b"),
        ("../../etc", "%2E%2E/%2E%2E/etc"),
        ("a?b#c", "a%3Fb%23c"),
        ("a b\r\nX: y", "a%20b%0D%0AX%3A%20y"),
        ("ü", "%C3%BC"),
    ],
)
def test_names_cannot_leave_their_place_in_a_path(name: str, path: str) -> None:
    assert _path(name) == path


# --- pulls ---------------------------------------------------------------------------------------------------------


async def test_a_pull_is_pending_then_done_and_the_model_is_there(admin: httpx.AsyncClient, fake: Fake) -> None:
    answer = await admin.post("/api/models/pull", json={"modelName": "qwen3:4b", "serverId": 1})
    assert answer.json() == {"actionId": 1, "status": "pending"}
    action = await ended(admin, 1)
    assert (action["status"], action["detail"]) == ("success", "Pull completed")
    assert action["triggeredBy"] == "root"
    assert {"id", "action", "modelName", "serverId", "serverName", "createdAt"} <= set(action)
    assert action["progress"] is None
    tags = await ask(fake, "/api/tags")
    assert "qwen3:4b" in [model["name"] for model in tags["models"]]


async def test_a_pull_that_the_server_refuses_says_why(admin: httpx.AsyncClient) -> None:
    await admin.post("/api/models/pull", json={"modelName": "missing:1b", "serverId": 1})
    action = await ended(admin, 1)
    assert (action["status"], action["detail"]) == ("failed", "pull model manifest: file does not exist")


@pytest.mark.parametrize("fault", ["reset_before", "reset_mid", "cut", "garbage", "no_marker", "error", "unavailable"])
async def test_a_pull_that_breaks_has_failed(admin: httpx.AsyncClient, fake: Fake, fault: str) -> None:
    fake.faults.add(Fault(name=fault, path="/api/pull", after=2))
    await admin.post("/api/models/pull", json={"modelName": "qwen3:4b", "serverId": 1})
    action = await ended(admin, 1)
    assert action["status"] == "failed"
    assert action["detail"]
    assert "127.0.0.1" not in str(action["detail"])


async def test_the_same_pull_again_joins_the_one_that_runs(admin: httpx.AsyncClient, fake: Fake) -> None:
    fake.faults.add(Fault(name="hang", path="/api/pull", next=9))
    body = {"modelName": "qwen3:4b", "serverId": 1}
    answers = [(await admin.post("/api/models/pull", json=body)).json() for _ in range(3)]
    assert {answer["actionId"] for answer in answers} == {1}
    running = (await admin.get("/api/models/actions")).json()[0]
    assert running["progress"] == {"status": "waiting", "completedBytes": 0, "totalBytes": 0}
    assert (await admin.post("/api/models/actions/1/cancel")).json() == {"ok": True}
    assert (await ended(admin, 1))["detail"] == "Cancelled"
    assert (await admin.post("/api/models/actions/1/cancel")).status_code == 404


async def test_progress_is_told_in_bytes(admin: httpx.AsyncClient, fake: Fake, control: Control) -> None:
    fake.faults.add(Fault(name="stall", path="/api/pull", after=5))
    await admin.post("/api/models/pull", json={"modelName": "qwen3:4b", "serverId": 1})
    for _ in range(300):
        progress = (await admin.get("/api/models/actions")).json()[0]["progress"]
        if progress and progress["completedBytes"]:
            break
        await asyncio.sleep(0.01)
    assert 0 < progress["completedBytes"] <= progress["totalBytes"]
    assert progress["status"].startswith("pulling")
    await admin.post("/api/models/actions/1/cancel")


async def test_pulls_waiting_are_bounded(admin: httpx.AsyncClient, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.control.pulls.MAX_WAITING", 2)
    fake.faults.add(Fault(name="hang", path="/api/pull", next=9))
    statuses = [
        (await admin.post("/api/models/pull", json={"modelName": f"m{n}", "serverId": 1})).status_code for n in range(4)
    ]
    assert statuses == [200, 200, 429, 429]


async def test_pulls_of_a_control_that_stopped_have_failed(
    control: Control, admin: httpx.AsyncClient, fake: Fake
) -> None:
    from fleetproxy.control.state import actions

    store = control.services.store
    await store.write(actions.begin, "pull", "phi", 1, server="gpu1", triggered_by="root", now=control.clock.now())
    await store.write(actions.interrupt, control.clock.now())
    action = (await admin.get("/api/models/actions")).json()[0]
    assert action["status"] == "failed"
    assert "stopped meanwhile" in action["detail"]


async def test_closing_ends_pulls_and_writes_it_down(control: Control, admin: httpx.AsyncClient, fake: Fake) -> None:
    fake.faults.add(Fault(name="hang", path="/api/pull", next=9))
    await admin.post("/api/models/pull", json={"modelName": "qwen3:4b", "serverId": 1})
    await control.services.pulls.close()
    assert (await admin.get("/api/models/actions")).json()[0]["detail"] == "Cancelled"


# --- delete, load, unload ------------------------------------------------------------------------------------------


async def test_a_model_no_registry_has_is_deleted_only_knowingly(
    admin: httpx.AsyncClient, fake: Fake, registry: Registry
) -> None:
    body = {"modelName": "phi:latest", "serverId": 1}
    blocked = await admin.post("/api/models/delete", json=body)
    assert blocked.status_code == 409
    assert (blocked.json()["blocked"], blocked.json()["reason"]) == (True, "custom_model")
    assert blocked.json()["registryCheck"]["isCustom"]
    assert not fake.journal.of("/api/delete")
    done = await admin.post("/api/models/delete", json={**body, "acknowledgeCustom": True})
    assert done.json() == {"actionId": 1, "status": "success", "detail": "Model deleted"}
    again = await admin.post("/api/models/delete", json={**body, "acknowledgeCustom": True})
    assert again.json()["status"] == "failed"
    assert "not found" in again.json()["detail"]


async def test_a_model_of_a_registry_is_deleted_at_once(
    admin: httpx.AsyncClient, registry: Registry, fake: Fake
) -> None:
    registry.there = {"/v2/library/phi/manifests/latest"}
    done = await admin.post("/api/models/delete", json={"modelName": "phi", "serverId": 1})
    assert done.json()["status"] == "success"
    assert len(fake.journal.of("/api/delete")) == 1


async def test_load_and_unload(admin: httpx.AsyncClient, fake: Fake, control: Control) -> None:
    hurried: list[str] = []
    control.services.hurry = hurried.append
    body = {"modelName": "phi:latest", "serverId": 1}
    assert (await admin.post("/api/models/load", json=body)).json()["detail"] == "Model loaded"
    running = await ask(fake, "/api/ps")
    assert [model["name"] for model in running["models"]] == ["phi:latest"]
    assert (await admin.post("/api/models/unload", json=body)).json()["detail"] == "Model unloaded"
    running = await ask(fake, "/api/ps")
    assert running["models"] == []
    assert hurried == ["gpu1", "gpu1"]
    listed = (await admin.get("/api/models/actions?limit=1")).json()
    assert [action["action"] for action in listed] == ["unload"]


@pytest.mark.parametrize(("keep", "for_good"), [("-1m", True), ("-1", True), ("10m", False), ("600", False)])
async def test_a_model_stays_in_memory_for_as_long_as_is_asked(
    admin: httpx.AsyncClient, fake: Fake, keep: str, for_good: bool
) -> None:
    body = {"modelName": "phi:latest", "serverId": 1, "keepAlive": keep}
    done = (await admin.post("/api/models/load", json=body)).json()
    assert done["status"] == "success", done
    running = await ask(fake, "/api/ps")
    assert (int(running["models"][0]["expires_at"][:4]) > 2100) is for_good
    assert (await admin.post("/api/models/load", json={**body, "keepAlive": "for ever"})).status_code == 400


@pytest.mark.parametrize("path", ["pull", "delete", "load", "unload"])
async def test_targets_are_checked(admin: httpx.AsyncClient, fake: Fake, path: str) -> None:
    for payload in (
        {},
        {"modelName": "x"},
        {"modelName": "x", "serverId": 0},
        {"modelName": "x", "serverId": "1"},
        {"modelName": "", "serverId": 1},
        {"modelName": "a b", "serverId": 1},
        {"modelName": "a\nb", "serverId": 1},
        {"modelName": 5, "serverId": 1},
        {"modelName": "x" * 300, "serverId": 1},
        [],
    ):
        answer = await admin.post(f"/api/models/{path}", json=payload)
        assert answer.status_code == 400
        assert answer.json() == {"error": "modelName (string) and serverId (positive integer) required"}
    unknown = await admin.post(f"/api/models/{path}", json={"modelName": "x", "serverId": 77})
    assert (unknown.status_code, unknown.json()) == (404, {"error": "Server not found"})
    vllm = await admin.post(f"/api/models/{path}", json={"modelName": "x", "serverId": 2, "acknowledgeCustom": True})
    assert vllm.status_code == 400
    assert "no Ollama server" in vllm.json()["error"]
    assert not [row for row in fake.journal.rows if row.method in ("POST", "DELETE")]
