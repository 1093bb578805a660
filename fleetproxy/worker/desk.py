"""The requests a worker is serving: how many at once, and which. Both wire languages bring theirs here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fleetproxy.core.backend import Backend
from fleetproxy.transport.base import Call, Transport
from fleetproxy.worker.serving import Reply, Serving

#: Requests that may wait for a free slot, for servers that cannot be told "busy".
MAX_QUEUED = 256


class Desk:
    """Starts requests while there are slots. `max_concurrency` may change at any time."""

    def __init__(self, transport: Transport, backend: Backend, loop: asyncio.AbstractEventLoop, slots: int) -> None:
        self._transport = transport
        self._backend = backend
        self._loop = loop
        self.slots = slots
        self._active: set[Serving] = set()
        self._queued: deque[tuple[Serving, Call]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Requests that have ended, since start.
        self.served = 0
        #: Called after each one that ended.
        self.on_change: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._active) + len(self._queued)

    @property
    def full(self) -> bool:
        return len(self._active) >= self.slots

    def open(self, reply: Reply) -> Serving:
        """A request that is about to start; it counts from now on."""
        serving = Serving(self._transport, self._backend, reply, self._loop, self._ended)
        self._active.add(serving)
        self._idle.clear()
        return serving

    def queue(self, reply: Reply, call: Call) -> Serving | None:
        """Start a request, or keep it until there is a slot. None when too many wait."""
        if not self.full:
            serving = self.open(reply)
            serving.start(call)
            return serving
        if len(self._queued) >= MAX_QUEUED:
            return None
        serving = Serving(self._transport, self._backend, reply, self._loop, self._ended)
        self._queued.append((serving, call))
        self._idle.clear()
        return serving

    def drop(self, serving: Serving) -> None:
        """Nobody waits for this one any more."""
        if serving.started:
            serving.cancel()
            return
        self._queued = deque(entry for entry in self._queued if entry[0] is not serving)
        self._ended(serving)

    def drop_all(self) -> None:
        for serving in [*self._active, *(entry[0] for entry in self._queued)]:
            self.drop(serving)

    async def all_done(self) -> None:
        await self._idle.wait()

    def _ended(self, serving: Serving) -> None:
        self._active.discard(serving)
        self.served += 1
        while self._queued and not self.full:
            waiting, call = self._queued.popleft()
            self._active.add(waiting)
            waiting.start(call)
        if not self._active and not self._queued:
            self._idle.set()
        self.on_change()
