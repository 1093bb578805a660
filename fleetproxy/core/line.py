"""The waiting line: who gets the next free slot. No clock, no I/O; `now_s` is any monotonic clock's seconds.

An entry waits for one slot of any of its columns. Each column has its own turns: principals take turns, and within a
principal the oldest entry comes first. An entry that waits for something else never stands in another's way, and
nobody can be overtaken for ever: between two grants of a column to one principal, every other one that waits for it
gets one.

The line holds at most `size` entries. When it is full, the principal that holds most of it makes room for one that
holds less, by its newest entry: one busy key cannot keep the others out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

#: (connection, number on that connection).
Key = tuple[int, int]

#: Observed service rates fade with this time constant.
RATE_FADES_S = 60.0
RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 60.0
#: Said while nothing has been served yet.
RETRY_AFTER_UNKNOWN_S = 5.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One exchange that waits."""

    key: Key
    principal: str
    #: Load-board columns it can be served by, the preferred first.
    columns: tuple[int, ...]
    joined_s: float
    #: When it gives up.
    deadline_s: float


class Grant(NamedTuple):
    """A slot of `column` is kept for `entry`, until `taken` or `leave` is called with its key."""

    entry: Entry
    column: int


class _Rate:
    """Events per second, fading: a sum of exp(-age / RATE_FADES_S)."""

    __slots__ = ("_at_s", "_began_s", "_sum")

    def __init__(self, now_s: float) -> None:
        self._sum = 0.0
        self._at_s = self._began_s = now_s

    def count(self, now_s: float) -> None:
        self._sum = self._faded(now_s) + 1.0
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        # A young rate has not had RATE_FADES_S to fill up; the integral of the fading weight so far says how much.
        lived = 1.0 - math.exp(-max(now_s - self._began_s, 1.0) / RATE_FADES_S)
        return self._faded(now_s) / (RATE_FADES_S * lived)

    def _faded(self, now_s: float) -> float:
        return self._sum * math.exp(-max(now_s - self._at_s, 0.0) / RATE_FADES_S)


