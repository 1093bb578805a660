"""Who is connected: the dial-in workers, their columns on the load board, and the news of their coming and going."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from fleetproxy.core.worker import MAX_LABEL_CHARACTERS, Offer, WireProtocol, Worker, printable, unique_name
from fleetproxy.hub.line import WaitingLine
from fleetproxy.hub.streams import Link, Stream
from fleetproxy.link.board import WORKER_COLUMNS, Board

_log = logging.getLogger("fleetproxy.hub")

#: News of comings and goings are gathered this long, news of changes that long: at most four a second of one worker.
JOINS_GATHER_S, CHANGES_GATHER_S = 0.02, 0.25
#: Workers that have left and would get their column back.
REMEMBERED = 4096

Key = tuple[str, str]


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker calls itself."""

    family: str
    worker_id: str
    worker_name: str
    protocol: WireProtocol
    version: str = ""
    build_sha: str = ""
    build_date: str = ""
    remote: str = ""
    #: Whose key or role it came in by (`core/dialin.owner`).
    owner: str = ""


def known_as(worker_id: str) -> str:
    """The id a worker goes by here, of what it calls itself; "" when that is nothing."""
    return printable(worker_id, MAX_LABEL_CHARACTERS)


class Connected:
    """One connected worker. Its socket is known to its session alone."""

    def __init__(self, worker: Worker, link: Link, dismiss: Callable[[str], None], owner: str = "") -> None:
        self.worker = worker
        self.owner = owner
        #: What it offers itself; `worker.offer` is what it may be asked for.
        self.said = worker.offer
        self.link = link
        #: Closes its socket with this reason.
        self.dismiss = dismiss
        self.streams: set[Stream] = set()
        self.processed = 0
        self.failed = 0

    @property
    def key(self) -> Key:
        return self.worker.family, self.worker.id

    def take(self, stream: Stream, request: bytes) -> None:
        """Pass a request on, or say at once why not. The one exact place for `max_concurrency`."""
        offer = self.worker.offer
        code: str | None = "worker_busy"
        if offer.status != "idle":
            code = "worker_refused"
        elif len(self.streams) < offer.max_concurrency:
            self.streams.add(stream)
            code = self.link.open(stream, request)
        if code is not None:
            self.streams.discard(stream)
            stream.refuse(code)

    def finished(self, stream: Stream) -> None:
        self.streams.discard(stream)
        self.processed += 1

    def lose(self) -> None:
        """Its socket is gone: what runs on it fails now, visibly."""
        for stream in tuple(self.streams):
            self.failed += 1
            self.link.cancel(stream)  # what it holds for the stream goes with it
            stream.reset("backend_lost" if stream.answered else "backend_reset")


class News(msgspec.Struct, frozen=True):
    """What changed since the last news."""

    #: As they are now.
    present: tuple[Worker, ...]
    #: Family and id of those that have gone.
    left: tuple[Key, ...]


