"""Counting with a cap: so many combinations of labels per family, then everything further under `other`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from fleetproxy.control.metrics.families import OTHER, SHARES_FOR, Family

Labels = tuple[str, ...]


class Bins:
    """One histogram. Values and bounds are milliseconds: what records hold; seconds are made when it is shown."""

    __slots__ = ("bounds_ms", "counts", "sum_ms")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_ms = [bound * 1000 for bound in bounds_s]
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_ms = 0.0

    def add(self, value_ms: float) -> None:
        self.counts[bisect_left(self.bounds_ms, value_ms)] += 1
        self.sum_ms += value_ms


class Tally:
    """One counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Overflow:
    """How often something found no room of its own."""

    def __init__(self) -> None:
        self.count = 0


class Capped:
    """The combinations of labels of one family that have come up, up to its share."""

    def __init__(self, family: Family, max_series: int, overflow: Overflow) -> None:
        self.family = family
        self.limit = max(1, family.share * max_series // SHARES_FOR)
        self._overflow = overflow
        self._tallies: dict[Labels, Tally] = {}
        self._bins: dict[Labels, Bins] = {}

    def tally(self, labels: Labels) -> Tally:
        found = self._tallies.get(labels)
        if found is None:
            labels = self._admit(labels, len(self._tallies))
            found = self._tallies.setdefault(labels, Tally())
        return found

    def bins(self, labels: Labels) -> Bins:
        found = self._bins.get(labels)
        if found is None:
            labels = self._admit(labels, len(self._bins))
            found = self._bins.get(labels)
            if found is None:
                found = self._bins[labels] = Bins(self.family.buckets)
        return found

    def tallies(self) -> Iterator[tuple[Labels, int]]:
        for labels, tally in list(self._tallies.items()):
            yield labels, tally.value

    def histograms(self) -> Iterator[tuple[Labels, Bins]]:
        yield from list(self._bins.items())

    def _admit(self, labels: Labels, taken: int) -> Labels:
        """The labels themselves while there is room; the last place belongs to `other`."""
        if taken < self.limit - 1 or not labels:
            return labels
        self._overflow.count += 1
        return (OTHER,) * len(labels)


class Names:
    """Label values of one kind: those the fleet knows, up to a cap; everything else is `other`.

    A name that was once given out stays, also after the fleet forgets it: its counters must not change their labels.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._given: dict[str, str] = {}
        #: Name as it is compared -> as it is shown.
        self.known: dict[str, str] = {}

    def label(self, name: str | None) -> str:
        if not name:
            return ""
        given = self._given.get(name)
        if given is not None:
            return given
        shown = self.known.get(name)
        if shown is None or len(self._given) >= self._cap:
            return OTHER
        self._given[name] = shown
        return shown
