"""How far another machine's clock is from ours, by the `Date` of its answers."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Clocks further apart than this make times of two machines hard to compare.
SKEW_S = 5.0


def skew_s(date: str) -> float | None:
    """Seconds it is ahead of us; None when it tells no time."""
    try:
        theirs = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return None
    # "-0000" is UTC from somebody who does not say where he is.
    return ((theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
