"""The official MCP SDK on both sides: its client asks a fleetproxy, its server is behind `fleetproxy worker mcp`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from fleetproxy.testing.processes import children
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import START_S, Spawned, found_url, until

SERVER = str(Path(__file__).with_name("mcp_server.py"))


class McpWorker(Spawned):
    """`fleetproxy worker mcp`."""

    def __init__(self, folder: Path, service: Service, name: str, words: list[str], **environment: str) -> None:
        self.name = name
        given = {"SERVER_URL": service.url, "CLIENT_ID": name, "FLEETPROXY_DATA_DIR": str(folder)}
        command = [sys.executable, "-m", "fleetproxy", "worker", "mcp", *words]
        super().__init__(command, folder / f"{name}-{time.monotonic_ns()}.log", given | environment)
        self.service = service

    def start(self) -> None:
        self.spawn()
        until(self.is_there, START_S, "the relay is there")

    def is_there(self) -> bool:
        """It is known to one process: then it is to all."""
        if not self.alive:
            raise AssertionError(self.text()[-3000:])
        return b"relay offline" not in self.service.fetch("DELETE", f"/api/mcp/id/{self.name}")[2]

    def servers(self) -> list[int]:
        """The subprocesses it has."""
        return [pid for pid, words in children(self.pid) if SERVER in words]


class Place:
    def __init__(self, folder: Path, service: Service, http: str) -> None:
        self.folder = folder
        self.service = service
        self.http = http
        self.workers: list[McpWorker] = []

    def worker(self, name: str, *words: str, **environment: str) -> McpWorker:
        made = McpWorker(self.folder, self.service, name, list(words), **environment)
        self.workers.append(made)
        made.start()
        return made

    def url(self, name: str) -> str:
        return f"{self.service.url}/api/mcp/id/{name}"


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("mcp")
    http = Spawned([sys.executable, SERVER, "http"], folder / "http.log")
    service = Service(folder, {}, processes=request.param)
    http.spawn()
    try:
        address = until(lambda: found_url(http, 0, "mcp server on"), START_S, "the MCP server")
        service.start(ready=False)
        place = Place(folder, service, address)
        place.worker("http", "--provider-url", f"{address}/mcp")
        place.worker("stdio", "--", sys.executable, SERVER, "stdio")
        yield place
        for worker in place.workers:
            worker.kill()
        assert service.stop() == 0
        assert not service.bad_lines()
    finally:
        http.kill()
        service.kill()


@pytest.fixture(params=["http", "stdio"])
def relay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["legacy", "auto"])
def mode(request: pytest.FixtureRequest) -> str:
    """The handshake with sessions (up to 2025-11-25), or requests that stand for themselves (2026-07-28)."""
    name: str = request.param
    return name


@asynccontextmanager
async def connected(place: Place, relay: str, mode: str, **options: Any) -> AsyncIterator[Client]:
    async with asyncio.timeout(60), Client(place.url(relay), mode=mode, **options) as client:  # type: ignore[arg-type]
        yield client


def text(result: types.CallToolResult) -> str:
    assert not result.is_error, result
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


async def test_tools_are_listed_and_called(place: Place, relay: str, mode: str) -> None:
    async with connected(place, relay, mode) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"add", "big", "steps"} <= names
        assert text(await client.call_tool("add", {"a": 2, "b": 40})) == "42"
        sums = await asyncio.gather(*(client.call_tool("add", {"a": n, "b": n}) for n in range(12)))
        assert [text(result) for result in sums] == [str(2 * n) for n in range(12)]


async def test_progress_is_heard_while_it_is_made(place: Place, relay: str, mode: str) -> None:
    heard: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append(done)

    async with connected(place, relay, mode) as client:
        assert text(await client.call_tool("steps", {"count": 5}, progress_callback=progress)) == "done"
    assert heard == [1, 2, 3, 4, 5]


async def test_large_answers_come_whole(place: Place, relay: str, mode: str) -> None:
    async with connected(place, relay, mode) as client:
        assert text(await client.call_tool("big", {"size": 400_000})) == "z" * 400_000


async def test_the_server_asks_back(place: Place, relay: str) -> None:
    """As the revisions with a handshake have it; 2026-07-28 has no requests by the server."""

    async def elicit(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"name": "anna"})

    async def sample(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        content = types.TextContent(type="text", text="sheep")
        return types.CreateMessageResult(role="assistant", content=content, model="m")

    async with connected(place, relay, "legacy", elicitation_callback=elicit, sampling_callback=sample) as client:
        assert text(await client.call_tool("greet", {})) == "hello anna"
        assert text(await client.call_tool("dream", {})) == "dreamt of sheep"


async def test_a_session_is_one_conversation_and_ends_when_it_is_told(place: Place, relay: str) -> None:
    heard = asyncio.Event()

    async def message(said: Any) -> None:
        if isinstance(said, types.ToolListChangedNotification):
            heard.set()

    async with connected(place, relay, "legacy", message_handler=message) as client:
        assert text(await client.call_tool("change", {})) == "changed"
        async with asyncio.timeout(10):
            await heard.wait()
        pids = {text(await client.call_tool("pid", {})) for _ in range(3)}
        assert len(pids) == 1
    if relay == "stdio":
        worker = next(worker for worker in place.workers if worker.name == "stdio")
        await asyncio.to_thread(until, lambda: int(next(iter(pids))) not in worker.servers(), 10, "it has ended")


async def test_sessions_of_two_clients_are_two_processes(place: Place) -> None:
    async with connected(place, "stdio", "legacy") as one, connected(place, "stdio", "legacy") as two:
        first, second = text(await one.call_tool("pid", {})), text(await two.call_tool("pid", {}))
        assert first != second
        assert text(await two.call_tool("history", {})) == ""


async def test_leaving_cancels_what_stands_for_itself(place: Place, relay: str) -> None:
    async with connected(place, relay, "auto") as client:
        with pytest.raises((MCPError, TimeoutError)):
            await client.call_tool("wait", {"seconds": 30}, read_timeout_seconds=0.5)
        if relay == "http":
            deadline_s = time.monotonic() + 10
            while "cancelled" not in text(await client.call_tool("history", {})):
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.1)


async def test_a_server_that_dies_is_told_and_replaced(place: Place) -> None:
    async with connected(place, "stdio", "legacy") as client:
        with pytest.raises(MCPError):
            await client.call_tool("die", {})
        with pytest.raises(MCPError):
            await client.call_tool("add", {"a": 1, "b": 1})
    for mode in ("legacy", "auto"):
        async with connected(place, "stdio", mode) as client:
            assert text(await client.call_tool("add", {"a": 1, "b": 1})) == "2"


async def test_a_relay_that_leaves_fails_its_calls_at_once(place: Place) -> None:
    worker = await asyncio.to_thread(place.worker, "short", "--provider-url", f"{place.http}/mcp")
    async with connected(place, "short", "auto") as client:
        asking = asyncio.ensure_future(client.call_tool("wait", {"seconds": 30}))
        await asyncio.sleep(0.5)
        began_s = time.monotonic()
        worker.kill()
        with pytest.raises(MCPError, match="relay left"):
            await asking
        assert time.monotonic() - began_s < 2.0
        with pytest.raises(MCPError, match="relay offline"):
            await client.call_tool("add", {"a": 1, "b": 1})


async def test_a_draining_relay_finishes_what_runs(place: Place, relay: str, mode: str) -> None:
    words = ["--provider-url", f"{place.http}/mcp"] if relay == "http" else ["--", sys.executable, SERVER, "stdio"]
    worker = await asyncio.to_thread(place.worker, f"drain-{relay}-{mode}", *words)
    async with connected(place, worker.name, mode) as client:
        await client.list_tools()  # the SDK wants to know a tool before it believes its answers
        asking = asyncio.ensure_future(client.call_tool("wait", {"seconds": 1.5}))
        await asyncio.sleep(0.7)
        worker.signal(15)
        assert text(await asking) == "waited"
        assert await asyncio.to_thread(worker.wait, 20) == 0
        with contextlib.suppress(MCPError):
            await client.call_tool("add", {"a": 1, "b": 1})


async def test_a_token_may_be_asked_for(place: Place) -> None:
    words = ["--provider-url", f"{place.http}/mcp", "--auth-token", "s3cret"]
    await asyncio.to_thread(place.worker, "guarded", *words)
    with pytest.raises(BaseException) as refused:  # noqa: PT011 - the SDK wraps what it raises in groups
        async with connected(place, "guarded", "legacy"):
            pass
    assert "open failed" in _said(refused.value)
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async with httpx2.AsyncClient(headers={"Authorization": "Bearer s3cret"}, timeout=30) as http:
        transport = streamable_http_client(place.url("guarded"), http_client=http)
        async with Client(transport, mode="legacy") as client:
            assert text(await client.call_tool("add", {"a": 20, "b": 22})) == "42"


def _said(error: BaseException) -> str:
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return str(error) + "".join(map(_said, inner))


async def test_subprocesses_are_bounded(place: Place) -> None:
    words = ["--sessions", "2", "--", sys.executable, SERVER, "stdio"]
    worker = await asyncio.to_thread(place.worker, "few", *words)
    async with connected(place, "few", "legacy") as one, connected(place, "few", "legacy") as two:
        running = [asyncio.ensure_future(client.call_tool("wait", {"seconds": 2})) for client in (one, two)]
        await asyncio.sleep(0.5)
        with pytest.raises(BaseException) as refused:  # noqa: PT011
            async with connected(place, "few", "legacy"):
                pass
        assert "too many sessions" in _said(refused.value)
        assert [text(await call) for call in running] == ["waited"] * 2
        assert len(worker.servers()) == 2
    await asyncio.to_thread(until, lambda: not worker.servers(), 10, "no subprocess is left")
