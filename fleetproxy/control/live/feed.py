"""The live stream's one maker: looks at the fleet twice a second while somebody watches, and says what is different.

    fleet, workers, board, agents ──► look() ──► frames (numbered, kept in a bounded ring) ──► watchers
    audit rows (store's thread)   ──► feed() ──┘
    rows control writes down      ──► hear() ──┘

Each watcher is sent whole states first and differences after that. One that comes back with the number of the last
frame it has seen gets what it missed, as long as the ring still has it.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from fleetproxy.control.analytics.rows import Row
from fleetproxy.control.live.changes import Changes
from fleetproxy.control.live.picture import Picture, Sight
from fleetproxy.control.live.rates import Rates
from fleetproxy.control.live.shapes import Shown, instant, request
from fleetproxy.core.record import AuditRecord
from fleetproxy.errors import ProxyError, RateLimited
from fleetproxy.link.messages import Count

Topic = Literal["fleet", "models", "requests", "events", "pulls"]
TOPICS: tuple[Topic, ...] = ("fleet", "models", "requests", "events", "pulls")

#: Between two looks while somebody watches; while nobody does.
LOOK_S, IDLE_LOOK_S = 0.5, 5.0
#: Looking may take at most this share of the time.
_SHARE = 0.1
#: Somebody who left may come back for what was missed.
COMES_BACK_S = 60.0
MAX_WATCHERS, MAX_OF_ONE = 256, 32
RING_FRAMES, RING_BYTES = 2000, 4 * 1024 * 1024
#: Requests told in one frame; of more, the newest.
MAX_ROWS = 100
#: Rows of requests that ended longer ago (a spool that waited) are history, not news.
STALE_S = 60.0
PING_S = 15.0


class TooManyWatchers(ProxyError):
    """Too many browsers watch the fleet already; close some, or try again shortly."""

    code, retry_after_s = "too_many_watchers", 5.0


class TooManyOfOne(RateLimited):
    """You watch the fleet in too many windows already; close some."""

    retry_after_s = 5.0


class Frame(msgspec.Struct, frozen=True):
    number: int
    topic: Topic
    data: bytes


class Live:
    """One per control process. Runs on the loop; `feed` is called in the store's thread."""

    def __init__(
        self,
        sight: Sight,
        *,
        hosts: Callable[[], Mapping[str, str]],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        boot: str = "",
    ) -> None:
        self.boot = boot or secrets.token_hex(6)
        self.rates = Rates()
        self.changes = Changes()
        self.picture = Picture(sight, self.rates)
        #: Set when control leaves: streams end.
        self.closed = asyncio.Event()
        #: Watchers let go because they did not read; refused; frames made; requests told and left out.
        self.counts: Counter[str] = Counter()
        self.watchers: Counter[str] = Counter()
        self.hosts = hosts
        self._wall = wall
        self._clock = clock
        self._ring: deque[Frame] = deque()
        self._ring_bytes = 0
        self._number = 0
        self._news = asyncio.Event()
        self._come = asyncio.Event()
        self._last_watched = self._looked = float("-inf")
        self._lock = threading.Lock()
        self._ended: deque[AuditRecord] = deque(maxlen=MAX_ROWS)
        self._skipped = 0
        self._told_change = 0
        self._pulls: list[Shown] = []

    # --- what happens ----------------------------------------------------------------------------------------

    def feed(self, records: Sequence[AuditRecord]) -> None:
        """Audit rows, each once: called in the store's thread."""
        now_s = self._wall()
        self.rates.feed(records, now_s)
        if not self._is_watched():
            return
        fresh = [one for one in records if one.started_at_us / 1e6 + one.total_ms / 1000 > now_s - STALE_S]
        with self._lock:
            self._skipped += max(0, len(self._ended) + len(fresh) - MAX_ROWS)
            self._ended.extend(fresh)

    def hear(self, row: Row) -> None:
        """Something was written down."""
        self.changes.hear(row)

    def count(self, process: str, message: Count) -> None:
        """A process has told how it is doing."""
        self.picture.count(process, message)

    def left(self, process: str) -> None:
        """A process's connection ended."""
        self.picture.left(process)

    def close(self) -> None:
        """Control leaves: streams end."""
        self.closed.set()

    # --- looking ---------------------------------------------------------------------------------------------

    async def run(self, ready: asyncio.Event) -> None:
        """Look again and again, from when the fleet is known, until cancelled."""
        await ready.wait()
        while True:
            began = self._clock()
            self.look()
            took_s = self._clock() - began
            pause_s = max(LOOK_S if self._is_watched() else IDLE_LOOK_S, took_s / _SHARE)
            if pause_s > LOOK_S and not self._is_watched():
                self._come.clear()
                try:
                    async with asyncio.timeout(pause_s):
                        await self._come.wait()
                except TimeoutError:
                    pass
            else:
                await asyncio.sleep(pause_s)

    def fresh(self) -> None:
        """Have a picture that is not older than one of the stream."""
        if self._clock() - self._looked >= LOOK_S:
            self.look()

    def look(self) -> None:
        """Take a picture, and make frames of what is different."""
        self._looked = self._clock()
        at_s = self._wall()
        self.picture.take(at_s, self.changes)
        if self.watchers:
            self._last_watched = self._clock()
        if not self._is_watched():
            self._told_change = self.changes.number
            self.picture.differences(at_s)
            return
        frames: list[tuple[Topic, Any]] = []
        fleet, models = self.picture.differences(at_s)
        if fleet is not None:
            frames.append(("fleet", fleet))
        if models is not None:
            frames.append(("models", models))
        if changes := self.changes.after(self._told_change):
            self._told_change = self.changes.number
            frames.append(("events", {"whole": False, "events": changes}))
        if ended := self._ended_now():
            frames.append(("requests", ended))
        pulls = self.picture.pulls()
        if pulls != self._pulls:
            self._pulls = pulls
            frames.append(("pulls", {"pulls": pulls}))
        for topic, value in frames:
            self._put(topic, value)
        if frames:
            self._news.set()
            self._news = asyncio.Event()

    def _ended_now(self) -> Shown | None:
        with self._lock:
            ended, skipped = list(self._ended), self._skipped
            self._ended.clear()
            self._skipped = 0
        if not ended and not skipped:
            return None
        hosts = self.hosts()
        self.counts["requests"] += len(ended)
        self.counts["requests_skipped"] += skipped
        return {"rows": [request(record, hosts) for record in ended], "skipped": skipped}

    def _put(self, topic: Topic, value: Any) -> None:
        self._number += 1
        frame = Frame(self._number, topic, event(topic, value, f"{self.boot}-{self._number}"))
        self.counts["frames"] += 1
        self._ring.append(frame)
        self._ring_bytes += len(frame.data)
        while len(self._ring) > RING_FRAMES or self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft().data)

    def _is_watched(self) -> bool:
        return bool(self.watchers) or self._clock() - self._last_watched < COMES_BACK_S

    # --- watching --------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, who: str, topics: frozenset[Topic], seen: str, hello: Shown) -> Iterator[Watcher]:
        """For as long as somebody watches. Raises TooManyWatchers, TooManyOfOne."""
        if self.watchers.total() >= MAX_WATCHERS:
            self.counts["refused"] += 1
            raise TooManyWatchers
        if self.watchers[who] >= MAX_OF_ONE:
            self.counts["refused"] += 1
            raise TooManyOfOne
        self.fresh()
        self.watchers[who] += 1
        self._come.set()
        try:
            yield Watcher(self, topics, seen, hello)
        finally:
            self._last_watched = self._clock()
            self.watchers[who] -= 1
            if not self.watchers[who]:
                del self.watchers[who]

    @property
    def number(self) -> int:
        """Of the newest frame."""
        return self._number

    async def news(self, timeout_s: float) -> bool:
        """Until there is a new frame: True; False when the time is over first."""
        news = self._news
        try:
            async with asyncio.timeout(timeout_s):
                await news.wait()
        except TimeoutError:
            return False
        return True

    def since(self, number: int) -> list[Frame] | None:
        """The frames after this number; None when they are not all here any more."""
        if number > self._number:
            return None
        frames = [frame for frame in self._ring if frame.number > number]
        return frames if len(frames) == self._number - number else None

    def whole(self, topics: frozenset[Topic]) -> bytes:
        """The states as they are at the newest frame."""
        at_s = self._wall()
        states: dict[Topic, Any] = {
            "fleet": lambda: self.picture.whole_fleet(at_s),
            "models": self.picture.whole_models,
            "events": lambda: {"whole": True, "events": self.changes.after(0)},
            "pulls": lambda: {"pulls": self._pulls},
        }
        number = f"{self.boot}-{self._number}"
        return b"".join(event(topic, state(), number) for topic, state in states.items() if topic in topics)