class Line:
    """The entries that wait, and the slots kept for those that were just granted one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: dict[Key, Entry] = {}
        #: Principal -> its entries, oldest first.
        self._of: dict[str, dict[Key, Entry]] = {}
        #: Column -> principals in turn order -> their entries for it, oldest first.
        self._turns: dict[int, dict[str, dict[Key, Entry]]] = {}
        #: Column -> how many entries wait for it.
        self._waiting: dict[int, int] = {}
        self._granted: dict[Key, int] = {}
        self._kept: dict[int, int] = {}
        self._rates: dict[int, _Rate] = {}
        #: Entries that had to make room, since start.
        self.displaced = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        """The key waits, or holds a grant not yet taken."""
        return key in self._entries or key in self._granted

    def entries(self) -> Iterable[Entry]:
        return self._entries.values()

    def columns(self) -> Iterable[int]:
        """Columns somebody waits for."""
        return self._waiting.keys()

    def waiting(self, column: int) -> int:
        return self._waiting.get(column, 0)

    def kept(self, column: int) -> int:
        """Slots granted and not yet taken or given back."""
        return self._kept.get(column, 0)

    def join(self, entry: Entry) -> Entry | None:
        """Stand in line. Returns the entry turned away for want of room (perhaps this one), None when all stay.

        A key that is in line already raises ValueError.
        """
        if entry.key in self:
            raise ValueError(f"{entry.key} waits already")
        displaced: Entry | None = None
        if len(self._entries) >= self.size:
            displaced = self._who_makes_room(entry)
            if displaced is entry:
                return entry
            self._remove(displaced)
            self.displaced += 1
        self._entries[entry.key] = entry
        self._of.setdefault(entry.principal, {})[entry.key] = entry
        for column in dict.fromkeys(entry.columns):
            self._turns.setdefault(column, {}).setdefault(entry.principal, {})[entry.key] = entry
            self._waiting[column] = self._waiting.get(column, 0) + 1
        return displaced

    def _who_makes_room(self, entry: Entry) -> Entry:
        if not self._of:
            return entry
        greediest = max(self._of.values(), key=len)
        if len(greediest) <= len(self._of.get(entry.principal, ())) + 1:
            return entry
        return greediest[next(reversed(greediest))]

    def grant(self, free: Mapping[int, int], now_s: float) -> list[Grant]:
        """Give out free slots. `free`: column -> slots nobody is counted on; slots kept here are taken off first."""
        grants: list[Grant] = []
        room = {column: slots - self.kept(column) for column, slots in free.items() if column in self._waiting}
        for column in tuple(room):
            while room[column] > 0:
                entry = self._next(column)
                if entry is None:
                    break
                # Its turn has come here; if it has also come at a free column it prefers, it goes there.
                better = entry.columns[: entry.columns.index(column)]
                open_to_it = (at for at in better if room.get(at, 0) > 0 and self._next(at) is entry)
                chosen = next(open_to_it, column)
                self._remove(entry, turn_taken=chosen)
                self._granted[entry.key] = chosen
                self._kept[chosen] = self.kept(chosen) + 1
                room[chosen] -= 1
                self._rates.setdefault(chosen, _Rate(entry.joined_s)).count(now_s)
                grants.append(Grant(entry, chosen))
        return grants

    def _next(self, column: int) -> Entry | None:
        for entries in self._turns.get(column, {}).values():
            return next(iter(entries.values()))
        return None

    def taken(self, key: Key) -> int | None:
        """The granted slot is counted elsewhere now. Returns its column; None when the key holds no grant."""
        return self._release(key)

    def leave(self, key: Key) -> int | None:
        """Out of the line at once; a slot kept for the key is free again.

        Returns the column of the slot that became free, None when there was none.
        """
        entry = self._entries.get(key)
        if entry is not None:
            self._remove(entry)
            return None
        return self._release(key)

    def leave_all(self, connection: int) -> list[int]:
        """Everything of one connection leaves; the columns whose kept slots became free."""
        for entry in [entry for key, entry in self._entries.items() if key[0] == connection]:
            self._remove(entry)
        freed = [self._release(key) for key in [key for key in self._granted if key[0] == connection]]
        return [column for column in freed if column is not None]

    def expire(self, now_s: float) -> list[Entry]:
        """Takes out and returns the entries whose time is up."""
        late = [entry for entry in self._entries.values() if entry.deadline_s <= now_s]
        for entry in late:
            self._remove(entry)
        return late

    def next_deadline_s(self) -> float | None:
        return min((entry.deadline_s for entry in self._entries.values()), default=None)

    def positions(self) -> dict[Key, int]:
        """Place of each entry, from 1: how many grants of its best column until its own, if nobody comes or goes."""
        places: dict[Key, int] = {}
        for turns in self._turns.values():
            for place, entry in enumerate(_in_turn(turns), 1):
                if place < places.get(entry.key, place + 1):
                    places[entry.key] = place
        return places

    def retry_after_s(self, columns: Iterable[int], now_s: float) -> float:
        """Seconds after which a slot of these columns should come free for somebody who comes now, whole."""
        columns = set(columns)
        rate = sum(self._rates[column].per_s(now_s) for column in columns if column in self._rates)
        if rate <= 0.0:
            return RETRY_AFTER_UNKNOWN_S
        ahead = max((self.waiting(column) for column in columns), default=0)
        return min(max(float(math.ceil((ahead + 1) / rate)), RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)

    def forget(self, columns: Iterable[int]) -> None:
        """These columns are out of use: drop what was learned of them."""
        for column in columns:
            self._rates.pop(column, None)

    def rated(self) -> Iterable[int]:
        """Columns with an observed service rate."""
        return self._rates.keys()

    def _release(self, key: Key) -> int | None:
        column = self._granted.pop(key, None)
        if column is not None:
            self._kept[column] -= 1
            if not self._kept[column]:
                del self._kept[column]
        return column

    def _remove(self, entry: Entry, turn_taken: int | None = None) -> None:
        """Out of all queues; at column `turn_taken` the principal moves behind all others."""
        del self._entries[entry.key]
        of = self._of[entry.principal]
        del of[entry.key]
        if not of:
            del self._of[entry.principal]
        for column in dict.fromkeys(entry.columns):
            turns = self._turns[column]
            entries = turns[entry.principal]
            del entries[entry.key]
            if not entries:
                del turns[entry.principal]
                if not turns:
                    del self._turns[column]
            elif column == turn_taken:
                del turns[entry.principal]
                turns[entry.principal] = entries
            if self._waiting[column] == 1:
                del self._waiting[column]
            else:
                self._waiting[column] -= 1


def _in_turn(turns: Mapping[str, Mapping[Key, Entry]]) -> Iterator[Entry]:
    """The entries of one column in the order they would be granted: one of each principal, round after round."""
    rounds = [iter(entries.values()) for entries in turns.values()]
    while rounds:
        left = []
        for entries in rounds:
            entry = next(entries, None)
            if entry is not None:
                yield entry
                left.append(entries)
        rounds = left
