"""A whole hub inside the test's loop, with proxy processes' clients and workers of every kind around it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from fleetproxy.core.backend import Backend
from fleetproxy.core.table import Limits, Snapshot
from fleetproxy.core.worker import Worker, backend_of
from fleetproxy.hub import sockets
from fleetproxy.hub.main import Hub
from fleetproxy.link import board as load_board
from fleetproxy.link.board import Board
from fleetproxy.process import Process
from fleetproxy.proxy.waiting import Waiting
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Auth
from fleetproxy.transport.base import Answer, Call
from fleetproxy.transport.hub import HubClient
from fleetproxy.transport.hub_upstream import HubTransport, HubUpstream


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Proxy:
    """One proxy process's side."""

    def __init__(self, board: Board, hub: HubClient, loop: asyncio.AbstractEventLoop) -> None:
        self.board = board
        self.hub = hub
        self.waiting = Waiting(board, hub)
        self.transport = HubTransport(hub, loop)

    def worker(self, name: str = "") -> Worker:
        return next(worker for worker in self.hub.workers.values() if not name or worker.name == name)

    def backend(self, name: str = "") -> Backend:
        return backend_of(self.worker(name))

    async def ask(self, call: Call, name: str = "") -> tuple[int, bytes]:
        """A whole exchange: status and body, or the error it ended with."""
        upstream = await self.transport.open(self.backend(name), call, 1.0)
        try:
            answer = await upstream.answer()
            return answer.status, await self.body(upstream, answer)
        finally:
            upstream.close()

    async def body(self, upstream: HubUpstream, answer: Answer) -> bytes:
        sink = Basin()
        upstream.pipe(sink)
        return await sink.whole


class Basin:
    """A sink that keeps what comes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def piece(self, data: bytes, last: bool) -> None:
        self.pieces.append(data)
        if last:
            self.whole.set_result(b"".join(self.pieces))

    def broken(self, error: Exception) -> None:
        self.whole.set_exception(error)


def chat(body: bytes = b'{"model":"m"}', target: bytes = b"/v1/chat/completions", method: bytes = b"POST") -> Call:
    return Call(method=method, target=target, header_lines=b"content-type: application/json\r\n", body=body)


class House:
    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.stack = AsyncExitStack()
        (runtime / "boot").write_text("b007")
        load_board.create(runtime / "board", 2)

    async def open(self, settings: Settings) -> None:
        (self.runtime / "settings.json").write_bytes(msgspec.json.encode(settings))
        self.process = Process("hub", 0, self.runtime)
        self.board = Board(self.runtime / "board", row=0)
        self.hub = Hub(self.process, self.board)
        self.hub.waiting.publish(Snapshot(version=1, limits=Limits()))
        self.servers = [
            await self.hub.proxies.listen(self.runtime / "hub.sock"),
            await sockets.listen(self.hub.door, "127.0.0.1", 0, None),
        ]
        self.port: int = self.servers[1].sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/api/llm/connect"

    async def close(self) -> None:
        await self.stack.aclose()
        for server in self.servers:
            server.close()
        self.hub.sessions.close(1001, "server is leaving")
        self.hub.proxies.close()
        await until(lambda: not len(self.hub.door) and not len(self.hub.proxies))
        assert len(self.hub.workers) == 0
        assert self.hub.sessions.strangers == 0
        assert not self.hub.sessions.open
        assert len(self.hub.tunnels) == 0
        assert (self.hub.sessions.held.answers, self.hub.sessions.held.collecting) == (0, 0)
        self.hub.workers.close()
        self.hub.waiting.close()
        self.board.close()

    async def proxy(self, index: int = 0) -> Proxy:
        loop = asyncio.get_running_loop()
        board = Board(self.runtime / "board", row=1 + index)
        self.stack.callback(board.close)
        proxy = Proxy(board, HubClient(self.runtime / "hub.sock", f"proxy-{index}"), loop)
        await self.stack.enter_async_context(running(proxy.hub.run()))
        await until(lambda: proxy.hub.connected)
        return proxy

    async def nfrx(self, proxy: Proxy | None = None, **fields: Any) -> Nfrx:
        """A stock agent that has registered (and that `proxy` has heard of)."""
        agent = Nfrx(await connect(self.url, compression=None, ping_interval=None, max_size=None))
        self.stack.push_async_callback(agent.socket.close)
        await agent.register(**fields)
        if proxy is not None:
            await until(lambda: any(worker.id == agent.id for worker in proxy.hub.workers.values()))
        return agent


class Nfrx:
    """What a stock agent does, step by step."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.id = ""

    async def register(self, **fields: Any) -> None:
        message = {"type": "register", "worker_id": "w1", "worker_name": "gpu", "client_key": "", "models": ["m"]}
        message |= {"max_concurrency": 2, "version": "0.9.6"}
        message |= fields
        self.id = message["worker_id"]
        await self.send(**message)

    async def send(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def order(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            order: dict[str, Any] = json.loads(await self.socket.recv())
            return order

    async def head(self, order: dict[str, Any], status: int = 200, **headers: str) -> None:
        headers = headers or {"Content-Type": "application/json"}
        await self.send(
            type="http_proxy_response_headers", request_id=order["request_id"], status=status, headers=headers
        )

    async def chunk(self, order: dict[str, Any], data: bytes) -> None:
        text = base64.b64encode(data).decode()
        await self.send(type="http_proxy_response_chunk", request_id=order["request_id"], data=text)

    async def end(self, order: dict[str, Any], code: str = "", message: str = "") -> None:
        error = {"error": {"code": code, "message": message}} if code else {}
        await self.send(type="http_proxy_response_end", request_id=order["request_id"], **error)

    async def answer(self, order: dict[str, Any], body: bytes, status: int = 200) -> None:
        await self.head(order, status)
        await self.chunk(order, body)
        await self.end(order)

    async def closed(self) -> tuple[int | None, str | None]:
        """Close code and reason the server has given."""
        async with asyncio.timeout(10):
            with suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
        return self.socket.close_code, self.socket.close_reason


def keyed(client_key: str | None = None, **auth: Any) -> Settings:
    return Settings(auth=Auth(client_key=client_key, **auth))
