"""The fakes' HTTP server: framing in and out, strictness, cancellation."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.testing.http import HttpServer, Reply
from fleetproxy.testing.message import Request
from fleetproxy.testing.raw import chunked, connect, exchange, request


async def echo(asked: Request, reply: Reply) -> None:
    if asked.path == "/stream":
        await reply.start(200)
        async for piece in asked.pieces():
            await reply.write(piece)
        return await reply.end()
    if asked.path == "/forget":
        return await reply.send(200, b"ok")
    if asked.path == "/leave":
        return await reply.start(200)
    body = await asked.body(1 << 22)
    return await reply.send(200, body, [("X-Sha256", hashlib.sha256(body).hexdigest())])


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    made = HttpServer(echo)
    await made.listen()
    yield made
    await made.close()


async def test_bodies_come_back_however_they_are_framed(server: HttpServer) -> None:
    payload = bytes(range(256)) * 4000
    plain = request("POST", "/", payload)
    parts = request("POST", "/", headers=[("Transfer-Encoding", "chunked")]) + chunked([payload[:7], payload[7:]])
    for data in (plain, parts):
        answer = await exchange(server.host, server.port, data)
        assert answer.body == payload
        assert answer.header("x-sha256") == hashlib.sha256(payload).hexdigest()


@given(splits=st.lists(st.integers(min_value=1, max_value=300), max_size=6), as_chunks=st.booleans())
def test_any_split_of_a_request_is_the_same_request(splits: list[int], as_chunks: bool) -> None:
    async def run() -> None:
        made = HttpServer(echo)
        await made.listen()
        payload = b"0123456789" * 20
        data = (
            request("POST", "/", headers=[("Transfer-Encoding", "chunked")]) + chunked([payload[:33], payload[33:]])
            if as_chunks
            else request("POST", "/", payload)
        )
        async with await connect(made.host, made.port) as client:
            await client.send(data, splits=[split for split in splits if split < len(data)])
            assert (await client.answer()).body == payload
        await made.close()

    asyncio.run(run())


async def test_streams_go_both_ways_at_once(server: HttpServer) -> None:
    async with await connect(server.host, server.port) as client:
        await client.send(request("POST", "/stream", headers=[("Transfer-Encoding", "chunked")]))
        for piece in (b"one", b"two"):
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            assert await client.until(piece)
        await client.send(b"0\r\n\r\n")
        assert await client.until(b"0\r\n\r\n")


async def test_pipelined_requests_are_answered_in_order(server: HttpServer) -> None:
    async with await connect(server.host, server.port) as client:
        await client.send(b"".join(request("POST", "/", b"%d" % number) for number in range(5)))
        assert [(await client.answer()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert server.accepted == 1


async def test_an_unread_body_does_not_spoil_the_next_request(server: HttpServer) -> None:
    async with await connect(server.host, server.port) as client:
        await client.send(request("POST", "/forget", bytes(1000)) + request("POST", "/", b"next"))
        assert (await client.answer()).body == b"ok"
        assert (await client.answer()).body == b"next"


async def test_a_handler_that_leaves_early_breaks_the_answer_off(server: HttpServer) -> None:
    answer = await exchange(server.host, server.port, request("GET", "/leave"))
    assert not answer.clean


async def test_old_clients_get_no_chunks(server: HttpServer) -> None:
    answer = await exchange(server.host, server.port, b"POST /stream HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
    assert answer.header("transfer-encoding") is None
    assert (answer.until_close, answer.body, answer.clean) == (True, b"hi", True)


async def test_continue_is_said_before_the_body_is_read(server: HttpServer) -> None:
    async with await connect(server.host, server.port) as client:
        await client.send(request("POST", "/", headers=[("Content-Length", "2"), ("Expect", "100-continue")]))
        assert b" 100 " in await client.until(b"\r\n\r\n")
        await client.send(b"hi")
        assert (await client.answer()).body == b"hi"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nname : x\r\n\r\n",
    ],
)
async def test_what_a_proxy_must_never_send_is_refused_and_written_down(server: HttpServer, data: bytes) -> None:
    async with await connect(server.host, server.port) as client:
        await client.send(data)
        answer = await client.answer()
        assert answer.status in {400, 501}
        assert await client.closed() in {"fin", "reset"}
    assert len(server.bad_messages) == 1


async def test_a_slow_reader_holds_the_writer_back() -> None:
    written = 0

    async def firehose(_: Request, reply: Reply) -> None:
        nonlocal written
        await reply.start(200)
        for _ in range(4096):
            await reply.write(bytes(65536))
            written += 65536
        await reply.end()

    server = HttpServer(firehose)
    await server.listen()
    async with await connect(server.host, server.port, receive_buffer_bytes=4096) as client:
        await client.send(request("GET", "/"))
        await client.until(b"\r\n\r\n")
        before = -1
        async with asyncio.timeout(10):
            while before != written:
                before = written
                await asyncio.sleep(0.05)
        assert written < 64 << 20
    await server.close()


async def test_the_handler_is_cancelled_when_the_peer_leaves() -> None:
    ended = asyncio.Event()

    async def wait(_: Request, reply: Reply) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = HttpServer(wait)
    await server.listen()
    async with await connect(server.host, server.port) as client:
        await client.send(request("GET", "/"))
        async with asyncio.timeout(5):
            while not server.open:
                await asyncio.sleep(0.002)
    async with asyncio.timeout(5):
        await ended.wait()
    await server.close()
