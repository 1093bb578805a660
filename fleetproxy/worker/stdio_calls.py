"""HTTP requests to an MCP server that speaks over its standard streams, and the answers that are made of its lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleetproxy.errors import BodyTooLarge
from fleetproxy.families.mcp import streamable
from fleetproxy.families.mcp.streamable import Line
from fleetproxy.transport.base import Call, Headers
from fleetproxy.worker.made_answer import MadeAnswer

MAX_BODY_BYTES = 16 * 1024 * 1024
#: Silence after which an answer that is still to come begins as events, and its stream says that it is alive.
PING_S = 15.0
PING = b": ping\n\n"

JSON = (b"content-type", b"application/json")
EVENTS: Headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache, no-transform")]


class Asked(MadeAnswer):
    """One HTTP request. Implements `transport.base.Upstream`."""

    def __init__(self, call: Call, take_in: Callable[[Asked, bytes], None], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._take_in = take_in
        self.method = call.method.decode("latin-1")
        self.headers = headers_of(call.header_lines)
        self._body = bytearray(call.body or b"")

    def write(self, piece: bytes) -> asyncio.Future[None] | None:
        if len(self._body) <= MAX_BODY_BYTES:
            self._body += piece
        return None

    def write_end(self) -> None:
        if len(self._body) > MAX_BODY_BYTES:
            self.fail(BodyTooLarge())
        else:
            self._take_in(self, bytes(self._body))

    def refuse(self, status: int, code: int, message: str, identity: bytes = b"", *more: tuple[bytes, bytes]) -> None:
        """Answer with a JSON-RPC error."""
        self.whole(status, [JSON, *more], streamable.error(identity, code, message))


class Waiting:
    """A request that waits for its answer."""

    def __init__(self, asked: Asked, identity: bytes, token: str | int | None, headers: Headers, alone: bool) -> None:
        self.asked = asked
        self.identity = identity
        self.token = token
        #: What its answer's head has beside the type.
        self._headers = headers
        #: It stands for itself: its answer's status tells how it went.
        self._alone = alone
        self._events = streamable.accepts(asked.headers, b"text/event-stream")
        self._timer = asyncio.get_running_loop().call_later(PING_S, self._ping)

    def message(self, line: bytes) -> bool:
        """Something that goes before the answer. False when this caller takes no events."""
        if not self._events:
            return False
        self._begin()
        self.asked.add(streamable.event(line))
        return True

    def answer(self, line: bytes, read: Line) -> None:
        self._timer.cancel()
        asked = self.asked
        if asked.begun:
            asked.add(streamable.event(line))
            asked.end()
        else:
            asked.whole(streamable.status_of(read) if self._alone else 200, [JSON, *self._headers], line)

    def fail(self, message: str) -> None:
        """There will be no answer."""
        line = streamable.error(self.identity, streamable.SERVER_ERROR, message)
        self.answer(line, Line())

    def forget(self) -> None:
        self._timer.cancel()

    def _begin(self) -> None:
        if not self.asked.begun:
            self.asked.begin(200, [*EVENTS, *self._headers])

    def _ping(self) -> None:
        if self._events and not self.asked.closed:
            self._begin()
            self.asked.add(PING)
            self._timer = asyncio.get_running_loop().call_later(PING_S, self._ping)


def headers_of(lines: bytes) -> dict[bytes, bytes]:
    """Header lines by lower-case name; of one that came twice the first counts."""
    found: dict[bytes, bytes] = {}
    for line in lines.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            found.setdefault(name.strip().lower(), value.strip())
    return found
