"""Standing in line for a slot: this process's side of the line the hub keeps (`hub/line.py`).

A grant is a slot kept by the hub. It is counted on our own row of the board in the very callback that reads it, and
only then the hub is told (TAKEN): at no moment could the slot be seen as free by anybody. Whoever stops waiting says
LEAVE, also when a grant is already on its way; the hub then gives the slot to the next one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from fleetproxy.errors import FleetError, NoBackend, QueueFull, QueueTimeout
from fleetproxy.link.board import Board
from fleetproxy.transport.hub import HubClient
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import MAX_STREAM

#: Waiters of one process at most, whatever the hub would take.
MAX_WAITERS = 8192
#: The hub keeps the time; after this much more we stop relying on it.
GRACE_S = 1.0

_ERRORS: dict[str, type[FleetError]] = {kind.code: kind for kind in (QueueFull, QueueTimeout, NoBackend)}


class _Waiter:
    __slots__ = ("columns", "deadline_s", "granted", "number", "on_position", "principal")

    def __init__(
        self,
        number: int,
        *,
        principal: str,
        columns: tuple[int, ...],
        deadline_s: float,
        on_position: Callable[[int], None],
        granted: asyncio.Future[int],
    ) -> None:
        self.number = number
        self.principal = principal
        self.columns = columns
        self.deadline_s = deadline_s
        self.on_position = on_position
        #: The column, once its slot is counted.
        self.granted = granted


class Waiting:
    """All waiters of this process. `board` must be open on this process's own row."""

    def __init__(self, board: Board, hub: HubClient) -> None:
        self._board = board
        self._hub = hub
        self._waiters: dict[int, _Waiter] = {}
        self._numbers = itertools.cycle(range(1, MAX_STREAM))
        hub.on(frames.GRANT, self._grant)
        hub.on(frames.POSITION, self._position)
        hub.on(frames.REFUSE, self._refuse)
        hub.watch(self._hub_seen)

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(
        self, columns: tuple[int, ...], principal: str, timeout_s: float, on_position: Callable[[int], None]
    ) -> int:
        """Wait for a slot of one of the columns, the first ones preferred.

        Returns its column, with the slot counted on this process's row: the caller owes the release. `on_position` is
        told the place in line (from 1) at once and whenever it changes. Raises QueueFull, QueueTimeout, or NoBackend
        when none of the columns can be served by anybody any more. Cancelled, it leaves the line at once.
        """
        if len(self._waiters) >= MAX_WAITERS:
            raise QueueFull
        loop = asyncio.get_running_loop()
        number = next(n for n in self._numbers if n not in self._waiters)
        waiter = _Waiter(
            number,
            principal=principal[:256],
            columns=columns,
            deadline_s=loop.time() + timeout_s,
            on_position=on_position,
            granted=loop.create_future(),
        )
        self._waiters[number] = waiter
        self._join(waiter)
        timer = loop.call_at(waiter.deadline_s, self._time_up, waiter)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            granted = waiter.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                # Counted between the cancellation and now: nobody will use it.
                column = granted.result()
                self._board.add(column, -1)
                self.freed(column)
            raise
        finally:
            timer.cancel()
            if self._waiters.pop(number, None) is not None:
                self._say(frames.LEAVE, payloads.Leave(number))

    def freed(self, column: int) -> None:
        """A slot was released (and the board says so): somebody in line may have it."""
        if self._board.waiting(column) > 0:
            self._say(frames.FREED, payloads.Freed(column))

    def _say(self, kind: int, payload: payloads.Payload) -> None:
        self._hub.send(frames.encode(kind, 0, payloads.encode(payload)))

    def _join(self, waiter: _Waiter) -> None:
        left_s = waiter.deadline_s - asyncio.get_running_loop().time()
        timeout_ms = min(max(int(left_s * 1000), 0), 86_400_000)
        self._say(frames.WAIT, payloads.Wait(waiter.number, waiter.principal, waiter.columns, timeout_ms))

    def _time_up(self, waiter: _Waiter) -> None:
        """The hub answers in time, with a better word on when to come back; unless it is gone, or hangs."""
        if waiter.granted.done():
            return
        loop = asyncio.get_running_loop()
        if self._hub.connected and loop.time() < waiter.deadline_s + GRACE_S:
            loop.call_later(GRACE_S, self._time_up, waiter)
        else:
            waiter.granted.set_exception(QueueTimeout())

    # --- what the hub says ---------------------------------------------------------------------------------------

    def _grant(self, payload: bytes) -> None:
        grant = payloads.decode(payload, payloads.Grant)
        waiter = self._waiters.pop(grant.number, None)
        if waiter is None:
            return  # it left; the LEAVE that is under way gives the slot back
        if waiter.granted.done():
            self._say(frames.LEAVE, payloads.Leave(grant.number))
            return
        self._board.add(grant.column, 1)
        self._say(frames.TAKEN, payloads.Taken(grant.number))
        waiter.granted.set_result(grant.column)

    def _position(self, payload: bytes) -> None:
        for number, place in payloads.decode(payload, payloads.Position).places:
            waiter = self._waiters.get(number)
            if waiter is not None and not waiter.granted.done():
                waiter.on_position(place)

    def _refuse(self, payload: bytes) -> None:
        refuse = payloads.decode(payload, payloads.Refuse)
        waiter = self._waiters.pop(refuse.number, None)
        if waiter is not None and not waiter.granted.done():
            error = _ERRORS.get(refuse.code, QueueTimeout)
            waiter.granted.set_exception(error(retry_after_s=refuse.retry_after_s))

    def _hub_seen(self, there: bool) -> None:
        """A new hub knows nobody: everyone joins again, the longest waiting first."""
        if there:
            for waiter in self._waiters.values():
                if not waiter.granted.done():
                    self._join(waiter)
