"""Requests to dial-in workers: the transport seam over streams of the hub's connection.

The answer's body is pushed into the sink from the callback that read it, one DATA frame at a time. Credit is given back
for what the sink has taken: a caller that does not read costs WINDOW_BYTES here and stops its worker, not the socket.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable

from fleetproxy import errors
from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError, BackendLost, BackendReset, BadResponse, ConnectFailed, FleetError
from fleetproxy.transport.base import Answer, Call, Gathered, Sink
from fleetproxy.transport.hub import HubClient
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import WINDOW_BYTES, FrameError

#: Bodies go out in frames of at most this.
PIECE_BYTES = 64 * 1024

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
_MAX_HEADERS_BYTES = 32 * 1024
_BODILESS_STATUS = frozenset({204, 205, 304})


#: What a RESET's code word means to the caller; a worker's own text is not for him.
ERRORS: dict[str, type[FleetError]] = {
    kind.code: kind
    for kind in (
        errors.ConnectFailed,
        errors.ConnectTimeout,
        errors.BackendReset,
        errors.BackendLost,
        errors.BackendTimeout,
        errors.BadResponse,
        errors.WorkerBusy,
        errors.WorkerRefused,
        errors.BodyTooLarge,
        errors.Forbidden,
        errors.Overloaded,
        errors.RelayAnswerTooLarge,
        errors.RelayFrameLimit,
        errors.RelayNoAnswer,
        errors.RelayOffline,
        errors.RelayRefused,
        errors.RelayUnauthorized,
        errors.TooManyCalls,
        errors.TooManyTransfers,
        errors.TransferExpired,
        errors.TransferFailed,
        errors.TransferInUse,
        errors.TransferUnknown,
    )
}


class HubUpstream:
    """One request to one worker. Implements `transport.base.Upstream`."""

    __slots__ = (
        "_answer",
        "_body",
        "_credit",
        "_drain",
        "_ended_out",
        "_error",
        "_hub",
        "_left",
        "_loop",
        "_no_body",
        "_number",
        "_owed",
        "_paused",
        "_pieces",
        "_sink",
        "_waiter",
        "_whole",
    )

    def __init__(self, hub: HubClient, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._number = 0
        # towards the worker
        self._body: deque[bytes] = deque()
        self._ended_out = False
        self._credit = WINDOW_BYTES
        self._drain: asyncio.Future[None] | None = None
        # from the worker
        self._answer: Answer | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._sink: Sink | None = None
        self._pieces: list[bytes] = []
        self._paused = False
        self._no_body = False
        #: Body bytes still announced; None when nothing was.
        self._left: int | None = None
        self._owed = 0
        self._whole = False
        self._error: FleetError | None = None

    def start(self, backend: Backend, call: Call) -> None:
        """Send the request to a worker. Raises ConnectFailed when the hub is not there."""
        self.ask(call, lambda request: payloads.Open("worker", backend.host, backend.column, request))

    def ask(self, call: Call, opening: Callable[[bytes], payloads.Open]) -> None:
        """Send the request to whom `opening` names. Raises ConnectFailed when the hub is not there."""
        hub = self._hub
        number = hub.open(self)
        if number is None:
            raise ConnectFailed
        self._number = number
        self._no_body = call.method == b"HEAD"
        body = call.body
        length = call.content_length if body is None else len(body)
        request = payloads.Request(call.method.decode("latin-1"), call.target, call.header_lines, length)
        out = [frames.encode(frames.OPEN, number, payloads.encode(opening(payloads.encode(request))))]
        if body is not None:
            self._body.extend(body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))
            self._ended_out = True
            out += self._sendable()
        if not hub.send(b"".join(out)):
            hub.forget(number)
            self._number = 0
            raise ConnectFailed

    def begin(self, opening: payloads.Open) -> None:
        """Open a stream to something else behind the hub; nothing is sent but that. Raises ConnectFailed."""
        number = self._hub.open(self)
        if number is None:
            raise ConnectFailed
        self._number = number
        if not self._hub.send(frames.encode(frames.OPEN, number, payloads.encode(opening))):
            self._hub.forget(number)
            self._number = 0
            raise ConnectFailed

    # --- Upstream ----------------------------------------------------------------------------------------------------

    async def answer(self) -> Answer:
        if self._answer is not None:
            return self._answer
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        return await self._waiter

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._taken(len(data))
        return data

    def has_bytes(self) -> bool:
        return bool(self._pieces)

    def pipe(self, sink: Sink) -> None:
        self._sink = sink
        self._push()

    async def read(self, limit_bytes: int) -> tuple[bytes, bool]:
        gathered = Gathered(self._loop, limit_bytes)
        self.pipe(gathered)
        complete = await gathered.done
        return bytes(gathered.data), complete

    def write(self, piece: bytes) -> asyncio.Future[None] | None:
        if self._error is not None or self._whole or not self._number:
            return None  # the answer, or the failure, is waiting to be read
        self._body.extend(piece[at : at + PIECE_BYTES] for at in range(0, len(piece), PIECE_BYTES))
        self._flush()
        if self._body and self._drain is None:
            self._drain = self._loop.create_future()
        return self._drain

    def write_end(self) -> None:
        if self._number:
            self._ended_out = True
            self._flush()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._push()

    def close(self) -> None:
        self._sink = None
        self._pieces.clear()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.cancel()
        if self._number:
            reset = payloads.encode(payloads.Reset("client_gone"))
            self._hub.send(frames.encode(frames.RESET, self._number, reset))
            self._over()

    # --- hub.Stream --------------------------------------------------------------------------------------------------

    def frame(self, kind: int, payload: bytes) -> None:
        match kind:
            case frames.DATA if self._answer is not None:
                self._data(payload)
            case frames.HEAD if self._answer is None:
                self._head(payload)
            case frames.END if self._answer is not None:
                self._end()
            case frames.WINDOW:
                self._credit += frames.credit(payload)
                self._flush()
            case frames.RESET:
                code = payloads.decode(payload, payloads.Reset).code
                self._fail(ERRORS.get(code, BackendLost if self._answer is not None else BackendReset)())
            case _:
                raise FrameError(f"a {frames.NAMES[kind]} frame out of order")

    def lost(self) -> None:
        self._fail(BackendLost() if self._answer is not None else BackendReset())

    # --- inside ------------------------------------------------------------------------------------------------------

    def _head(self, payload: bytes) -> None:
        try:
            head = payloads.decode(payload, payloads.Head)
        except FrameError:
            self._give_up(BadResponse())
            return
        headers = [(name.lower(), value) for name, value in head.headers]
        size = sum(len(name) + len(value) for name, value in headers)
        if size > _MAX_HEADERS_BYTES or not all(_NAME.match(n) and _VALUE.match(v) for n, v in headers):
            self._give_up(BadResponse("The worker's response headers are malformed."))
            return
        self._no_body = self._no_body or head.status in _BODILESS_STATUS
        self._left = None if self._no_body else head.content_length
        self._answer = answer = Answer(head.status, headers, head.content_length)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def _data(self, payload: bytes) -> None:
        if self._no_body or not payload:
            self._taken(len(payload))
            return
        if self._left is not None:
            self._left -= len(payload)
            if self._left < 0:
                self._give_up(BackendLost("The worker sent more than it had announced."))
                return
            if not self._left:
                # The answer is whole, and a caller who counts may be gone before the END frame is here.
                self._pieces.append(payload)
                self._complete()
                return
        if self._sink is None or self._paused or self._pieces:
            self._pieces.append(payload)
        else:
            self._taken(len(payload))
            self._sink.piece(payload, False)

    def _end(self) -> None:
        if self._left:
            self._over()
            self._fail(BackendLost("The worker sent less than it had announced."))
        else:
            self._complete()

    def _complete(self) -> None:
        self._over()
        self._whole = True
        if self._sink is None:
            assert self._answer is not None
            self._answer.complete = True
        else:
            self._push()

    def _push(self) -> None:
        """Hand the sink what is here, and how it ends, if it is not full."""
        # The sink may pause us, or close us, at every piece.
        while self._sink is not None and not self._paused and len(self._pieces) > (1 if self._whole else 0):
            piece = self._pieces.pop(0)
            self._taken(len(piece))
            self._sink.piece(piece, False)
        sink = self._sink
        if sink is None or self._paused:
            return
        if self._whole:
            self._sink = None
            sink.piece(self._pieces.pop() if self._pieces else b"", True)
        elif self._error is not None:
            self._sink = None
            sink.broken(self._error)

    def _taken(self, size: int) -> None:
        """So much was taken: the worker may send as much again, told in large steps."""
        self._owed += size
        if self._owed >= WINDOW_BYTES // 2 and self._number:
            self._hub.send(frames.window(self._number, self._owed))
            self._owed = 0

    def _sendable(self) -> list[bytes]:
        """Frames of the request's body that there is credit for."""
        out: list[bytes] = []
        number, body = self._number, self._body
        while body and self._credit >= len(body[0]):
            piece = body.popleft()
            self._credit -= len(piece)
            out += (frames.header(frames.DATA, number, len(piece)), piece)
        if self._ended_out and not body:
            self._ended_out = False
            out.append(frames.encode(frames.END, number))
        return out

    def _flush(self) -> None:
        out = self._sendable()
        if out and self._number:
            self._hub.send(b"".join(out))
        if not self._body:
            self._wake_writer()

    def _wake_writer(self) -> None:
        drain, self._drain = self._drain, None
        if drain is not None and not drain.done():
            drain.set_result(None)

    def _give_up(self, error: BackendError) -> None:
        """The worker's answer cannot be used: tell it to stop."""
        if self._number:
            reset = payloads.encode(payloads.Reset(error.code))
            self._hub.send(frames.encode(frames.RESET, self._number, reset))
        self._fail(error)

    def _fail(self, error: FleetError) -> None:
        if self._whole or self._error is not None:
            return
        self._over()
        self._error = error
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self._push()

    def _over(self) -> None:
        if self._number:
            self._hub.forget(self._number)
            self._number = 0
        self._body.clear()
        self._wake_writer()


class HubTransport:
    """Implements `transport.base.Transport` for backends whose scheme is "hub"."""

    def __init__(self, hub: HubClient, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop

    async def open(self, backend: Backend, call: Call, connect_s: float) -> HubUpstream:
        upstream = HubUpstream(self._hub, self._loop)
        upstream.start(backend, call)
        return upstream
