"""The facts of the HTTP server below that our data plane leans on. A new version that changes one fails here first."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fleetproxy.listen import Listener, serve, taken
from fleetproxy.testing.raw import connect, request


@asynccontextmanager
async def serving(app, **options) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    stop = asyncio.Event()
    task = asyncio.ensure_future(serve(app, Listener(fd=listening.fileno(), **options), stop))
    try:
        yield listening.getsockname()[1]
    finally:
        stop.set()
        await task
        listening.close()


START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


async def test_send_starts_when_called_and_says_whether_the_piece_was_taken():
    sent: list[bool] = []

    async def app(scope, receive, send):
        sent.append(taken(send(dict(START))))
        sent.append(taken(send({"type": "http.response.body", "body": b"one", "more_body": True})))
        await asyncio.sleep(0)
        sent.append(taken(send({"type": "http.response.body", "body": b"two", "more_body": False})))

    async with serving(app) as port, await connect("127.0.0.1", port) as client:
        await client.send(request("GET", "/"))
        answer = await client.answer()
    assert (answer.body, answer.clean, sent) == (b"onetwo", True, [True, True, True])


async def test_a_reader_that_does_not_read_holds_send_back():
    held = asyncio.Event()
    resumed = asyncio.Event()

    async def app(scope, receive, send):
        send(dict(START))
        piece = b"x" * 65536
        while True:
            waiting = send({"type": "http.response.body", "body": piece, "more_body": True})
            if not taken(waiting):
                waiting.add_done_callback(lambda future, context=None: resumed.set(), context=None)
                held.set()
                await resumed.wait()
                send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            await asyncio.sleep(0)

    async with serving(app) as port:
        client = await connect("127.0.0.1", port, receive_buffer_bytes=4096)
        await client.send(request("GET", "/"))
        async with asyncio.timeout(20):
            await held.wait()
        assert not resumed.is_set()
        client.close()
        async with asyncio.timeout(10):
            await resumed.wait()  # the reader's leaving lets go, too


async def test_the_caller_leaving_is_told_without_a_task():
    left = asyncio.Event()
    asked = asyncio.Event()

    async def app(scope, receive, send):
        assert (await receive())["body"] == b"hello"

        def told(future, context=None):
            message = future.result()
            if message["type"] == "http.disconnect":
                left.set()
            else:
                receive().add_done_callback(told, context=None)

        receive().add_done_callback(told, context=None)
        asked.set()
        await left.wait()

    async with serving(app) as port:
        client = await connect("127.0.0.1", port)
        await client.send(request("POST", "/", b"hello"))
        async with asyncio.timeout(5):
            await asked.wait()
            client.close()
            await left.wait()


async def test_returning_without_a_final_piece_breaks_the_connection_visibly():
    async def app(scope, receive, send):
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with serving(app) as port, await connect("127.0.0.1", port) as client:
        await client.send(request("GET", "/"))
        answer = await client.answer()
    assert answer.body == b"half"
    assert not answer.clean


async def test_stopping_waits_for_open_requests():
    begun, go = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        begun.set()
        await go.wait()
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"whole", "more_body": False})

    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    stop = asyncio.Event()
    task = asyncio.ensure_future(serve(app, Listener(fd=listening.fileno()), stop))
    async with await connect("127.0.0.1", listening.getsockname()[1]) as client:
        await client.send(request("GET", "/"))
        async with asyncio.timeout(10):
            await begun.wait()
            stop.set()
            await asyncio.sleep(0.02)
            assert not task.done()
            go.set()
            assert (await client.answer()).body == b"whole"
            await task
    listening.close()


async def test_a_raw_path_comes_as_it_was_sent():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["raw_path"], scope["query_string"]))
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with serving(app) as port, await connect("127.0.0.1", port) as client:
        await client.send(request("GET", "/v1/models/org%2Fname%3A8b?x=%20"))
        await client.answer()
    assert seen == [(b"/v1/models/org%2Fname%3A8b", b"x=%20")]
