"""The waiting line at work: `core/line.py` fed with the board's loads, the limits and the proxies' frames."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from fleetproxy.core.line import Entry, Key, Line
from fleetproxy.core.table import Limits, Snapshot
from fleetproxy.link.board import Board
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import FrameError

#: Slots of a backend without a limit: more than can ever be in flight.
UNLIMITED = 2**30
#: Positions are told, and lost wake-ups made good, this often.
SWEEP_S = 1.0

Send = Callable[[bytes], bool]


class WaitingLine:
    """Takes WAIT, LEAVE, TAKEN and FREED of all proxy processes; answers with GRANT, POSITION and REFUSE.

    The board's row 0 says how many wait for each column (or were just granted it): proxies send newcomers to the line,
    and FREED, while it is not zero. It is raised before loads are read, and a proxy lowers its load before it reads the
    flag, so that a release is seen by one of the two; the sweep is for what even that could lose.
    """

    def __init__(self, board: Board, loop: asyncio.AbstractEventLoop) -> None:
        self._board = board
        self._loop = loop
        self._line = Line(Limits().queue_size)
        #: A snapshot has come: what it does not have does not exist.
        self._informed = False
        self._send: dict[int, Send] = {}
        #: Column -> slots, of backends that may get work now.
        self._slots: dict[int, int] = {}
        #: The same for dial-in workers, who tell the hub themselves.
        self._worker_slots: dict[int, int] = {}
        self._flagged: set[int] = set()
        self._told: dict[Key, int] = {}
        #: Waiters that nobody could serve at the last sweep.
        self._hopeless: set[Key] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: When the timer is due, by the loop's clock.
        self._due_s = 0.0
        #: Since start: "joined", "granted", "left", and refusals by their code.
        self.counts: Counter[str] = Counter()
        board.clear_row(0)

    def __len__(self) -> int:
        return len(self._line)

    def publish(self, snapshot: Snapshot) -> None:
        """Use these limits from now on."""
        self._informed = True
        self._line.size = snapshot.limits.queue_size
        self._slots = {
            routed.backend.column: routed.backend.max_concurrent or UNLIMITED
            for routed in snapshot.table.backends
            if routed.usable and routed.backend.scheme != "hub"
        }
        self._line.forget(set(self._line.rated()) - self._slots.keys() - self._worker_slots.keys())
        self._grant(self._line.columns())

    def set_worker(self, column: int, slots: int | None) -> None:
        """A dial-in worker takes this many requests at once; None: it is gone, or takes none."""
        if slots:
            self._worker_slots[column] = slots
            self._grant((column,))
        else:
            self._worker_slots.pop(column, None)
            if column not in self._slots:
                self._line.forget((column,))

    # --- connections and their frames ----------------------------------------------------------------------------

    def connect(self, connection: int, send: Send) -> None:
        self._send[connection] = send

    def disconnect(self, connection: int) -> None:
        """Its waiters are out, its grants free."""
        del self._send[connection]
        before = set(self._line.columns())
        gone = [entry.key for entry in self._line.entries() if entry.key[0] == connection]
        freed = self._line.leave_all(connection)
        self.counts["left"] += len(gone)
        self._forget(gone)
        self._flag(before)
        self._flag(freed)
        self._grant(freed)

    def frame(self, connection: int, kind: int, payload: bytes) -> None:
        """Act on one of KINDS. Raises FrameError when it is malformed or makes no sense."""
        KINDS[kind](self, connection, payload)

    def _wait(self, connection: int, payload: bytes) -> None:
        wait = payloads.decode(payload, payloads.Wait)
        now_s = self._loop.time()
        entry = Entry(
            key=(connection, wait.number),
            principal=wait.principal,
            columns=tuple(dict.fromkeys(wait.columns)),
            joined_s=now_s,
            deadline_s=now_s + wait.timeout_ms / 1000,
        )
        if entry.key in self._line:
            raise FrameError(f"waiter {wait.number} is in line already")
        self.counts["joined"] += 1
        displaced = self._line.join(entry)
        self._flag(entry.columns)
        if displaced is not None:
            self._refuse(displaced, "queue_full")
        if entry.key in self._line:
            self._grant(entry.columns)
            self._tell((entry.key,))
            self._arm(entry.deadline_s)

    def _leave(self, connection: int, payload: bytes) -> None:
        key = (connection, payloads.decode(payload, payloads.Leave).number)
        if key not in self._line:
            return  # refused while the LEAVE was on its way
        self.counts["left"] += 1
        before = tuple(self._line.columns())
        freed = self._line.leave(key)
        self._forget((key,))
        self._flag(before)
        if freed is not None:
            self._flag((freed,))
            self._grant((freed,))

    def _taken(self, connection: int, payload: bytes) -> None:
        number = payloads.decode(payload, payloads.Taken).number
        column = self._line.taken((connection, number))
        if column is None:
            raise FrameError(f"waiter {number} holds no grant")
        self._flag((column,))

    def _freed(self, connection: int, payload: bytes) -> None:
        self._grant((payloads.decode(payload, payloads.Freed).column,))

    # --- the line moves ------------------------------------------------------------------------------------------

    def _free(self, column: int) -> int:
        slots = self._worker_slots.get(column) or self._slots.get(column, 0)
        return slots - self._board.load(column) if slots else 0

    def _grant(self, columns: Iterable[int]) -> None:
        waited = [column for column in columns if self._line.waiting(column)]
        free = {column: self._free(column) for column in waited}
        for entry, column in self._line.grant(free, self._loop.time()):
            self.counts["granted"] += 1
            self._forget((entry.key,))
            self._flag(entry.columns)
            self._say(entry.key, frames.GRANT, payloads.Grant(entry.key[1], column))

    def _refuse(self, entry: Entry, code: str) -> None:
        """Tell somebody who is out of the line already."""
        self.counts[code] += 1
        self._forget((entry.key,))
        self._flag(entry.columns)
        retry_after_s = self._line.retry_after_s(entry.columns, self._loop.time())
        self._say(entry.key, frames.REFUSE, payloads.Refuse(entry.key[1], code, retry_after_s))

    def _flag(self, columns: Iterable[int]) -> None:
        """Bring row 0 up to date for these columns. A slot kept for somebody counts, lest a newcomer takes it."""
        cells, line = self._board.cells, self._line
        for column in columns:
            cells[column] = line.waiting(column) + line.kept(column)

    def _say(self, key: Key, kind: int, payload: payloads.Payload) -> None:
        send = self._send.get(key[0])
        if send is not None:
            send(frames.encode(kind, 0, payloads.encode(payload)))

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._told.pop(key, None)
            self._hopeless.discard(key)

    def _tell(self, keys: Iterable[Key]) -> None:
        """Say their places to those whose place is not what they were told last."""
        places = self._line.positions()
        changed: dict[int, list[tuple[int, int]]] = {}
        for key in keys:
            place = places.get(key)
            if place is not None and self._told.get(key) != place:
                self._told[key] = place
                changed.setdefault(key[0], []).append((key[1], place))
        for connection, news in changed.items():
            self._say((connection, 0), frames.POSITION, payloads.Position(tuple(news)))

    # --- time ----------------------------------------------------------------------------------------------------

    def _arm(self, deadline_s: float) -> None:
        """See that somebody looks at the clock at the earliest deadline."""
        timer = self._timer
        if timer is not None and not timer.cancelled():
            if self._due_s <= deadline_s:
                return
            timer.cancel()
        # Kept here: uvloop's handles of what is due within the millisecond do not tell.
        self._due_s = deadline_s
        self._timer = self._loop.call_at(deadline_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        # A timer may fire a clock tick early.
        for entry in self._line.expire(self._loop.time() + 0.001):
            self._refuse(entry, "queue_timeout")
        deadline_s = self._line.next_deadline_s()
        if deadline_s is not None:
            self._arm(deadline_s)

    def sweep(self) -> None:
        """Once per SWEEP_S: grants whose wake-up was lost, new positions, and an end for those nobody can serve."""
        if not len(self._line):
            return
        self._grant(tuple(self._line.columns()))
        able = self._slots.keys() | self._worker_slots.keys()
        if not self._informed:
            able = able | set(self._line.columns())
        hopeless = {entry.key: entry for entry in self._line.entries() if able.isdisjoint(entry.columns)}
        # Twice in a row, because a proxy may know a newer table than we do.
        for key in self._hopeless & hopeless.keys():
            self._line.leave(key)
            self._refuse(hopeless.pop(key), "no_backend")
        self._hopeless = set(hopeless)
        self._tell(tuple(entry.key for entry in self._line.entries()))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._board.clear_row(0)


KINDS: dict[int, Callable[[WaitingLine, int, bytes], None]] = {
    frames.WAIT: WaitingLine._wait,
    frames.LEAVE: WaitingLine._leave,
    frames.TAKEN: WaitingLine._taken,
    frames.FREED: WaitingLine._freed,
}
