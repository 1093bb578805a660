"""Moments as people write them: `2026-11-21T12:00:00Z`, seconds since the epoch, or how long ago, `7d`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WANTS = "an instant such as 2026-11-21T12:00:00Z, seconds since the epoch, or how long ago: 90m, 12h, 7d, 4w"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_SECONDS = re.compile(r"\d{1,11}(\.\d{1,6})?", re.ASCII)


def moment(text: str, now: datetime) -> datetime:
    """The moment in UTC; what has no zone is in UTC already. Raises ValueError for anything else than `WANTS`."""
    text = text.strip()
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if _SECONDS.fullmatch(text):
            return EPOCH + timedelta(seconds=float(text))
        # A plus sign that was not encoded in an address comes as a space.
        found = datetime.fromisoformat(text.replace(" ", "+" if "T" in text else "T"))
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"wants {WANTS}") from None
    if not EPOCH.year <= found.year <= 9000:
        raise ValueError(f"wants {WANTS}")
    return found


def microseconds(at: datetime) -> int:
    """Since the epoch."""
    return (at - EPOCH) // timedelta(microseconds=1)
