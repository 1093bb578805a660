"""HTTP/1.1 to backends: one connection as an asyncio protocol with httptools, over TCP, TLS or a Unix socket.

Kept small because it is the hot path: one future per answer, no task, no timer; deadlines belong to the caller. Framing
is never copied: we write our own, and what a backend sends that is not plain HTTP/1.1 is refused (faults U-20...U-42).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import httptools

from fleetproxy.errors import (
    BackendLost,
    BackendReset,
    BadResponse,
    ConnectFailed,
    ConnectionStale,
)
from fleetproxy.transport.base import Answer, Call, Gathered, Headers, Sink

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADER_FIELDS = 100
#: Body bytes kept while nobody reads them; beyond it the socket is paused.
MAX_PENDING_BYTES = 256 * 1024
MAX_INTERIM_ANSWERS = 16


class Keeper(Protocol):
    """What keeps connections of one backend (`transport.pool.Pool`)."""

    loop: asyncio.AbstractEventLoop
    #: The Host header, as a wire line.
    host_line: bytes

    def give_back(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...


#: What one read takes at most. Larger pieces would pile up, several at once, before a caller who does not read.
READ_BYTES = 64 * 1024
#: Every read goes here and is parsed before the next one begins: one buffer serves all connections of a process.
_buffer = memoryview(bytearray(READ_BYTES))


class Connection(asyncio.BufferedProtocol):
    """One connection to one backend; carries one call at a time. Implements `Upstream`."""

    def __init__(self, pool: Keeper) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.busy = False
        self.reused = False
        self.idle_since = 0.0
        self._error: Exception | None = None
        self._eof = False
        self._drain: asyncio.Future[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._answer: Answer | None = None
        self._headers: Headers = []
        self._head_bytes = 0
        self._content_length: int | None = None
        self._chunked = False
        self._chunked_out = False
        #: A streamed body that has not been sent to its end: what the server reads next is still that body.
        self._unsent = False
        self._pieces: list[bytes] = []
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._whole = False
        self._keep_alive = False
        self._head_only = False
        self._interim = 0
        self._reading_head = True
        self._status_ready = False
        #: Any byte of the answer has arrived.
        self._touched = False
        #: Bytes read while the head was not whole.
        self._unread_bytes = 0
        #: Bytes came after the end of the answer: the connection cannot be trusted again.
        self._surplus = False

    # --- the call ------------------------------------------------------------------------------------------------

    def start(self, call: Call) -> None:
        """Write the request. The connection belongs to the caller until `close()`."""
        self.busy = True
        self._head_only = call.method == b"HEAD"
        transport = self._transport
        if transport is None:
            raise ConnectFailed
        host = self._pool.host_line if call.host is None else b"host: %b\r\n" % call.host
        body = call.body
        if body is None:
            length = call.content_length
            framing = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length
            self._chunked_out = length is None
            self._unsent = True
            body = b""
        elif body or call.method not in _BODILESS:
            framing = b"content-length: %d\r\n" % len(body)
        else:
            framing = b""
        head = b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (call.method, call.target, host, call.header_lines, framing)
        if len(body) < 16384:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    async def answer(self) -> Answer:
        if self._answer is not None and self._status_ready:
            return self._answer
        if self._error is not None:
            raise self._error
        self._waiter = self._pool.loop.create_future()
        return await self._waiter

    def take(self) -> bytes:
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pipe(self, sink: Sink) -> None:
        self._sink = sink
        if self._transport is not None:
            self._transport.resume_reading()  # before the first piece: the sink may pause in it
        data = self.take()
        if self._whole:
            sink.piece(data, True)
            return
        if data:
            sink.piece(data, False)
        if self._error is not None:
            self._sink = None
            sink.broken(self._error)

    def has_bytes(self) -> bool:
        return bool(self._pieces)

    async def read(self, limit_bytes: int) -> tuple[bytes, bool]:
        gathered = Gathered(self._pool.loop, limit_bytes)
        self.pipe(gathered)
        complete = await gathered.done
        return bytes(gathered.data), complete

    def write(self, piece: bytes) -> asyncio.Future[None] | None:
        transport = self._transport
        if transport is None or self._error is not None:
            return None  # the answer, or the failure, is waiting to be read
        if self._chunked_out:
            transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
        else:
            transport.write(piece)
        return self._drain

    def write_end(self) -> None:
        self._unsent = False
        if self._chunked_out and self._transport is not None:
            self._transport.write(b"0\r\n\r\n")

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        if not self.busy:
            return
        self.busy = False
        self._sink = None
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.cancel()
        transport = self._transport
        if transport is None:
            return
        if self._whole and not self._surplus and not self._unsent and not self._head_only and self._keep_alive:
            self._reset()
            self._pool.give_back(self)
        else:
            self._transport = None
            self._pool.forget(self)
            transport.abort()

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def drop(self) -> None:
        """Close an idle connection."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    # --- asyncio's callbacks -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received(_buffer[:nbytes])

    def _received(self, data: memoryview) -> None:
        if not self.busy:  # bytes nobody asked for
            self._pool.forget(self)
            self.drop()
            return
        self._touched = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._whole:
                # What parsed before the fault still goes out, in order, before the break.
                self._fail(_cause(error, self._status_ready))
                return
            self._surplus = True
        except httptools.HttpParserUpgrade:
            self._fail(BadResponse("The server switched protocols unasked."))
            return
        if self._error is not None:
            self._fail(self._error)
            return
        if not self._status_ready:
            self._unread_bytes += len(data)
            if self._unread_bytes > MAX_HEADER_BYTES * 4:
                self._fail(BadResponse("The server's response headers do not end."))
            return
        sink = self._sink
        if sink is not None:
            pieces = self._pieces
            if self._whole:
                self._sink = None
                sink.piece(self.take(), True)
            elif pieces:
                self._pieces = []
                sink.piece(pieces[0] if len(pieces) == 1 else b"".join(pieces), False)
        else:
            waiter = self._waiter
            if waiter is not None:
                self._waiter = None
                if not waiter.done():
                    answer = self._answer
                    assert answer is not None
                    answer.complete = self._whole
                    waiter.set_result(answer)
            if not self._whole and sum(map(len, self._pieces)) > MAX_PENDING_BYTES:
                self.pause()

    def eof_received(self) -> bool:
        # Over TLS this is the peer's close_notify; a connection cut off below TLS ends without it.
        self._eof = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._drain is not None and not self._drain.done():
            self._drain.set_exception(BackendReset())
        if not self.busy:
            self._pool.forget(self)
            return
        if self._whole or self._error is not None:
            return
        answer = self._answer
        if self._status_ready and answer is not None:
            if exc is None and self._eof and not self._chunked and answer.content_length is None:
                self._whole = True  # the close is the end (RFC 9112 section 6.3, case 8)
                sink, self._sink = self._sink, None
                if sink is not None:
                    sink.piece(self.take(), True)
                return
            self._fail(BackendLost())
        elif self._touched:
            self._fail(BadResponse("The server broke off inside its response headers."))
        else:
            self._fail(ConnectionStale() if self.reused else BackendReset())

    def pause_writing(self) -> None:
        if self._drain is None or self._drain.done():
            self._drain = self._pool.loop.create_future()
            self._drain.add_done_callback(_retrieved)

    def resume_writing(self) -> None:
        drain, self._drain = self._drain, None
        if drain is not None and not drain.done():
            drain.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = error
        transport, self._transport = self._transport, None
        if transport is not None:
            self._pool.forget(self)
            transport.abort()
        waiter, self._waiter = self._waiter, None
        sink, self._sink = self._sink, None
        if waiter is not None and not waiter.done():
            answer = self._answer
            if self._status_ready and answer is not None:
                waiter.set_result(answer)
            else:
                waiter.set_exception(error)
        elif sink is not None:
            if self._pieces:
                sink.piece(self.take(), False)
            sink.broken(error)

    # --- httptools' callbacks ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._whole:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._reading_head:
            return  # a trailer: dropped (RFC 9112 section 7.1.2)
        headers = self._headers
        headers.append((name.lower(), value))
        self._head_bytes += len(name) + len(value)
        if len(headers) > MAX_HEADER_FIELDS or self._head_bytes > MAX_HEADER_BYTES:
            self._error = BadResponse("The server's response headers are too large.")

    def on_headers_complete(self) -> None:
        if self._surplus or self._error is not None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            if status == 101:
                self._error = BadResponse("The server switched protocols unasked.")
            self._interim += 1
            if self._interim > MAX_INTERIM_ANSWERS:
                self._error = BadResponse("The server sent too many interim responses.")
            self._headers = []
            return
        if not 200 <= status <= 599:
            self._error = BadResponse("The server answered with an impossible status.")
            return
        length: int | None = None
        for name, value in self._headers:
            if name == b"content-length":
                try:
                    length = int(value)
                except ValueError:
                    self._error = BadResponse("The server sent a bad Content-Length.")
            elif name == b"transfer-encoding":
                self._chunked = True
        self._reading_head = False
        self._status_ready = True
        if status in (204, 304) or self._head_only:
            self._whole = True
        self._answer = Answer(status, self._headers, length)

    def on_body(self, body: bytes) -> None:
        if not self._surplus:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._status_ready:
            self._whole = True
            # Asked here: once the parser has begun to wait for the next message it no longer knows.
            self._keep_alive = self._parser.should_keep_alive()


_BODILESS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE"})


def _cause(error: BaseException, answered: bool) -> Exception:
    cause = error.__context__
    if isinstance(cause, Exception) and not isinstance(cause, httptools.HttpParserError):
        return cause
    return BackendLost("The server's answer broke HTTP framing.") if answered else BadResponse()


def _retrieved(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
