"""Backends marked `http2 = true`, against a real HTTP/2 server (cleartext, prior knowledge) made of the h2 library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import msgspec
import pytest

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError, ConnectFailed
from fleetproxy.transport.base import Call
from fleetproxy.transport.http2 import Http2Transport
from fleetproxy.transport.resolver import Resolver

Answer = Callable[["Served", int], None]


class Served(asyncio.Protocol):
    """One connection; `requests` collects (headers, body) of complete requests."""

    def __init__(self, answer: Answer, requests: list[tuple[dict[str, str], bytes]]) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._answer = answer
        self._requests = requests
        self._open: dict[int, tuple[dict[str, str], bytearray]] = {}
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    self._open[event.stream_id] = (dict(event.headers), bytearray())
                case h2.events.DataReceived():
                    self._open[event.stream_id][1].extend(event.data)
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    headers, body = self._open.pop(event.stream_id)
                    self._requests.append((headers, bytes(body)))
                    self._answer(self, event.stream_id)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())

    def head(self, stream: int, status: int, **headers: str) -> None:
        self.h2.send_headers(
            stream, [(":status", str(status)), *((k.replace("_", "-"), v) for k, v in headers.items())]
        )

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)


class Kept:
    """A sink that keeps the pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.done = asyncio.get_running_loop().create_future()

    def piece(self, data: bytes, last: bool) -> None:
        self.pieces.append(data)
        if last:
            self.done.set_result(None)

    def broken(self, error: Exception) -> None:
        self.done.set_result(error)


@asynccontextmanager
async def backend(answer: Answer) -> AsyncIterator[tuple[Backend, list[tuple[dict[str, str], bytes]], list[Served]]]:
    requests: list[tuple[dict[str, str], bytes]] = []
    connections: list[Served] = []

    def served() -> Served:
        connections.append(Served(answer, requests))
        return connections[-1]

    server = await asyncio.get_running_loop().create_server(served, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Backend(name="two", id=1, column=0, kind="openai", port=port, http2=True), requests, connections
    finally:
        server.close()
        for connection in connections:
            connection.transport.close()


@pytest.fixture
async def transport() -> AsyncIterator[Http2Transport]:
    made = Http2Transport(asyncio.get_running_loop())
    yield made
    await made.aclose()


def call(body: bytes | None = b"{}", **words: object) -> Call:
    return Call(
        method=b"POST",
        target=b"/v1/x%2Fy?q=1",
        header_lines=b"x-a: b\r\ncontent-type: text/plain\r\n",
        body=body,
        **words,
    )


async def test_a_request_and_its_answer_pass_as_they_are(transport):
    def answer(server: Served, stream: int) -> None:
        server.head(stream, 201, content_type="application/json", x_b="c")
        server.data(stream, b'{"a":', end=False)
        server.data(stream, b"1}", end=True)

    async with backend(answer) as (two, requests, connections):
        for _ in range(2):
            upstream = await transport.open(two, call(), 1.0)
            head = await upstream.answer()
            assert (head.status, (b"x-b", b"c") in head.headers) == (201, True)
            sink = Kept()
            upstream.pipe(sink)
            assert await sink.done is None
            upstream.close()
            assert b"".join(sink.pieces) == b'{"a":1}'
        headers, body = requests[0]
        assert (headers[":path"], headers["x-a"], headers["content-type"], body) == (
            "/v1/x%2Fy?q=1",
            "b",
            "text/plain",
            b"{}",
        )
        assert headers[":authority"] == f"127.0.0.1:{two.port}"
        assert len(connections) == 1, "the connection is kept"


async def test_a_streamed_body_arrives_whole(transport):
    def answer(server: Served, stream: int) -> None:
        server.head(stream, 200, content_length="2")
        server.data(stream, b"ok", end=True)

    async with backend(answer) as (two, requests, _):
        upstream = await transport.open(two, call(None), 1.0)
        for number in range(50):
            waiting = upstream.write(bytes([number]) * 1000)
            if waiting is not None:
                await waiting
        upstream.write_end()
        head = await upstream.answer()
        assert head.content_length == 2
        assert await upstream.read(100) == (b"ok", True)
        upstream.close()
        assert requests[0][1] == b"".join(bytes([number]) * 1000 for number in range(50))


async def test_a_reset_mid_stream_is_broken_not_ended(transport):
    def answer(server: Served, stream: int) -> None:
        server.head(stream, 200)
        server.data(stream, b"half")
        server.h2.reset_stream(stream)

    async with backend(answer) as (two, _, _):
        upstream = await transport.open(two, call(), 1.0)
        try:
            await upstream.answer()
        except BackendError:
            pass  # the reset may overtake the head
        else:
            sink = Kept()
            upstream.pipe(sink)
            assert isinstance(await sink.done, BackendError)
        upstream.close()


async def test_giving_up_early_is_seen_by_the_server(transport):
    async with backend(lambda server, stream: None) as (two, requests, connections):
        upstream = await transport.open(two, call(), 1.0)
        waiting = asyncio.ensure_future(upstream.answer())
        async with asyncio.timeout(5):
            while not requests:
                await asyncio.sleep(0.005)
        waiting.cancel()
        upstream.close()
        async with asyncio.timeout(5):
            while not connections[0].lost:
                await asyncio.sleep(0.005)


async def test_nobody_there_is_a_connect_failure(transport):
    async with backend(lambda server, stream: None) as (two, _, _):
        pass
    upstream = await transport.open(two, call(), 1.0)
    with pytest.raises(ConnectFailed):
        await upstream.answer()
    upstream.close()


async def test_names_are_resolved_by_us_and_forbidden_addresses_are_not_connected_to():
    """A-44, for servers that speak HTTP/2."""

    def answer(server: Served, stream: int) -> None:
        server.head(stream, 200)
        server.data(stream, b"{}", end=True)

    answers = {"good": ("127.0.0.2", "127.0.0.1"), "bad": ("169.254.169.254",)}
    made = Http2Transport(asyncio.get_running_loop(), Resolver(lambda name: answers[name]))
    async with backend(answer) as (two, _, connections):
        upstream = await made.open(msgspec.structs.replace(two, host="good"), call(), 1.0)
        assert (await upstream.answer()).status == 200  # the first address refuses, the second does not
        upstream.close()
        upstream = await made.open(msgspec.structs.replace(two, name="bad", host="bad"), call(), 1.0)
        with pytest.raises(ConnectFailed, match="may be connected to"):
            await upstream.answer()
        upstream.close()
        assert len(connections) == 1
    await made.aclose()