class Watcher:
    """One stream's place. A `control.api.stream.Source`."""

    def __init__(self, live: Live, topics: frozenset[Topic], seen: str, hello: Shown) -> None:
        self.closed = live.closed
        self._live = live
        self._topics = topics
        self._hello: Shown | None = hello
        self._seen = _number(seen, live.boot)
        self._ping = False

    def frame(self) -> bytes:
        live, ping = self._live, self._ping
        self._ping = False
        missed = live.since(self._seen) if self._seen is not None else None
        hello = b""
        if self._hello is not None:
            said = {"boot": live.boot, "resumed": missed is not None, **self._hello}
            hello = b"retry: 2000\n" + event("hello", said)
            self._hello = None
        elif missed is None:
            hello = event("hello", {"boot": live.boot, "resumed": False, "at": instant(time.time())})
        self._seen = live.number
        if missed is None:
            return hello + live.whole(self._topics)
        pieces = b"".join([frame.data for frame in missed if frame.topic in self._topics])
        return hello + pieces or (b": ping\n\n" if ping else b"")

    async def next(self) -> None:
        if self._seen == self._live.number:
            self._ping = not await self._live.news(PING_S)

    def goodbye(self, reason: str) -> bytes:
        return event("bye", {"reason": reason})

    def too_slow(self) -> None:
        self._live.counts["too_slow"] += 1


def event(name: str, value: Any, number: str = "") -> bytes:
    """One server-sent event."""
    head = b"event: %b\n" % name.encode()
    if number:
        head += b"id: %b\n" % number.encode()
    return head + b"data: " + msgspec.json.encode(value) + b"\n\n"


def _number(seen: str, boot: str) -> int | None:
    """The number in an event id of this boot."""
    known, _, number = seen.rpartition("-")
    return int(number) if known == boot and number.isascii() and number.isdigit() and len(number) < 16 else None
