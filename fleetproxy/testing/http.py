"""A small HTTP/1.1 server on raw asyncio, for fakes: strict about what it takes, exact about what it gives.

No framework stands between a fake and the socket, so a fake can keep connections alive, stream in both directions,
stop in the middle, reset, or lie about its framing, and can say to the microsecond when its peer left. A handler is
`async def handler(request, reply)`; it is cancelled when the peer closes, as a Go server cancels a request's context.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Any

from fleetproxy.testing.message import TOKEN, BadMessage, Headers, Request, head

HEAD_BYTES = 64 * 1024
#: Unread body bytes swallowed after a reply, so that the connection may be kept; more closes it.
SWALLOW_BYTES = 256 * 1024
_HIGH_WATER_BYTES = 256 * 1024
_LINGER_RESET = struct.pack("ii", 1, 0)

Handler = Callable[[Request, "Reply"], Awaitable[None]]


def reset(transport: asyncio.BaseTransport) -> None:
    """Close a connection with RST instead of FIN; unsent bytes are dropped."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        # A duplicate, because an event loop's own socket object may refuse options.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()  # type: ignore[attr-defined]


class Reply:
    """The answer to one request: whole by `send`, or `start`, `write`..., `end`."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection = connection
        self.request = request
        self.status: int | None = None
        self.started_s: float | None = None
        self.ended = False
        self.sent_bytes = 0
        self.pieces = 0
        self.chunked = False
        #: Header fields added to whatever is answered.
        self.fields: list[tuple[str, str]] = []
        self._bodiless = False

    async def send(
        self, status: int, body: bytes = b"", headers: Headers = (), content_type: str = "application/json"
    ) -> None:
        """A whole answer with a Content-Length."""
        fields = [*headers]
        if content_type:
            fields.append(("Content-Type", content_type))
        await self.start(status, fields, length=len(body))
        if body:
            await self.write(body)
        await self.end()

    async def start(self, status: int, headers: Headers = (), length: int | None = None) -> None:
        """Status line and headers; without a length the body goes out chunked (or until close for HTTP/1.0)."""
        self.status = status
        self._bodiless = self.request.method == "HEAD" or status in {204, 304}
        fields = [*headers, *self.fields, ("Date", formatdate(self.connection.server.now_s(), usegmt=True))]
        if length is not None:
            if status != 204:
                fields.append(("Content-Length", str(length)))
        elif self.request.version == "1.1":
            fields.append(("Transfer-Encoding", "chunked"))
            self.chunked = True
        else:
            self.connection.keep = False
        if not self.connection.keep or not self.request.keep_alive:
            self.connection.keep = False
            fields.append(("Connection", "close"))
        await self.raw(head(status, fields))
        self.started_s = time.monotonic()

    async def write(self, piece: bytes) -> None:
        """One piece of the body, on the wire as one write."""
        if not piece or self._bodiless:
            return
        self.sent_bytes += len(piece)
        self.pieces += 1
        await self.raw(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)

    async def end(self) -> None:
        if self.chunked and not self._bodiless:
            await self.raw(b"0\r\n\r\n")
        self.ended = True

    async def raw(self, data: bytes) -> None:
        """Bytes as they are, past all framing."""
        self.connection.transport.write(data)
        await self.connection.drain()

    def reset(self) -> None:
        """Break the connection off with RST."""
        self.ended = True
        self.connection.keep = False
        self.connection.closing = True
        reset(self.connection.transport)

    def hang_up(self) -> None:
        """Close the connection with FIN, whatever was promised."""
        self.ended = True
        self.connection.keep = False
        self.connection.close()


class Connection(asyncio.Protocol):
    """One accepted connection: requests are answered in order, one at a time."""

    transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.number = 0
        self.peer = ""
        self.keep = True
        #: `time.monotonic()` when the connection was seen to be gone; None while it is there.
        self.closed_s: float | None = None
        #: We closed it, not the peer.
        self.closing = False
        self.requests = 0
        self._buffer = bytearray()
        self._eof = False
        self._arrival: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # --- what the event loop tells us ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.server.accepted += 1
        self.number = self.server.accepted
        self.peer = str(transport.get_extra_info("peername"))
        self.server.open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _HIGH_WATER_BYTES:
            self.transport.pause_reading()
        self._arrived()

    def eof_received(self) -> bool:
        self._gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        self.server.open.discard(self)
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        """Close from our side, with FIN, after what was written."""
        self.closing = True
        self.transport.close()

    def _arrived(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _gone(self) -> None:
        if self.closed_s is None:
            self.closed_s = time.monotonic()
        self._eof = True
        self._arrived()
        if self._task is not None:
            self._task.cancel()

    # --- reading ------------------------------------------------------------------------------------------------

    async def _more(self) -> None:
        if self._eof:
            raise ConnectionResetError("the peer left")
        self.transport.resume_reading()
        self._arrival = asyncio.get_running_loop().create_future()
        await self._arrival

    async def line(self, limit_bytes: int = 16 * 1024) -> bytes:
        """One line of chunked framing, without its CRLF."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > limit_bytes:
                raise BadMessage("line too long")
            await self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def counted(self, count: int) -> AsyncIterator[bytes]:
        """Exactly `count` bytes, in the pieces they come in."""
        while count:
            if not self._buffer:
                await self._more()
                continue
            piece = bytes(self._buffer[:count])
            del self._buffer[: len(piece)]
            count -= len(piece)
            yield piece

    async def _head(self) -> Request:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_BYTES:
                raise BadMessage("request head too large", 431)
            await self._more()
        text = bytes(self._buffer[:end]).decode("latin-1")
        del self._buffer[: end + 4]
        first, *lines = text.split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[0] or not set(words[0]) <= TOKEN or words[2] not in {"HTTP/1.1", "HTTP/1.0"}:
            raise BadMessage(f"malformed request line {first[:80]!r}")
        headers = []
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or not set(name) <= TOKEN or "\n" in value or "\r" in value or "\0" in value:
                raise BadMessage(f"malformed header line {line[:80]!r}")
            headers.append((name, value.strip(" \t")))
        if words[2] == "HTTP/1.1" and sum(name.lower() == "host" for name, _ in headers) != 1:
            raise BadMessage("HTTP/1.1 needs exactly one Host")
        return Request(self, words[0], words[1], words[2][5:], headers)

    async def drain(self) -> None:
        """Wait while the peer reads more slowly than we write."""
        if self._writable is not None:
            await self._writable
        if self.closed_s is not None:
            raise ConnectionResetError("the peer left")

    # --- serving ------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        reply: Reply | None = None
        try:
            while self.keep:
                reply = None
                request = await self._head()
                self.requests += 1
                reply = Reply(self, request)
                await self.server.handler(request, reply)
                if not reply.ended:
                    return reply.reset()  # a handler that leaves without ending its answer broke off
                await self._swallow(request)
        except BadMessage as error:
            self.server.bad_messages.append(str(error))
            if reply is not None and reply.status is not None:
                return reply.reset()  # too late for a status: break off visibly
            text = str(error).encode()
            fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(text))), ("Connection", "close")]
            self.transport.write(head(error.status, fields) + text)
        except (ConnectionResetError, asyncio.CancelledError):
            pass
        finally:
            self.close()

    async def _swallow(self, request: Request) -> None:
        if request.complete or not self.keep:
            return
        start = request.received_bytes
        async for _ in request.pieces():
            if request.received_bytes - start > SWALLOW_BYTES:
                self.keep = False
                return


class HttpServer:
    """Listens on loopback and hands every request to `handler`.

    `now_s` is the wall clock behind Date headers: an argument, so that answers can be made reproducible.
    """

    def __init__(self, handler: Handler, *, now_s: Callable[[], float] = time.time) -> None:
        self.handler = handler
        self.now_s = now_s
        self.open: set[Connection] = set()
        self.accepted = 0
        #: Why requests were refused as malformed: a proxy in front must keep this empty.
        self.bad_messages: deque[str] = deque(maxlen=1000)
        self._server: asyncio.Server | None = None
        self.host = "127.0.0.1"
        self.port = 0

    async def listen(self, host: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
        """Open the port; 0 takes a free one, which `port` then names (and a later `listen` takes again)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), host, port or self.port, backlog=1024, **options
        )
        self.host = host
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Close the port but keep open connections: newcomers get ECONNREFUSED until `listen` is called again."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        """Close the port and every connection."""
        self.refuse()
        tasks = [connection._task for connection in self.open if connection._task is not None]
        for connection in tuple(self.open):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
