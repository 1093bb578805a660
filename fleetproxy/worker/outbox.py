"""What is on its way to the server: one queue, one writer, in order. Frames that wait together leave together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

#: Frames are joined into messages of about this, and of so many at most.
MESSAGE_BYTES, MESSAGE_FRAMES = 64 * 1024, 256


class Socket(Protocol):
    async def send(self, data: str | bytes) -> None:
        """Returns when there is room for more."""


class Outbox:
    """Messages for one connection. The queue's size is bounded by who fills it: credit, or `full`."""

    #: Past this, those who can wait should.
    ROOM_BYTES = 1024 * 1024

    def __init__(self) -> None:
        self._queue: deque[str | bytes] = deque()
        self._wake = asyncio.Event()
        self.waiting_bytes = 0
        #: Told when the queue is empty again after it was full.
        self.on_room: Callable[[], None] = lambda: None

    @property
    def full(self) -> bool:
        return self.waiting_bytes > self.ROOM_BYTES

    def put(self, data: str | bytes) -> None:
        self._queue.append(data)
        self.waiting_bytes += len(data)
        self._wake.set()

    async def write(self, socket: Socket) -> None:
        """Send what comes, until cancelled or the socket breaks."""
        while True:
            was_full = False
            while self._queue:
                was_full = was_full or self.full
                await socket.send(self._next())
            if was_full:
                self.on_room()
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()

    def _next(self) -> str | bytes:
        queue = self._queue
        first = queue.popleft()
        self.waiting_bytes -= len(first)
        if isinstance(first, str):
            return first
        together, size = [first], len(first)
        while (
            queue
            and isinstance(queue[0], bytes)
            and size + len(queue[0]) <= MESSAGE_BYTES
            and len(together) < MESSAGE_FRAMES
        ):
            following = queue.popleft()
            assert isinstance(following, bytes)
            together.append(following)
            size += len(following)
            self.waiting_bytes -= len(following)
        return first if len(together) == 1 else b"".join(together)
