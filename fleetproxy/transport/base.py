"""The seam between the data plane and whatever reaches a backend: HTTP/1.1 sockets, httpx, the hub's frames, a script.

One request goes out (`Call`), one answer comes back in two steps: `Upstream.answer()` gives its head, then the body is
pushed, piece by piece, into a `Sink`, from the very callback that read it: no task is woken for a piece, and the object
read is the object handed on.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from fleetproxy.core.backend import Backend

Headers = list[tuple[bytes, bytes]]


class Call(msgspec.Struct, kw_only=True, frozen=True):
    """One request to one backend, framing left to the transport."""

    method: bytes
    #: Path and query in origin form, with the backend's prefix: b"/api/chat".
    target: bytes
    #: End-to-end headers ready to send, as wire lines (b"name: value\\r\\n" joined); no Host, framing or Connection.
    header_lines: bytes
    #: The whole body; None when `stream` feeds it.
    body: bytes | None = b""
    #: Body length when it is streamed; None means chunked.
    content_length: int | None = None
    #: Never reuse a kept-alive connection: whether a stale one was read cannot be proved (writes).
    fresh: bool = False
    #: Host header to send instead of the backend's own.
    host: bytes | None = None


class Answer:
    """Head of a backend's answer. `headers` are as received, names lower-cased, framing and all."""

    __slots__ = ("body", "complete", "content_length", "headers", "status")

    def __init__(self, status: int, headers: Headers, content_length: int | None) -> None:
        self.status = status
        self.headers = headers
        #: Bytes announced; None for chunked or until-close bodies.
        self.content_length = content_length
        #: The body is already here, whole.
        self.complete = False
        #: Set by whoever read the body to decide something: it is taken from here then.
        self.body: bytes | None = None


class Sink(Protocol):
    """Where an answer's body goes. Called from the transport's callbacks; must not raise, must not block."""

    def piece(self, data: bytes, last: bool) -> None:
        """The next bytes, in order. `last`: the body ends with them, cleanly by its framing."""

    def broken(self, error: Exception) -> None:
        """The body ends here without having been complete."""


class Upstream(Protocol):
    """One open call."""

    async def answer(self) -> Answer:
        """Wait for the head. Raises BackendError."""

    def take(self) -> bytes:
        """The body bytes that came with the head (all of them when `answer.complete`)."""

    def pipe(self, sink: Sink) -> None:
        """Push the rest of the body into the sink, starting with bytes already here."""

    def has_bytes(self) -> bool:
        """Body bytes are waiting to be taken."""

    async def read(self, limit_bytes: int) -> tuple[bytes, bool]:
        """A short body, whole: the bytes and whether it ended cleanly within the limit."""

    def write(self, piece: bytes) -> asyncio.Future[None] | None:
        """Send a piece of a streamed body; a future to wait for when the backend does not read."""

    def write_end(self) -> None:
        """The streamed body is complete."""

    def pause(self) -> None:
        """Stop reading: the sink is full."""

    def resume(self) -> None: ...

    def close(self) -> None:
        """Done with it: back to the pool when whole, torn down otherwise. Safe to call twice."""


class Transport(Protocol):
    async def open(self, backend: Backend, call: Call, connect_s: float) -> Upstream:
        """Connect (or reuse) and send. Raises ConnectFailed or ConnectTimeout when the backend saw nothing."""


class Gathered:
    """A sink that keeps a short body. `done`: True at a clean end, False when it broke or grew past the limit."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_bytes: int) -> None:
        self.data = bytearray()
        self.done: asyncio.Future[bool] = loop.create_future()
        self._limit_bytes = limit_bytes

    def piece(self, data: bytes, last: bool) -> None:
        if self.done.done():
            return
        self.data += data
        if len(self.data) > self._limit_bytes:
            self.done.set_result(False)
        elif last:
            self.done.set_result(True)

    def broken(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_result(False)
