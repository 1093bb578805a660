"""The dashboard API through the public port of a real service: the fleet manager's own smoke test, and more."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess

MakeFake = Callable[..., FakeProcess]
MakeService = Callable[..., Service]

ROOT = {"username": "root", "password": "correct horse 7"}


@pytest.fixture(params=[1, 2], ids=["one-process", "two-processes"])
def service(request: pytest.FixtureRequest, fake: MakeFake, start: MakeService) -> Service:
    one = fake("one", models="llama3.2:3b,phi", speed=0)
    return start({"one": one.url}, processes=request.param)


def browser(service: Service, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=service.url, headers=headers, timeout=20)


@asynccontextmanager
async def administrator(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with browser(service) as client:
        made = await client.post("/api/auth/setup", json=ROOT)
        assert made.status_code == 200, made.text
        yield client


async def eventually(ask: Callable[[], Awaitable[Any]], within_s: float = 8.0) -> Any:
    async with asyncio.timeout(within_s):
        while not (found := await ask()):
            await asyncio.sleep(0.02)
    return found


async def test_the_fleet_managers_smoke_test(service: Service) -> None:
    async with browser(service) as client:
        me = await client.get("/api/auth/me")
        assert (me.status_code, me.json()["needsSetup"]) == (200, True)
        assert (await client.post("/api/auth/setup", json=ROOT)).status_code == 200
        assert (await client.post("/api/auth/logout")).json() == {"ok": True}
        assert (await client.get("/api/servers")).status_code == 401
        login = await client.post("/api/auth/login", json=ROOT)
        assert login.status_code == 200
        assert "fleet_session=" in login.headers["set-cookie"]
        assert (await client.get("/api/auth/me")).json()["user"]["username"] == "root"
        servers = (await client.get("/api/servers")).json()
        assert [server["name"] for server in servers] == ["one"]
        assert (await client.post("/api/poll")).json() == {"ok": True}
        for path in (
            "events",
            "requests",
            "usage",
            "server-events",
            "plugins",
            "analytics",
            "recommendations",
            "discoveries",
        ):
            answer = await client.get(f"/api/{path}")
            assert answer.status_code == 200, (path, answer.text)
        metrics = await client.get(f"/api/system-metrics?serverId={servers[0]['id']}")
        assert (metrics.status_code, metrics.json()) == (200, [])
        assert (await client.get("/api/plugins")).json()
        assert (await client.post("/api/auth/logout")).json() == {"ok": True}
        assert "Ollama is running" in (await client.get("/")).text
        assert "models" in (await client.get("/api/tags")).json()
    service.check()


async def test_of_many_setups_through_all_processes_one_succeeds(service: Service) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        answers = await asyncio.gather(
            *(client.post("/api/auth/setup", json={**ROOT, "username": f"admin{n}"}) for n in range(60))
        )
    assert sorted(answer.status_code for answer in answers) == [200] + [403] * 59


async def test_an_api_key_opens_the_proxy_says_who_and_is_revoked(service: Service) -> None:
    async with administrator(service) as admin:
        made = await admin.post("/api/users/1/api-key", json={"label": "ci", "models": ["phi"]})
        key = made.json()["apiKey"]
        chat = {"model": "phi", "messages": [{"role": "user", "content": "hello"}], "stream": False}
        async with browser(service, authorization=f"Bearer {key}") as program:

            async def known() -> bool:
                await program.post("/api/chat", json=chat)
                rows = await asyncio.to_thread(
                    service.rows, "select distinct user from requests where user is not null"
                )
                return rows == [{"user": "root"}]

            await eventually(known)
            other = await program.post("/api/chat", json={**chat, "model": "llama3.2:3b"})
            assert other.status_code in (403, 404), other.text
            listed = (await admin.get("/api/users/1/api-keys")).json()
            assert (await admin.delete(f"/api/users/1/api-keys/{listed[0]['id']}")).status_code == 200

            async def stranger() -> bool:
                answer = await program.post("/api/chat", json={**chat, "model": "llama3.2:3b"})
                return answer.status_code == 200

            await eventually(stranger)  # an open proxy serves strangers: the key's limits went with the key
    service.check()


async def test_a_server_is_added_used_disabled_and_removed(service: Service, fake: MakeFake) -> None:
    two = await asyncio.to_thread(fake, "two", models="qwen3:4b", speed=0)
    chat = {"model": "qwen3:4b", "messages": [{"role": "user", "content": "hello"}], "stream": False}
    async with administrator(service) as admin, browser(service) as program:
        added = await admin.post("/api/servers", json={"name": "two", "host": two.url.removeprefix("http://")})
        assert added.status_code == 201, added.text
        server = f"/api/servers/{added.json()['id']}"

        async def status() -> int:
            return (await program.post("/api/chat", json=chat)).status_code

        async def served() -> bool:
            return await status() == 200

        async def unserved() -> bool:
            return await status() in (404, 503)

        await eventually(served)
        assert [one["name"] for one in (await admin.get("/api/servers")).json()] == ["one", "two"]
        assert (await admin.patch(server, json={"isDisabled": True})).json() == {"ok": True}
        await eventually(unserved)
        shown = {one["name"]: one["isDisabled"] for one in (await admin.get("/api/servers")).json()}
        assert shown == {"one": False, "two": True}
        await admin.patch(server, json={"isDisabled": False})
        await eventually(served)
        await admin.patch(server, json={"isDraining": True})
        await eventually(unserved)
        await admin.patch(server, json={"isDraining": False})
        await eventually(served)
        taken = await admin.post("/api/servers", json={"name": "ONE", "url": two.url})
        assert taken.status_code == 409
        assert (await admin.delete(server)).json() == {"ok": True}
        await eventually(unserved)


async def test_models_are_pulled_and_jobs_run(service: Service) -> None:
    async with administrator(service) as admin:
        (server,) = (await admin.get("/api/servers")).json()
        pull = await admin.post("/api/models/pull", json={"modelName": "gemma3:4b", "serverId": server["id"]})
        assert pull.json()["status"] == "pending"

        async def pulled() -> bool:
            (action,) = (await admin.get("/api/models/actions")).json()
            assert action["status"] != "failed", action
            return bool(action["status"] == "success")

        await eventually(pulled)

        async def listed() -> bool:
            tags = (await admin.get("/api/tags")).json()["models"]
            return "gemma3:4b" in {model["name"] for model in tags}

        await eventually(listed)
        job = {
            "name": "warm",
            "sourceIdentifier": "test",
            "cronExpression": "* * * * * *",
            "targetModel": "gemma3:4b",
            "action": "preload",
            "overlap": "skip",
        }
        made = (await admin.post("/api/scheduled-jobs", json=job)).json()

        async def ran() -> bool:
            runs = (await admin.get(f"/api/scheduled-jobs/{made['id']}/runs")).json()
            return any(run["outcome"] == "ok" for run in runs)

        await eventually(ran)
        assert (await admin.delete(f"/api/scheduled-jobs/{made['id']}")).json()["success"]

        async def written() -> Any:
            return await asyncio.to_thread(
                service.rows, "select distinct job, result from job_runs where result = 'ok'"
            )

        assert await eventually(written) == [{"job": "warm", "result": "ok"}]


async def test_accounts_survive_a_restart_and_a_killed_control(service: Service) -> None:
    async with administrator(service) as admin:
        service.allowed.append(re.compile(r"control|link|Connection|ended|hub"))
        os.kill(service.pids()["control"], signal.SIGKILL)

        async def back() -> bool:
            try:
                answer = await admin.get("/api/auth/me")
            except httpx.HTTPError:
                return False
            return answer.status_code == 200 and answer.json()["user"] is not None

        await eventually(back)
        cookie = admin.cookies["fleet_session"]
    await asyncio.to_thread(service.stop)
    await asyncio.to_thread(service.start)
    async with browser(service) as again:
        again.cookies.set("fleet_session", cookie)
        assert (await again.get("/api/auth/me")).json()["user"]["username"] == "root"
        assert (await again.post("/api/auth/setup", json=ROOT)).status_code == 403


async def test_no_secret_is_in_the_log_at_any_level(fake: MakeFake, start: MakeService) -> None:
    one = fake("one", models="phi", speed=0)
    token = "987654:canary-telegram-token-in-a-path"
    service = start(
        {"one": one.url},
        settings={"log": {"level": "debug", "format": "json"}, "telegram": {"api_url": "http://127.0.0.1:9"}},
    )
    async with administrator(service) as admin, browser(service) as program:
        refused = await admin.put("/api/settings/telegram", json={"botToken": token, "chatId": "1"})
        assert refused.json() == {"error": "Failed to validate bot token"}
        await admin.post("/api/auth/login", json={**ROOT, "password": "canary-wrong-password"})
        key = (await admin.post("/api/users/1/api-key")).json()["apiKey"]
        await admin.post("/api/servers", json={"name": "s", "url": "http://127.0.0.1:9", "apiKey": "canary-server-key"})
        await admin.put("/api/settings/webhook", json={"url": "http://127.0.0.1:9/", "secret": "canary-hook-secret"})
        chat = {"model": "phi", "messages": [{"role": "user", "content": "canary-prompt"}], "stream": False}
        await program.post("/api/chat", json=chat, headers={"authorization": f"Bearer {key}"})
        cookie = admin.cookies["fleet_session"]
    await asyncio.to_thread(service.stop)
    written = service.text()
    secrets = [token, "canary", key, cookie, ROOT["password"], "$argon2"]
    assert not [secret for secret in secrets if secret in written]
    kept = b"".join(path.read_bytes() for path in service.data.rglob("*") if path.is_file())
    assert not [
        secret for secret in (key, cookie, ROOT["password"], "canary-prompt", "canary-wrong") if secret.encode() in kept
    ]
