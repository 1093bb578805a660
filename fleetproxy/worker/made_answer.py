"""An answer that is made here instead of read from a backend: whole, or event by event."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fleetproxy.errors import FleetError
from fleetproxy.transport.base import Answer, Gathered, Headers, Sink

#: Past this much that nobody has taken, the maker should wait.
ROOM_BYTES = 1024 * 1024


class MadeAnswer:
    """Implements the answering half of `transport.base.Upstream`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._head: asyncio.Future[Answer] = loop.create_future()
        self._sink: Sink | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._whole = False
        self._error: FleetError | None = None
        #: Nobody wants it any more; or it is complete.
        self.closed = False
        #: Called once when whoever asked has left before the end.
        self.on_left: Callable[[], None] = lambda: None
        #: Called when there is room again after it was full.
        self.on_room: Callable[[], None] = lambda: None

    # --- the maker's side --------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        return self._head.done()

    @property
    def full(self) -> bool:
        return self._waiting_bytes > ROOM_BYTES

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer."""
        self.begin(status, headers, len(body))
        self.add(body)
        self.end()

    def begin(self, status: int, headers: Headers, length: int | None = None) -> None:
        if not self._head.done():
            self._head.set_result(Answer(status, headers, length))

    def add(self, piece: bytes) -> None:
        if piece and not self._whole and not self.closed:
            self._pieces.append(piece)
            self._waiting_bytes += len(piece)
            self._push()

    def end(self) -> None:
        if not self.closed:
            self._whole = True
            self._push()

    def fail(self, error: FleetError) -> None:
        """It will not come, or not all of it."""
        if self.closed or self._whole:
            return
        self._error = error
        if not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # whoever asked may have left without looking
        self._push()

    # --- transport.base.Upstream -------------------------------------------------------------------------------------

    async def answer(self) -> Answer:
        return await self._head

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
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

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._push()

    def close(self) -> None:
        if self.closed:
            return
        left = not self._whole
        self.closed = True
        self._sink = None
        self._pieces.clear()
        self._waiting_bytes = 0
        if not self._head.done():
            self._head.cancel()
        if left and self._error is None:
            self.on_left()
        self.on_room()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _push(self) -> None:
        was_full = self.full
        while self._sink is not None and not self._paused and len(self._pieces) > (1 if self._whole else 0):
            piece = self._pieces.popleft()
            self._waiting_bytes -= len(piece)
            self._sink.piece(piece, False)
        sink = self._sink
        if sink is not None and not self._paused:
            if self._whole:
                self._sink = None
                last = self._pieces.popleft() if self._pieces else b""
                self._waiting_bytes = 0
                sink.piece(last, True)
            elif self._error is not None:
                self._sink = None
                sink.broken(self._error)
        if was_full and not self.full:
            self.on_room()
