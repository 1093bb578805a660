"""Server-sent events: the one way any stream of control is served.

A stream ends when its caller leaves, when control leaves, when the caller's credentials are no longer in force (looked
at every 5 s), and when the caller does not read. HEAD gets the head and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from litestar.connection import ASGIConnection
from litestar.types import Receive, Scope, Send

from fleetproxy.control.api.guard import Guard
from fleetproxy.control.api.peer import is_head
from fleetproxy.errors import MethodRefused

#: A watcher that does not take a part of a frame in this time is let go.
SEND_S = 10.0
PART_BYTES = 128 * 1024
#: How often credentials are looked at.
STILL_S = 5.0
_HEAD = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

Still = Callable[[], Awaitable[bool]]


class Source(Protocol):
    """What one caller is sent."""

    #: Set when control leaves.
    closed: asyncio.Event

    def frame(self) -> bytes:
        """What there is to send now; b"" for nothing."""

    async def next(self) -> None:
        """Until there is reason to ask for a frame."""

    def goodbye(self, reason: str) -> bytes:
        """The last words: "closing", "unauthorized"."""

    def too_slow(self) -> None:
        """The caller did not read and is let go."""


class Nothing:
    """A source for callers who only ask whether there is a stream."""

    def __init__(self, closed: asyncio.Event) -> None:
        self.closed = closed

    def frame(self) -> bytes:
        return b""

    async def next(self) -> None:
        await asyncio.Event().wait()

    def goodbye(self, reason: str) -> bytes:
        return b""

    def too_slow(self) -> None:
        pass


def credentials(guard: Guard, scope: Scope) -> Still:
    """Whether who opened this stream would still be let in, and as the same."""
    connection: ASGIConnection[Any, Any, Any, Any] = ASGIConnection(scope)
    return lambda: guard.still(connection)


async def serve(scope: Scope, receive: Receive, send: Send, source: Source, still: Still) -> None:
    """Send `source` until one of the ends above. Raises MethodRefused before anything is sent."""
    if scope.get("method") != "GET":
        raise MethodRefused("This path takes GET only", allow="GET")
    await send({"type": "http.response.start", "status": 200, "headers": list(_HEAD)})
    if is_head(scope):
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    loop = asyncio.get_running_loop()
    leaving = asyncio.ensure_future(_left(receive))
    closing = asyncio.ensure_future(source.closed.wait())
    news: asyncio.Future[Any] | None = None
    look_s = loop.time() + STILL_S
    try:
        while not leaving.done():
            if news is None or news.done():
                if not await _sent(send, source.frame(), source):
                    return  # without a last piece: the connection is cut
                news = asyncio.ensure_future(source.next())
            wait_s = max(0.0, look_s - loop.time())
            await asyncio.wait({news, leaving, closing}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            reason = "closing" if closing.done() else ""
            if not reason and loop.time() >= look_s:
                look_s = loop.time() + STILL_S
                reason = "" if await still() else "unauthorized"
            if reason:
                if await _sent(send, source.goodbye(reason), source):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
    finally:
        for end in (leaving, closing, news):
            if end is not None:
                end.cancel()


async def _sent(send: Send, piece: bytes, source: Source) -> bool:
    try:
        # Whoever is slow has time for each part: the first state of a large fleet has megabytes.
        for start in range(0, len(piece), PART_BYTES):
            async with asyncio.timeout(SEND_S):
                part = piece[start : start + PART_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
    except TimeoutError:
        source.too_slow()
        return False
    return True


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
