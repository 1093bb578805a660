"""A proxy process's one connection to the hub: frames both ways over hub.sock, re-made for ever when it breaks."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from fleetproxy.core.worker import Worker
from fleetproxy.transport.framed import FramedConnection
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import Frame, FrameError

#: Wait before the first reconnect and at most; each is drawn between half and the whole of it.
BACKOFF_S, BACKOFF_MAX_S = 0.05, 0.25
#: A connection that lived this long was a good one: the next reconnect starts from the short wait again.
GOOD_S = 5.0
#: How long `settled` waits at most; and how long a hub that is away is waited for, from when it was lost.
SETTLE_S, ABSENCE_S = 1.0, 2.0
#: So many may wait for the hub's word at once; who comes then takes what is known.
MAX_SETTLING = 1024


class Stream(Protocol):
    """Our end of a stream."""

    def frame(self, kind: int, payload: bytes) -> None:
        """A frame of the stream. FrameError from it ends the connection."""

    def lost(self) -> None:
        """The hub is gone, and the stream with it."""


class HubClient:
    """Frames to and from the hub. Who wants frames of stream 0 says so with `on`; who wants to know of coming and going
    of the hub, with `watch`; of the workers connected there, with `watch_workers`."""

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
        self._worker_watchers: list[Callable[[], None]] = []
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        #: The dial-in workers the hub has, by family and id. Empty while the hub is away.
        self.workers: dict[tuple[str, str], Worker] = {}
        #: Connections made, since start.
        self.connections = 0
        self._lost_at = clock()
        self._pings = 0
        self._settling: dict[int, asyncio.Future[None]] = {}
        self.on(frames.PRESENCE, self._presence)
        self.on(frames.PONG, self._pong)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def on(self, kind: int, handler: Callable[[bytes], None]) -> None:
        """Give `handler` the payload of every stream-0 frame of a kind. FrameError from it ends the connection."""
        self._handlers[kind] = handler

    def watch(self, watcher: Callable[[bool], None]) -> None:
        """Call `watcher(True)` when the hub has become reachable, `watcher(False)` when it was lost."""
        self._watchers.append(watcher)

    def watch_workers(self, watcher: Callable[[], None]) -> None:
        """Call `watcher()` when `workers` has changed."""
        self._worker_watchers.append(watcher)

    def open(self, stream: Stream) -> int | None:
        """A number for a new stream; None when the hub is not there. Its opener sends the OPEN frame."""
        if self._connection is None:
            return None
        self._last_stream = number = self._last_stream + 1
        self._streams[number] = stream
        return number

    def forget(self, number: int) -> None:
        """The stream is over: frames that still come for it are dropped."""
        self._streams.pop(number, None)

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    async def settled(self) -> None:
        """Return when everybody the hub had let in when this was called is in `workers`.

        News of who came take a moment, and reach one process before another: who is about to say that there is no such
        worker asks first. Returns all the same after SETTLE_S, and at once when the hub has been away for long.
        """
        away = self._connection is None
        if len(self._settling) >= MAX_SETTLING or (away and self._clock() - self._lost_at > ABSENCE_S):
            return
        self._pings += 1
        number = self._pings
        told = self._settling[number] = asyncio.get_running_loop().create_future()
        try:
            self._ping(number)
            await asyncio.wait_for(told, SETTLE_S)
        except TimeoutError:
            pass
        finally:
            del self._settling[number]

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
        self._last_stream = 0
        self.connections += 1
        connection.send(self._register)
        for number in self._settling:
            self._ping(number)
        for watcher in self._watchers:
            watcher(True)

    def _lost(self) -> None:
        self._connection = None
        self._lost_at = self._clock()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lost()
        if self.workers:
            self.workers = {}
            self._workers_changed()
        for watcher in self._watchers:
            watcher(False)

    def _presence(self, payload: bytes) -> None:
        news = payloads.decode(payload, payloads.Presence)
        if news.worker is not None:
            self.workers[news.worker.family, news.worker.id] = news.worker
        if news.left is not None:
            self.workers.pop(news.left, None)
        self._workers_changed()

    def _ping(self, number: int) -> None:
        self.send(frames.encode(frames.PING, 0, number.to_bytes(8)))

    def _pong(self, payload: bytes) -> None:
        told = self._settling.get(int.from_bytes(payload))
        if told is not None and not told.done():
            told.set_result(None)

    def _workers_changed(self) -> None:
        for watcher in self._worker_watchers:
            watcher()

    def _frame(self, _: FramedConnection, frame: Frame) -> None:
        if frame.stream:
            stream = self._streams.get(frame.stream)
            if stream is not None:
                stream.frame(frame.kind, frame.payload)
            return
        handler = self._handlers.get(frame.kind)
        if handler is None:
            raise FrameError(f"a {frames.NAMES[frame.kind]} frame is not for a proxy process")
        handler(frame.payload)