class Workers:
    """The registry. `tell(news)` is called on the loop, soon after something changed."""

    def __init__(
        self,
        board: Board,
        waiting: WaitingLine,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[News], None],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._board = board
        self._waiting = waiting
        self._loop = loop
        self._tell = tell
        self._wall_s = wall_s
        self._by_key: dict[Key, Connected] = {}
        self._by_column: dict[int, Connected] = {}
        self._free = deque(WORKER_COLUMNS)
        self._columns: OrderedDict[Key, int] = OrderedDict()
        self._changed: dict[Key, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: When the timer is due, by the loop's clock.
        self._due_s = 0.0
        self._told_s = 0.0
        #: To be called once everything that has changed by now has been told.
        self._curious: list[Callable[[], object]] = []
        #: Names of configured servers: no worker gets one of them.
        self.reserved_names: frozenset[str] = frozenset()
        #: Drained by an operator: they get nothing new, whatever they say.
        self._resting: frozenset[Key] = frozenset()
        #: Since start: "joined", "left", "superseded", "refused_full".
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Connected]:
        return iter(tuple(self._by_key.values()))

    def find(self, column: int, worker_id: str) -> Connected | None:
        """The worker a route leads to; None when it has left, also when its column serves another one since."""
        connected = self._by_column.get(column)
        return connected if connected is not None and connected.worker.id == worker_id else None

    def connected(self, family: str, worker_id: str) -> Connected | None:
        """The worker of this id, if it is there."""
        return self._by_key.get((family, worker_id))

    def join(self, who: Credentials, offer: Offer, link: Link, dismiss: Callable[[str], None]) -> Connected | None:
        """Take a worker in; one of the same id makes room, its socket is old. None when no column is left."""
        worker_id = known_as(who.worker_id) or secrets.token_hex(8)
        key = (who.family, worker_id)
        old = self._by_key.get(key)
        if old is not None:
            self.counts["superseded"] += 1
            _log.warning(
                "worker %s (%s) dialled in again, from %s; its old connection, from %s, is closed",
                worker_id,
                who.family,
                who.remote,
                old.worker.remote,
            )
            self.leave(old)
            old.dismiss("superseded")
        column = self._column(key)
        if column is None:
            self.counts["refused_full"] += 1
            return None
        name = printable(who.worker_name, MAX_LABEL_CHARACTERS) or worker_id[:8]
        taken = {connected.worker.name for connected in self._by_key.values()} | self.reserved_names
        now_s = self._wall_s()
        worker = Worker(
            id=worker_id,
            name=unique_name(name, worker_id, taken),
            family=who.family,
            column=column,
            protocol=who.protocol,
            version=printable(who.version, MAX_LABEL_CHARACTERS),
            build_sha=printable(who.build_sha, MAX_LABEL_CHARACTERS),
            build_date=printable(who.build_date, MAX_LABEL_CHARACTERS),
            remote=who.remote,
            offer=offer.bounded(),
            connected_at_s=now_s,
            last_heartbeat_s=now_s,
        )
        connected = Connected(worker, link, dismiss, who.owner)
        connected.worker = self._held_back(connected)
        worker = connected.worker
        self._by_key[key] = self._by_column[column] = connected
        self.counts["joined"] += 1
        self._waiting.set_worker(column, worker.offer.slots)
        self._announce(key, JOINS_GATHER_S)
        _log.info("worker %s (%s) joined with %d models", worker.name, worker.id, len(worker.offer.models))
        return connected

    def leave(self, connected: Connected) -> None:
        """It is gone; its requests fail. Harmless for one that was superseded, however late its socket closes."""
        key, column = connected.key, connected.worker.column
        if self._by_key.get(key) is not connected:
            return
        del self._by_key[key], self._by_column[column]
        self.counts["left"] += 1
        self._waiting.set_worker(column, None)
        connected.lose()
        self._announce(key, JOINS_GATHER_S)
        _log.info("worker %s (%s) left", connected.worker.name, connected.worker.id)

    def update(self, connected: Connected, offer: Offer) -> None:
        """It offers something else from now on."""
        connected.said = offer.bounded()
        before, connected.worker = connected.worker, self._held_back(connected)
        if connected.worker.offer != before.offer and self._by_key.get(connected.key) is connected:
            self._waiting.set_worker(connected.worker.column, connected.worker.offer.slots)
            self._announce(connected.key, CHANGES_GATHER_S)

    def rest(self, keys: frozenset[Key]) -> None:
        """These are drained by an operator, the others are not."""
        before, self._resting = self._resting, keys
        for key in before ^ keys:
            connected = self._by_key.get(key)
            if connected is not None:
                self.update(connected, connected.said)

    def _held_back(self, connected: Connected) -> Worker:
        """The worker with what it may be asked for now."""
        offer = connected.said
        if connected.key in self._resting and offer.status == "idle":
            offer = msgspec.structs.replace(offer, status="draining")
        return msgspec.structs.replace(connected.worker, offer=offer)

    def heard(self, connected: Connected, cpu_percent: float, ram_percent: float) -> None:
        """A sign of life, with how its machine is doing."""
        connected.worker = msgspec.structs.replace(
            connected.worker, last_heartbeat_s=self._wall_s(), cpu_percent=cpu_percent, ram_percent=ram_percent
        )

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _column(self, key: Key) -> int | None:
        """The column it had before, if nobody has it now; else one that has rested longest, with nothing counted on."""
        had = self._columns.get(key)
        if had is not None and had not in self._by_column:
            self._columns.move_to_end(key)
            return had
        for _ in range(len(self._free)):
            column = self._free.popleft()
            self._free.append(column)
            if column not in self._by_column and not self._board.load(column) and not self._board.waiting(column):
                self._columns[key] = column
                if len(self._columns) > REMEMBERED:
                    self._columns.popitem(last=False)
                return column
        return None

    def _announce(self, key: Key, within_s: float) -> None:
        self._changed[key] = None
        due = self._loop.time() + within_s
        if self._timer is not None:
            if self._due_s <= due:
                return
            self._timer.cancel()
        self._say_at(due)

    def when_told(self, then: Callable[[], object]) -> None:
        """Call `then` when everybody has been told what has changed by now: at once, or as soon as joins are told."""
        if self._timer is None:
            then()
            return
        self._curious.append(then)
        wait_s = self._told_s + JOINS_GATHER_S - self._loop.time()
        if wait_s <= 0.0:
            self._timer.cancel()
            self._say()
        elif self._told_s + JOINS_GATHER_S < self._due_s:
            self._timer.cancel()
            self._say_at(self._told_s + JOINS_GATHER_S)

    def _say_at(self, due_s: float) -> None:
        # Kept here: uvloop's handles of what is due within the millisecond do not tell.
        self._due_s = due_s
        self._timer = self._loop.call_at(due_s, self._say)

    def _say(self) -> None:
        self._timer = None
        self._told_s = self._loop.time()
        changed, self._changed = self._changed, {}
        self._tell(self.news(changed))
        curious, self._curious = self._curious, []
        for then in curious:
            then()

    def news(self, keys: Iterable[Key] | None = None) -> News:
        """How these workers (all, when not said which) stand now."""
        keys = self._by_key if keys is None else keys
        present = tuple(self._by_key[key].worker for key in keys if key in self._by_key)
        return News(present, tuple(key for key in keys if key not in self._by_key))
