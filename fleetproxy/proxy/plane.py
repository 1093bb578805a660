"""What one data-plane process has: the snapshot, the board, the ways to backends, the exchanges under way."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable

from fleetproxy.core.backend import Backend
from fleetproxy.core.table import Snapshot
from fleetproxy.errors import ClientGone
from fleetproxy.link.board import Board
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.proxy.body import Budget
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.recorder import Recorder
from fleetproxy.proxy.trips import Trips
from fleetproxy.transport.base import Transport

#: How often the sweeper looks at the exchanges under way. One tick is the precision of every limit, and the age at
#: which an exchange gets its disconnect watch: shorter ones never pay for it.
TICK_S = 0.05


class Plane:
    """The process-wide state of the data plane. One per proxy process; lives on its loop."""

    def __init__(
        self,
        *,
        name: str,
        snapshot: Snapshot,
        board: Board,
        recorder: Recorder,
        transports: dict[str, Transport],
        instance: str,
        clock: Callable[[], float] = time.monotonic,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        rng: random.Random | None = None,
        observe: Callable[[str, str], None] = lambda backend, kind: None,
    ) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.wall_us = wall_us
        self.rng = rng or random.Random()
        self.snapshot = snapshot
        self.board = board
        self.recorder = recorder
        self.transports = transports
        #: Our pseudonym in Via (RFC 9110 section 7.6.3): the same for all processes of this instance.
        self.via = f"1.1 fleetproxy-{instance}".encode()
        self.observe = observe
        self.budget = Budget(snapshot.limits.buffered_bytes)
        self.trips = Trips(snapshot, clock=clock, observe=observe)
        self.counters: Counter[str] = Counter()
        self.live: set[Exchange] = set()
        self.draining = False
        self._numbers = itertools.count(int.from_bytes(os.urandom(4)))
        self._id_tail = os.urandom(4).hex()

    def publish(self, snapshot: Snapshot) -> None:
        """Use this snapshot for new exchanges: one assignment."""
        self.snapshot = snapshot
        self.budget.limit_bytes = snapshot.limits.buffered_bytes
        self.trips.publish(snapshot)

    def transport(self, backend: Backend) -> Transport:
        if backend.http2:
            return self.transports["http2"]
        return self.transports["hub" if backend.scheme == "hub" else "http1"]

    def request_id(self, wall_us: int) -> str:
        """A UUIDv7 (RFC 9562 section 5.7): milliseconds, then a counter and a random tail of this process."""
        number = next(self._numbers) & 0xFFFFFFFF
        milliseconds = wall_us // 1000
        return (
            f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{number >> 20:03x}-"
            f"8{number >> 8 & 0xFFF:03x}-{number & 0xFF:02x}{self._id_tail}00"
        )

    async def sweep(self) -> None:
        """Every tick: watch for callers leaving, end what has been without progress for too long. Never returns."""
        clock = self.clock
        while True:
            await asyncio.sleep(TICK_S)
            now = clock()
            old = now - TICK_S
            for exchange in list(self.live):
                if not exchange.watching and exchange.body_read and exchange.started_at < old:
                    watch(exchange)
                if exchange.progress != exchange.last_progress:
                    exchange.last_progress = exchange.progress
                    exchange.tick_of_progress = now
                elif exchange.time_limit_s is not None and now - exchange.tick_of_progress > exchange.time_limit_s:
                    error = exchange.timeout_error
                    if error is not None:
                        exchange.interrupt(error())


def watch(exchange: Exchange) -> None:
    """Interrupt the exchange when its caller leaves. `receive()` has one reader, so only once its body has been read."""
    exchange.watching = True

    def received(future: object, context: object = None) -> None:
        if exchange.recorded:
            return
        message = future.result() or {}  # type: ignore[attr-defined]
        if message.get("type") == "http.disconnect":
            exchange.interrupt(ClientGone())
        elif not message.get("more_body"):
            exchange.receive().add_done_callback(received, context=None)  # type: ignore[attr-defined]

    exchange.receive().add_done_callback(received, context=None)  # type: ignore[attr-defined]


Handler = Callable[[Scope, Receive, Send], "asyncio.Future[None]"]
