"""/api/state and what belongs to it, in a whole control process: who may look, what is streamed, what is served."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from fleetproxy.control.api.peer import peer_of
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Auth, Key
from tests.control.running import Running, control, short_folder

PATHS = ("/api/state", "/api/state/descriptors", "/api/state/view/llm.html", "/api/state/stream")


@pytest.fixture
async def start() -> AsyncIterator[Callable[[Settings], Any]]:
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:

        async def make(settings: Settings) -> Running:
            return await stack.enter_async_context(control(short_folder(), settings))

        yield make


async def status(running: Running, path: str, **headers: str) -> int:
    async with running.browser(**headers) as client, client.stream("GET", path) as answer:
        return answer.status_code


@pytest.mark.parametrize(
    ("auth", "keys", "headers", "expected"),
    [
        (Auth(), (), {}, 200),
        (Auth(), (), {"authorization": "Bearer whatever"}, 200),
        (Auth(api_key="secret"), (), {}, 401),
        (Auth(api_key="secret"), (), {"authorization": "Bearer wrong"}, 401),
        (Auth(api_key="secret"), (), {"authorization": "Basic secret"}, 401),
        (Auth(api_key="secret"), (), {"authorization": "bearer secret"}, 200),
        (Auth(api_key="secret"), (), {"x-api-key": "secret"}, 200),
        (Auth(api_key="secret", admin_key="boss" * 8), (), {"authorization": "Bearer " + "boss" * 8}, 200),
        (Auth(api_key="secret"), (Key(name="anna", key="k" * 20),), {"authorization": "Bearer " + "k" * 20}, 200),
        (Auth(api_http_roles=("looker",)), (), {}, 401),
        (Auth(api_http_roles=("looker",)), (), {"x-fleet-roles": "ops,looker"}, 200),
        (Auth(api_http_roles=("looker",)), (), {"x-fleet-roles": "Looker"}, 401),
        (Auth(api_http_roles=("looker",)), (), {"x-user-roles": "looker"}, 401),
    ],
)
async def test_who_may_look(start: Any, auth: Auth, keys: Any, headers: dict[str, str], expected: int) -> None:
    running = await start(Settings(auth=auth, keys=keys))
    for path in PATHS:
        assert await status(running, path, **headers) == expected, path
    for path in ("/state", "/state/state.js", "/state/state.css"):
        assert await status(running, path) == 200, path


async def test_the_stream_begins_at_once_and_goes_on(start: Any) -> None:
    running = await start(Settings())
    async with running.browser() as client, client.stream("GET", "/api/state/stream") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-cache"
        lines = answer.aiter_lines()
        frames = []
        async with asyncio.timeout(10):
            while len(frames) < 2:
                line = await anext(lines)
                if line:
                    frames.append(json.loads(line.removeprefix("data: ")))
        assert set(frames[0]) == {"plugins"}
        assert frames[0]["plugins"]["llm"]["server"]["now"] < frames[1]["plugins"]["llm"]["server"]["now"]


async def test_a_stream_ends_when_control_leaves(start: Any) -> None:
    running = await start(Settings())
    async with running.browser() as client, client.stream("GET", "/api/state/stream") as answer:
        running.process.terminate()
        async with asyncio.timeout(10):
            text = b"".join([piece async for piece in answer.aiter_raw()])
    assert text.startswith(b"data: {")
    assert text.endswith(b"\n\n")


async def test_pages_are_ours_and_run_nothing_of_others(start: Any) -> None:
    running = await start(Settings())
    async with running.browser() as client:
        for path, kind in (
            ("/state", "text/html"),
            ("/state/state.js", "text/javascript"),
            ("/state/state.css", "text/css"),
        ):
            answer = await client.get(path)
            assert answer.headers["content-type"].partition(";")[0] == kind
            policy = answer.headers["content-security-policy"]
            assert "script-src 'self'" in policy
            assert "unsafe" not in policy
            assert "//" not in policy
        for path in (
            "/state/views",
            "/state/__init__.py",
            "/state/state.html.gz",
            "/state/views/llm.html",
        ):
            assert (await client.get(path)).status_code == 404, path
        view = await client.get("/api/state/view/llm.html")
        assert b"<script" not in view.content
        for name in ("nobody.html", "llm", "state.html", "llm.html.gz", ".html"):
            answer = await client.get(f"/api/state/view/{name}")
            assert (answer.status_code, answer.content) == (204, b""), name


async def test_descriptors_are_there_for_every_family_on_or_off(start: Any) -> None:
    running = await start(Settings(plugins=("mcp",), auth=Auth(client_key="hidden-from-all")))
    async with running.browser() as client:
        said = (await client.get("/api/state/descriptors")).json()
        assert set(said) == {"asr", "llm", "mcp"}
        assert {"ID", "Name", "Summary", "Args", "name", "summary"} <= set(said["llm"])
        assert (await client.get("/api/state/view/llm.html")).status_code == 204
    bodies = running.snapshot().bodies
    assert "/api/llm" not in bodies
    own = json.loads(bodies["/api/mcp"])
    assert own["options"]["auth.client_key"] == "***"
    assert "hidden-from-all" not in str(bodies)
    assert {"ID", "Flag", "Env", "YAML", "Type", "Default", "Secret"} <= set(own["args"][0])


async def test_a_watcher_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from fleetproxy.control.api import stream
    from fleetproxy.control.bulletin import Bulletin

    monkeypatch.setattr(stream, "SEND_S", 0.02)
    bulletin = Bulletin(lambda: b"{}")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def still() -> bool:
        return True

    async with asyncio.timeout(5):
        await stream.serve({"method": "GET"}, receive, send, bulletin, still)  # type: ignore[arg-type, typeddict-item]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert bulletin.dropped == 1


async def test_head_of_a_stream_is_answered_and_over(start: Any) -> None:
    running = await start(Settings())
    async with running.browser() as client, asyncio.timeout(5):
        answer = await client.head("/api/state/stream")
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "text/event-stream", b"")
        assert (await client.post("/api/state/stream", json={})).status_code == 405


async def test_a_stream_ends_when_its_key_is_revoked(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A-10: nobody looks on after their credentials have gone."""
    from fleetproxy.control.api import stream

    monkeypatch.setattr(stream, "STILL_S", 0.05)
    running = await start(Settings(auth=Auth(api_key="secret")))
    async with running.browser() as admin, running.browser() as bob:
        assert (
            await admin.post("/api/auth/setup", json={"username": "root", "password": "correct horse 7"})
        ).is_success
        me = (await admin.get("/api/auth/me")).json()["user"]["id"]
        made = (await admin.post(f"/api/users/{me}/api-key", json={"label": "l", "scopes": ["read"]})).json()
        bob.headers["x-api-key"] = made["apiKey"]
        async with bob.stream("GET", "/api/state/stream") as answer, asyncio.timeout(10):
            pieces = answer.aiter_raw()
            assert (await anext(pieces)).startswith(b"data: {")
            assert (await admin.delete(f"/api/users/{me}/api-keys/{made['key']['id']}")).is_success
            async for _ in pieces:
                pass
        async with admin.stream("GET", "/api/state/stream") as answer, asyncio.timeout(10):
            pieces = answer.aiter_raw()
            await anext(pieces)
            assert (await admin.post("/api/auth/logout")).is_success
            async for _ in pieces:
                pass


