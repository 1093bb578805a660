"""A proxy process's one connection to the hub: frames both ways over hub.sock, re-made for ever when it breaks."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from fleetproxy.transport.framed import FramedConnection
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import Frame, FrameError

#: Wait before the first reconnect and at most; each is drawn between half and the whole of it.
BACKOFF_S, BACKOFF_MAX_S = 0.05, 1.0
#: A connection that lived this long was a good one: the next reconnect starts from the short wait again.
GOOD_S = 5.0


class HubClient:
    """Frames to and from the hub. Who wants frames of stream 0 says so with `on`; who wants to know of coming and going
    of the hub, with `watch`."""

    def __init__(
        self,
        path: Path,
        process: str,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._path = path
        self._register = frames.encode(
            frames.REGISTER, 0, payloads.encode(payloads.Register(process=process, pid=os.getpid()))
        )
        self._rng = rng or random.Random()  # noqa: S311 - spreads reconnects, guards nothing
        self._clock = clock
        self._sleep = sleep
        self._connection: FramedConnection | None = None
        self._handlers: dict[int, Callable[[bytes], None]] = {}
        self._watchers: list[Callable[[bool], None]] = []
        #: Connections made, since start.
        self.connections = 0

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def on(self, kind: int, handler: Callable[[bytes], None]) -> None:
        """Give `handler` the payload of every stream-0 frame of a kind. FrameError from it ends the connection."""
        self._handlers[kind] = handler

    def watch(self, watcher: Callable[[bool], None]) -> None:
        """Call `watcher(True)` when the hub has become reachable, `watcher(False)` when it was lost."""
        self._watchers.append(watcher)

    def send(self, data: bytes) -> bool:
        """Hand whole frames to the hub; never blocks. False when it is not there."""
        return self._connection is not None and self._connection.send(data)

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        loop = asyncio.get_running_loop()
        wait_s = BACKOFF_S
        while True:
            began = self._clock()
            lost = loop.create_future()
            try:
                _, connection = await loop.create_unix_connection(
                    lambda lost=lost: FramedConnection(  # type: ignore[misc]
                        self._frame, lambda _: lost.done() or lost.set_result(None)
                    ),
                    str(self._path),
                )
            except OSError:
                pass  # the hub is not there; it will be back
            else:
                try:
                    self._found(connection)
                    await lost
                finally:
                    connection.abort()
                    self._lost()
            if self._clock() - began >= GOOD_S:
                wait_s = BACKOFF_S
            await self._sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, BACKOFF_MAX_S)

    def _found(self, connection: FramedConnection) -> None:
        connection.name = "the hub"
        self._connection = connection
        self.connections += 1
        connection.send(self._register)
        for watcher in self._watchers:
            watcher(True)

    def _lost(self) -> None:
        self._connection = None
        for watcher in self._watchers:
            watcher(False)

    def _frame(self, _: FramedConnection, frame: Frame) -> None:
        handler = self._handlers.get(frame.kind)
        if frame.stream or handler is None:
            raise FrameError(f"a {frames.NAMES[frame.kind]} frame is not for a proxy process")
        handler(frame.payload)
