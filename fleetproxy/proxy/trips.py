"""The breakers of one process: what passing requests said about each backend, asked by `rank` through `Loads`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fleetproxy.core.backend import Backend
from fleetproxy.core.breaker import CLOSED, Breaker, Event, Policy, State, keep_out, retry_after_s, step
from fleetproxy.core.table import Snapshot
from fleetproxy.errors import FleetError, WorkerRefused
from fleetproxy.link.board import Board

if TYPE_CHECKING:
    from fleetproxy.transport.base import Headers

_FAILED_STATUS = frozenset({500, 502, 503, 504})


class Trips:
    """Only columns that are not plainly healthy are held, so the ordinary request costs one empty-dict test."""

    def __init__(
        self, clock: Callable[[], float], wall_s: Callable[[], float], observe: Callable[[str, str], object]
    ) -> None:
        self._clock = clock
        self._wall_s = wall_s
        self._observe = observe
        self._policy = Policy()
        self._columns: frozenset[int] = frozenset()
        self._breakers: dict[int, Breaker] = {}
        #: Columns not to be asked now, unless nobody else is left.
        self.out: frozenset[int] = frozenset()

    def publish(self, snapshot: Snapshot) -> None:
        """Take the policy and the columns of a snapshot; columns that are gone are forgotten."""
        limits = snapshot.limits
        self._policy = Policy(limits.eject_failures, limits.eject_s, limits.eject_max_s)
        self._columns = frozenset(routed.backend.column for routed in snapshot.table.backends if routed.usable)
        known = {routed.backend.column for routed in snapshot.table.backends}
        self._breakers = {column: breaker for column, breaker in self._breakers.items() if column in known}
        self.cool()

    def cool(self) -> None:
        """Let those whose time is over be probed. Called each second, and at each event."""
        now = self._clock()
        for column, breaker in self._breakers.items():
            if breaker.state is State.OPEN and breaker.until_s <= now:
                self._breakers[column] = step(breaker, Event.COOLED, now, self._policy)
        self._count_out()

    def answered(self, backend: Backend, status: int, headers: Headers) -> None:
        """A backend's answer has begun."""
        if status in _FAILED_STATUS:
            self._step(backend, Event.FAILED)
        elif status == 429:
            asked = next((value for name, value in headers if name == b"retry-after"), None)
            wait_s = retry_after_s(asked, self._wall_s())
            if wait_s:
                self._step(backend, Event.COOL_DOWN, wait_s)
        elif self._breakers:
            self._step(backend, Event.SUCCEEDED)

    def failed(self, backend: Backend, error: FleetError) -> None:
        """A backend gave no answer, or broke off in it. A worker that has no room is none the worse for it."""
        if isinstance(error, WorkerRefused):
            return
        self._step(backend, Event.FAILED)
        self._observe(backend.name, error.code)

    def probing(self, column: int) -> None:
        """A half-open backend has been chosen: keep others away until it has answered."""
        breaker = self._breakers.get(column)
        if breaker is not None and breaker.state is State.HALF_OPEN:
            self.out = self.out | {column}

    def states(self) -> dict[int, State]:
        return {column: breaker.state for column, breaker in self._breakers.items()}

    def _step(self, backend: Backend, event: Event, cool_down_s: float = 0.0) -> None:
        column = backend.column
        before = self._breakers.get(column, CLOSED)
        after = step(before, event, self._clock(), self._policy, cool_down_s)
        if after is before:
            return
        if after == CLOSED:
            self._breakers.pop(column, None)
        else:
            self._breakers[column] = after
        if after.state is not before.state:
            if after.state is State.OPEN:
                self._observe(backend.name, "ejected")
            elif after.state is State.CLOSED:
                self._observe(backend.name, "recovered")
        self._count_out()

    def _count_out(self) -> None:
        tripped = (column for column, breaker in self._breakers.items() if breaker.state is State.OPEN)
        self.out = keep_out(tripped, self._columns)


class Loads:
    """What `rank` asks of the outside world."""

    __slots__ = ("_board", "_trips", "load", "waiting")

    def __init__(self, board: Board, trips: Trips) -> None:
        self._board = board
        self._trips = trips
        self.load = board.load
        self.waiting = board.waiting

    def tripped(self, column: int) -> bool:
        return column in self._trips.out
