"""The raw client reports what was on the wire, by servers written down byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fleetproxy.testing.raw import Answer, chunked, connect, request

Serve = Callable[[bytes, str], Awaitable[Answer]]


@pytest.fixture
async def told() -> AsyncIterator[Serve]:
    """Serve fixed bytes to one connection, then end it by "fin", "reset" or not at all ("open")."""
    servers = []

    async def serve(data: bytes, ending: str, method: str = "GET") -> Answer:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
            await writer.drain()
            if ending == "reset":
                await asyncio.sleep(0.02)  # the data is to be read before the reset overtakes it
                writer.transport.abort()
            elif ending == "fin":
                writer.close()
            else:
                await reader.read()
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]
        async with await connect("127.0.0.1", port) as client:
            await client.send(request(method, "/"))
            return await client.answer(method=method, within_s=0.3 if ending == "open" else 5)

    yield serve  # type: ignore[misc]
    for server in servers:
        server.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_framed_answers_are_clean_and_keep_their_pieces(told: Serve) -> None:
    answer = await told(CHUNKED + chunked([b"one", b"two"]), "open")
    assert (answer.status, answer.body, answer.end, answer.clean) == (200, b"onetwo", "framed", True)
    assert [piece for _, piece in answer.pieces] == [b"one", b"two"]
    assert answer.raw == CHUNKED + chunked([b"one", b"two"])


@pytest.mark.parametrize(
    ("data", "ending", "end", "body"),
    [
        (CHUNKED + b"3\r\none\r\n", "fin", "fin", b"one"),
        (CHUNKED + b"5\r\non", "fin", "fin", b"on"),
        (CHUNKED + b"3\r\none\r\n", "open", "silent", b"one"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "fin", "fin", b"short"),
        (b"HTTP/1.1 200 O", "fin", "fin", b""),
        (b"", "fin", "fin", b""),
    ],
)
async def test_answers_cut_short_are_never_clean(told: Serve, data: bytes, ending: str, end: str, body: bytes) -> None:
    answer = await told(data, ending)
    assert (answer.end, answer.body, answer.clean) == (end, body, False)


async def test_bodies_ended_by_close_are_clean_only_by_fin(told: Serve) -> None:
    answer = await told(b"HTTP/1.1 200 OK\r\n\r\nall of it", "fin")
    assert (answer.body, answer.clean) == (b"all of it", True)


async def test_interim_answers_are_counted_apart(told: Serve) -> None:
    answer = await told(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "open")
    assert (answer.interim, answer.status, answer.clean) == ([100], 204, True)


async def test_head_answers_have_no_body(told: Serve) -> None:
    answer = await told(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "open", "HEAD")  # type: ignore[call-arg]
    assert (answer.body, answer.clean) == (b"", True)


async def test_trailers_and_repeated_headers_are_kept(told: Serve) -> None:
    data = b"HTTP/1.1 200 OK\r\nA: 1\r\nTransfer-Encoding: chunked\r\na: 2\r\n\r\n1\r\nx\r\n0\r\nT: end\r\n\r\n"
    answer = await told(data, "open")
    assert answer.all("A") == ["1", "2"]
    assert answer.trailers == [("T", "end")]


@pytest.mark.parametrize(
    "data",
    [b"hello\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", CHUNKED + b"1\r\nxy\r\n"],
)
async def test_what_is_not_http_is_an_error(told: Serve, data: bytes) -> None:
    with pytest.raises(AssertionError):
        await told(data, "open")


async def test_splits_and_half_close_reach_the_other_side() -> None:
    reads: list[bytes] = []
    done = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            reads.append(data)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()
        done.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with await connect("127.0.0.1", port) as client:
        await client.send(b"abcdef", splits=(2, 4), gap_s=0.02)
        client.half_close()
        assert (await client.answer()).status == 204
    await done.wait()
    assert reads == [b"ab", b"cd", b"ef"]
    server.close()


async def test_reset_is_seen_as_a_reset() -> None:
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            seen.set_result("fin")
        except ConnectionResetError:
            seen.set_result("reset")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    client = await connect("127.0.0.1", server.sockets[0].getsockname()[1])
    await client.send(b"x")
    client.reset()
    assert await seen == "reset"
    server.close()
