"""Counts of times by size, in buckets that grow by a fixed ratio: what is kept of latencies when the rows are gone.

Bucket 0 holds everything up to `LEAST_MS`; bucket k what is above `LEAST_MS * RATIO**(k-1)`, up to `LEAST_MS *
RATIO**k`; the last one has no upper end. Eight buckets for each doubling, from a hundredth of a millisecond to eleven
hours, so that one byte names a bucket. Counts of the same bucket add up: of hours a day is made, of models a fleet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

LEAST_MS = 0.01
PER_DOUBLING = 8
RATIO = 2 ** (1 / PER_DOUBLING)
LAST = 255
#: A quantile is told from its bucket's counts alone; it is off by less than the bucket's width.
ERROR = RATIO - 1


def bucket(value_ms: float) -> int:
    """The bucket of a time. The store does the same in SQL."""
    if value_ms <= LEAST_MS:
        return 0
    return min(LAST, math.ceil(PER_DOUBLING * math.log2(value_ms / LEAST_MS)))


def bounds(number: int) -> tuple[float, float]:
    """The times between which a bucket lies, in milliseconds: above the first, up to the second."""
    high = LEAST_MS * RATIO**number
    return (0.0, high) if number == 0 else (high / RATIO, high)


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """The time in milliseconds below which the share `q` of all lies; None of nothing.

    As with the rows themselves, it lies between the two nearest of them; each is taken to be where it would be if its
    bucket were filled evenly.
    """
    total = sum(counts.values())
    if not total:
        return None
    place = q * (total - 1)
    low = int(place)
    first = _at(counts, low)
    return first if place == low else first + (place - low) * (_at(counts, low + 1) - first)


def quantiles(counts: Mapping[int, int], wanted: tuple[float, ...]) -> list[float] | None:
    """Several at once, in the order asked for; None of nothing."""
    found = [quantile(counts, q) for q in wanted]
    return None if found[0] is None else [value for value in found if value is not None]


def _at(counts: Mapping[int, int], rank: int) -> float:
    """The time of the one with that many below it."""
    number = below = 0
    for number in sorted(counts):
        if below + counts[number] > rank:
            break
        below += counts[number]
    low, high = bounds(number)
    share = (rank - below + 0.5) / counts[number]
    return high * share if number == 0 else low * RATIO**share
