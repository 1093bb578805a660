"""Every documented answer of the dashboard API, from a whole control process: not a field more, not a field less.

As the administrator, with something in every list. Who may call what is `test_walk.py`'s.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from fleetproxy.control.analytics.journal import Journal
from fleetproxy.control.analytics.rows import ModelEvent, ServerEvent, SystemMetrics
from fleetproxy.control.api.answers import ANSWERS
from fleetproxy.core.record import Attempt
from fleetproxy.core.worker import Offer, Worker
from fleetproxy.link.messages import RelayedCall, RelaysPulse, WorkersSeen
from fleetproxy.settings import Auth, Discovery, Poll, Server, Settings, Telegram
from fleetproxy.testing.fakes import Fake, Fault, Profile
from tests.control.analytics.analytics_kit import line, put, record
from tests.control.running import Neighbour, Running, control, short_folder, until

PASSWORD = "correct horse 7"


@asynccontextmanager
async def telegram() -> AsyncIterator[str]:
    """Somebody who finds every bot's token good and takes every message; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"ok":true,"result":{"id":1,"username":"bot"}}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Caller:
    """Calls, and keeps what was answered in the documented shapes."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.seen: set[str] = set()

    async def ask(self, call: str, path: str = "", *, status: int = 200, **options: Any) -> Any:
        """`GET /api/users/{id}`, and the path that is asked where the template has parameters."""
        method, _, template = call.partition(" ")
        answer = await self.client.request(method, path or template, **options)
        assert answer.status_code == status, (call, answer.text)
        assert answer.headers["content-type"].startswith("application/json"), call
        self.seen.add(call)
        try:
            msgspec.json.decode(answer.content, type=ANSWERS[call], strict=True)
        except msgspec.ValidationError as error:
            raise AssertionError(f"{call}: {error}: {answer.text[:600]}") from None
        return answer.json()


class Site:
    """A control process with a server, a worker, a relay, and a past."""

    def __init__(self, running: Running, fake: Fake, caller: Caller) -> None:
        self.running = running
        self.fake = fake
        self.caller = caller


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    folder = short_folder()
    nowhere = "http://127.0.0.1:9"
    async with AsyncExitStack() as stack:
        bots = await stack.enter_async_context(telegram())
        fake = await stack.enter_async_context(Fake(Profile(models=("phi:latest", "llama3.2:3b"))))
        settings = Settings(
            auth=Auth(admin_key="admin-key-of-the-tests"),
            poll=Poll(interval_s=1000.0),
            servers=(Server(name="box", url=fake.url, vram_gb=24.0, metrics_port=0),),
            telegram=Telegram(api_url=bots),
            discovery=Discovery(ollama_registry_url=nowhere, huggingface_url=nowhere),
        )
        past(folder)
        running = await stack.enter_async_context(control(folder, settings))
        hub = Neighbour(running.runtime, "hub")
        stack.push_async_callback(hub.leave)
        await until(lambda: hub.link.connected)
        offer = Offer(models=("m:1",), max_concurrency=2)
        guests = (
            Worker(id="w1", name="guest", column=2050, offer=offer, connected_at_s=1.0),
            Worker(id="r1", name="relay", family="mcp", column=2051, offer=offer, connected_at_s=1.0),
        )
        hub.link.send(WorkersSeen(present=guests, whole=True))
        hub.link.send(RelaysPulse((RelayedCall("c1", "r1", "tools/call", 1.0),), {"r1": {"tools/call": 1}}))
        admin = await stack.enter_async_context(running.browser())
        yield Site(running, fake, Caller(admin))
    shutil.rmtree(folder, ignore_errors=True)


def past(folder: Path) -> None:
    """What other processes, and an earlier life of control, have written down."""
    spool = folder / "data" / "spool"
    spool.mkdir(parents=True)
    now_us = time.time_ns() // 1000
    tried = Attempt(backend="box", status=200, started_ms=1.0, connect_ms=0.5, first_byte_ms=3.0, total_ms=9.0)
    shared: dict[str, Any] = {"backend": "box", "server_id": 1, "source": "anna", "user": "anna", "model": "phi"}
    rows = [
        record(1, request_id="told", started_at_us=now_us - 5_000_000, attempts=(tried,), **shared),
        record(2, started_at_us=now_us - 4_000_000, status=404, error="model_not_found", outcome="refused", **shared),
    ]
    put(spool, map(line, rows), boot="b1")
    journal = Journal(spool, "before")
    about: dict[str, Any] = {"server_id": 1, "server": "box"}
    journal.put(ModelEvent(occurred_at_us=now_us - 9_000_000, model="phi:latest", event="loaded", **about))
    journal.put(ServerEvent(occurred_at_us=now_us - 8_000_000, event="offline", detail="refused", **about))
    journal.put(SystemMetrics(polled_at_us=now_us - 7_000_000, mem_total_mb=5.0, **about))
    journal.rotate()


async def test_every_documented_answer_has_its_documented_shape(site: Site) -> None:
    ask, client = site.caller.ask, site.caller.client
    await ask("GET /api/auth/me")
    await ask("POST /api/auth/setup", json={"username": "root", "password": PASSWORD})
    await ask("POST /api/auth/login", json={"username": "root", "password": PASSWORD})
    await ask("GET /api/auth/me")
    await users(ask)
    await fleet(site)
    await records(ask)
    await jobs(ask)
    await models(site)
    await notices(ask)
    for path in ("/healthz", "/livez", "/health"):
        await ask(f"GET {path}")
    await ask("GET /readyz")
    await ask("GET /api/plugins")
    await ask("POST /api/auth/logout")
    assert (await client.get("/api/users")).status_code == 401
    assert site.caller.seen == ANSWERS.keys()


async def users(ask: Any) -> None:
    made = await ask("POST /api/users", json={"username": "bob", "password": PASSWORD}, status=201)
    number = made["id"]
    assert [user["username"] for user in await ask("GET /api/users")] == ["root", "bob"]
    await ask("PUT /api/users/{user_id}", f"/api/users/{number}", json={"isAdmin": True})
    await ask("PATCH /api/users/{user_id}", f"/api/users/{number}", json={"isAdmin": False})
    expires = {"label": "x", "expiresAt": "2999-01-01T00:00:00Z", "models": ["phi"], "maxInFlight": 1}
    key = await ask("POST /api/users/{user_id}/api-key", f"/api/users/{number}/api-key", json=expires)
    assert len(await ask("GET /api/users/{user_id}/api-keys", f"/api/users/{number}/api-keys")) == 1
    path = f"/api/users/{number}/api-keys/{key['key']['id']}"
    await ask("DELETE /api/users/{user_id}/api-keys/{key_id}", path)
    await ask("DELETE /api/users/{user_id}", f"/api/users/{number}")


async def fleet(site: Site) -> None:
    ask = site.caller.ask
    await ask("POST /api/models/load", json={"modelName": "phi:latest", "serverId": 1})
    await ask("POST /api/poll")
    (server,) = await ask("GET /api/servers")
    assert server["loadedModels"]
    assert server["availableModels"]
    trial = await ask("POST /api/servers/test", json={"url": site.fake.url, "model": "phi:latest"})
    assert trial["ok"]
    await ask("POST /api/servers/{server_id}/test", "/api/servers/1/test")
    made = await ask("POST /api/servers", json={"name": "second", "url": "http://127.0.0.1:9"}, status=201)
    await ask("PATCH /api/servers/{server_id}", f"/api/servers/{made['id']}", json={"isDraining": True})
    await ask("DELETE /api/servers/{server_id}", f"/api/servers/{made['id']}")
    found = await ask("GET /api/workers")
    assert [found["workers"][0]["name"], found["relays"][0]["calls"][0]["method"]] == ["guest", "tools/call"]
    for word in ("drain", "undrain"):
        path = f"/api/workers/{found['workers'][0]['id']}/{word}"
        await ask(f"POST /api/workers/{{worker_id}}/{word}", path)
    await ask("PATCH /api/workers/{worker_id}", "/api/workers/r1", json={"isDraining": False})
    explained = await ask("GET /api/models/explain", "/api/models/explain?model=phi")
    assert explained["considered"][0]["verdict"] == "chosen"


async def records(ask: Any) -> None:
    assert (await ask("GET /api/requests"))["requests"]
    assert (await ask("GET /api/requests/{request_id}", "/api/requests/told"))["attempts"]
    assert (await ask("GET /api/analytics"))["modelDistribution"]
    assert await ask("GET /api/events")
    assert await ask("GET /api/server-events")
    assert await ask("GET /api/usage")
    assert await ask("GET /api/system-metrics", "/api/system-metrics?serverId=1")
    await ask("GET /api/recommendations")
    await ask("GET /api/discoveries")


async def jobs(ask: Any) -> None:
    job = {
        "name": "a",
        "sourceIdentifier": "x",
        "cronExpression": "* * * * *",
        "targetModel": "phi",
        "action": "unload",
    }
    await ask("POST /api/scheduled-jobs", json=job, status=201)
    other = {**job, "name": "b", "targetModel": "llama3.2:3b", "preferredServerId": 1}
    made = await ask("POST /api/scheduled-jobs", json=other, status=201)
    path = f"/api/scheduled-jobs/{made['id']}"
    await ask("GET /api/scheduled-jobs/{job_id}", path)
    await ask("PUT /api/scheduled-jobs/{job_id}", path, json={"isEnabled": True})
    assert len(await ask("GET /api/scheduled-jobs")) == 2
    await ask("POST /api/scheduled-jobs/{job_id}/run", f"{path}/run", status=202)
    assert await ask("GET /api/scheduled-jobs/{job_id}/runs", f"{path}/runs")
    assert (await ask("GET /api/scheduled-jobs/timeline", "/api/scheduled-jobs/timeline?hours=1"))["executions"]
    await ask("GET /api/scheduled-jobs/suggestions", "/api/scheduled-jobs/suggestions?model=phi")
    for expression in ("0 0 * * *", "nonsense"):
        await ask("GET /api/scheduled-jobs/validate", f"/api/scheduled-jobs/validate?cronExpression={expression}")
    await ask("GET /api/scheduled-jobs/discover")
    await ask("POST /api/scheduled-jobs/discover")
    await ask("DELETE /api/scheduled-jobs/{job_id}", path)


async def models(site: Site) -> None:
    ask = site.caller.ask
    target = {"modelName": "phi:latest", "serverId": 1}
    await ask("POST /api/models/unload", json=target)
    await ask("GET /api/models/registry-check", "/api/models/registry-check?model=phi")
    await ask("POST /api/models/delete", json={**target, "acknowledgeCustom": True})
    site.fake.faults.add(Fault(name="hang", path="/api/pull", next=1))
    begun = await ask("POST /api/models/pull", json={"modelName": "qwen3:8b", "serverId": 1})
    path = f"/api/models/actions/{begun['actionId']}/cancel"
    await ask("POST /api/models/actions/{action_id}/cancel", path)
    assert len(await ask("GET /api/models/actions")) >= 4


async def notices(ask: Any) -> None:
    await ask("PUT /api/settings/telegram", json={"botToken": "1:token-of-a-bot", "chatId": "5"})
    await ask("GET /api/settings/telegram")
    await ask("DELETE /api/settings/telegram")
    wanted = [{"serverId": 1, "notifyOffline": True, "notifyOnline": True, "notifyReboot": False}]
    await ask("PUT /api/settings/subscriptions", json=wanted)
    assert len(await ask("GET /api/settings/subscriptions")) == 1
    await ask("PUT /api/settings/fleet", json={"key": "intelligent_management_enabled", "value": True})
    await ask("GET /api/settings/fleet")
    await ask("PUT /api/settings/webhook", json={"url": "http://127.0.0.1:9/", "secret": "s"})
    await ask("GET /api/settings/webhook")
    await ask("DELETE /api/settings/webhook")