async def test_a_strangers_peer_has_no_roles() -> None:
    assert peer_of({}).roles == frozenset()


async def test_too_many_watchers_are_told_so(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleetproxy.control import bulletin

    monkeypatch.setattr(bulletin, "MAX_WATCHERS", 0)
    running = await start(Settings())
    async with running.browser() as client:
        answer: httpx.Response = await client.get("/api/state/stream")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_the_api_document_and_its_reader_are_served_from_here(start: Any) -> None:
    running = await start(Settings(auth=Auth(api_key="secret")))
    async with running.browser() as client:
        document = (await client.get("/api/client/openapi.json")).json()
        assert document["openapi"].startswith("3.1.")
        assert (await client.get("/api/client/openapi.json")).json() == document
        page = await client.get("/api/client")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for path in ("/api/client/", "/api/client/index.html", "/api/client/deep/down"):
            assert (await client.get(path)).content == page.content
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        for name in re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="([^"]+)"', page.text):
            loaded = await client.get(name)
            assert loaded.status_code == 200
            assert loaded.headers["content-type"] != page.headers["content-type"]
        bundle = await client.get("/api/client/swagger-ui-bundle.js", headers={"accept-encoding": "gzip"})
        assert bundle.headers["content-encoding"] == "gzip"
        plain = await client.get("/api/client/swagger-ui-bundle.js", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == bundle.content
