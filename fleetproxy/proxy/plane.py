"""What one data-plane process has: the snapshot, the board, the ways to backends, the exchanges under way."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from fleetproxy.core import access
from fleetproxy.core.admission import Admission
from fleetproxy.core.backend import Backend
from fleetproxy.core.failover import RetryBudget
from fleetproxy.core.operation import Endpoint
from fleetproxy.core.roles import vouched
from fleetproxy.core.table import Principal, Snapshot
from fleetproxy.errors import ClientGone
from fleetproxy.link.board import Board
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.proxy.body import Budget
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.recorder import Recorder
from fleetproxy.proxy.spool_file import Disk
from fleetproxy.proxy.trips import Loads, Trips
from fleetproxy.proxy.waiting import Waiting
from fleetproxy.transport.base import Transport
from fleetproxy.wire.head import Head

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
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
        waiting: Waiting,
        hub_connected: Callable[[], bool],
        processes: int = 1,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.wall_us = wall_us
        self.rng = rng or random.Random()  # noqa: S311 - breaks ties, guards nothing
        self.snapshot = snapshot
        self._others: Mapping[str, Snapshot] = {}
        self.board = board
        self.recorder = recorder
        self.transports = transports
        self.waiting = waiting
        #: Where forms are kept until their model is known; without it they go anywhere, unread.
        self.disk = disk
        self.hub_connected = hub_connected
        #: Waits until all workers that have come by now are in the snapshots.
        self.hub_settled: Callable[[], Awaitable[None]] | None = None
        #: Our pseudonym in Via (RFC 9110 section 7.6.3): the same for all processes of this instance.
        self.via = f"1.1 fleetproxy-{instance}".encode()
        #: Tells control that a backend failed or recovered in passing.
        self.observe: Callable[[str, str], object] = lambda backend, kind: None
        self.budget = Budget(snapshot.limits.buffered_bytes)
        self.trips = Trips(clock, lambda: wall_us() / 1e6, self._tell)
        self.retries = RetryBudget(snapshot.limits.retry_budget)
        self.loads = Loads(board, self.trips)
        self.admission = Admission(processes)
        self.counters: Counter[str] = Counter()
        self.live: set[Exchange] = set()
        self.draining = False
        #: Called once when this process begins to leave.
        self.on_drain: list[Callable[[], None]] = []
        self._numbers = itertools.count(int.from_bytes(os.urandom(4)))
        self._id_tail = os.urandom(5).hex()
        self._good_hosts: set[bytes] = set()
        self._proxies = access.networks(snapshot.access.trusted_proxies)

    def publish(self, snapshot: Snapshot, others: Mapping[str, Snapshot] | None = None) -> None:
        """Use this snapshot for new exchanges: one assignment. `others` have the routing tables of `Endpoint.table`."""
        self._good_hosts = set()
        self._proxies = access.networks(snapshot.access.trusted_proxies)
        self.budget.limit_bytes = snapshot.limits.buffered_bytes
        self.retries.share = snapshot.limits.retry_budget
        self._others = others or {}
        self.trips.publish(self._others.get("audio", snapshot))
        self.snapshot = snapshot

    def snapshot_for(self, endpoint: Endpoint) -> Snapshot:
        """The snapshot with the routing table that an endpoint's requests are ranked by."""
        return self._others.get(endpoint.table, self.snapshot) if endpoint.table else self.snapshot

    async def settle(self, exchange: Exchange) -> None:
        """Before a worker or its model is said not to be there: what the hub knows by now, this exchange knows too."""
        exchange.snapshot = await self.settled(exchange.endpoint)

    async def settled(self, endpoint: Endpoint) -> Snapshot:
        """The endpoint's snapshot with all workers that have come by now."""
        if self.hub_settled is not None:
            await self.hub_settled()
        return self.snapshot_for(endpoint)

    def _tell(self, backend: str, kind: str) -> None:
        self.observe(backend, kind)

    # --- exchanges -----------------------------------------------------------------------------------------------

    def begin(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint, head: Head) -> Exchange:
        """A new exchange; `end` it."""
        wall_us = self.wall_us()
        exchange = Exchange(
            scope=scope,
            receive=receive,
            send=send,
            endpoint=endpoint,
            head=head,
            snapshot=self.snapshot if not endpoint.table else self.snapshot_for(endpoint),
            request_id=self.request_id_of(head, wall_us),
            started_at=self.clock(),
            started_at_us=wall_us,
            task=asyncio.current_task(),
        )
        client = scope["client"]
        if client is not None:
            exchange.remote_ip = (
                client[0] if not self._proxies else access.client_address(client[0], head.own, self._proxies)
            )
        self.retries.request(exchange.started_at)
        self.live.add(exchange)
        return exchange

    def end(self, exchange: Exchange) -> None:
        """The last step of every exchange: its row, if it has none yet."""
        self.live.discard(exchange)
        if not exchange.recorded:
            self.recorder.put(exchange)

    def admit(self, exchange: Exchange) -> Principal | None:
        """Count the exchange against its principal's limits; give the result to `dismiss`. Raises RateLimited."""
        principal = exchange.principal
        if principal is None or (principal.max_in_flight is None and principal.requests_per_minute is None):
            return None
        self.admission.admit(principal, self.clock())
        return principal

    def dismiss(self, principal: Principal | None) -> None:
        if principal is not None:
            self.admission.dismiss(principal)

    def freed(self, column: int) -> None:
        """A slot was released: if somebody stands in line for it, the hub is told."""
        if self.board.cells[column] > 0:
            self.waiting.freed(column)

    def host_allowed(self, host: bytes) -> bool:
        """The Host names we answer to (DNS rebinding); looked up once each."""
        if host in self._good_hosts:
            return True
        if not access.host_allowed(host, self.snapshot.access.hosts):
            return False
        if len(self._good_hosts) < 1024:
            self._good_hosts.add(host)
        return True

    def roles(self, scope: Scope, own: access.Own) -> frozenset[str]:
        """The roles that a trusted proxy vouches for."""
        client = scope["client"]
        return vouched(own.get(b"x-user-roles"), client[0] if client is not None else "", self._proxies)

    def transport(self, backend: Backend) -> Transport:
        if backend.http2:
            return self.transports["http2"]
        return self.transports["hub" if backend.scheme == "hub" else "http1"]

    def request_id_of(self, head: Head, wall_us: int) -> str:
        """The caller's own id where it is a sane one, else a new one."""
        given = head.own.get(b"x-request-id")
        return given.decode("ascii") if given is not None and _SANE_ID.match(given) else self.request_id(wall_us)

    def request_id(self, wall_us: int) -> str:
        """A UUIDv7 (RFC 9562 section 5.7): milliseconds, then a counter and a random tail of this process."""
        number = next(self._numbers) & 0xFFFFFFFF
        text = "%012x7%08x" % (wall_us // 1000, number)  # noqa: UP031 - half the cost of the same f-string
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-8{text[16:19]}-{text[19:]}{self._id_tail}"

    async def idle(self, deadline: float, stop: asyncio.Event) -> None:
        """Return when no exchange is under way, at `deadline` (this plane's clock), or when told to stop."""
        while not self._rests() and self.clock() < deadline and not stop.is_set():  # noqa: ASYNC110 - there are many
            await asyncio.sleep(TICK_S)

    def _rests(self) -> bool:
        return all(exchange.lasting for exchange in self.live)

    async def sweep(self) -> None:
        """Every tick: watch for callers leaving, end what has been without progress for too long. Never returns."""
        while True:
            await asyncio.sleep(TICK_S)
            self._look(self.clock())

    def _look(self, now: float) -> None:
        # A frame of its own: a name in one that sleeps would keep the last exchange, and its caller's connection, open.
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
    """Interrupt the exchange when its caller leaves. Only once its body has been read: `receive()` has one reader."""
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
