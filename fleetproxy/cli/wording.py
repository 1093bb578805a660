"""Sizes, times and rates in words, the way Ollama's own command line writes them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
#: Seconds below which a duration is told in a unit, that unit's seconds, and its word.
_SPANS = (
    (3600, 60, "minutes"),
    (48 * 3600, 3600, "hours"),
    (14 * 86400, 86400, "days"),
    (60 * 86400, 7 * 86400, "weeks"),
    (730 * 86400, 30 * 86400, "months"),
    (math.inf, 365 * 86400, "years"),
)
_FOR_EVER_S = 20 * 365 * 86400.0


def size(count: int | float | None) -> str:
    """Bytes as "2.3 GB"; "-" when not known."""
    if count is None:
        return "-"
    for unit, factor in _UNITS:
        if count >= factor:
            value = count / factor
            return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{int(count)} B"


def ago(text: str, now: datetime) -> str:
    """An instant as "3 weeks ago" or "4 minutes from now"; "-" for none."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return "-"
    past_s = (now - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds()
    if past_s < -_FOR_EVER_S:
        return "Forever"
    return f"{span(past_s)} ago" if past_s >= 0 else f"{span(-past_s)} from now"


def span(seconds: float) -> str:
    """A duration as "About a minute" or "5 hours"."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if whole < 120:
        return "About a minute"
    if 3600 <= whole < 5400:
        return "About an hour"
    for below_s, unit_s, word in _SPANS:
        if whole < below_s:
            return f"{max(1, round(whole / unit_s))} {word}"
    return ""


def short_span(seconds: float) -> str:
    """A duration in little room: "45s", "12m", "5h", "3d"."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= factor:
            return f"{int(seconds / factor)}{unit}"
    return f"{int(seconds)}s"


def milliseconds(value: float | None) -> str:
    """ "12 ms", "1.24 s"; "-" when not known."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value:.2f} ms"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def count(value: float) -> str:
    """A number in little room: "950", "12.3k", "4.1M"."""
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * factor or (unit == "M" and abs(value) >= factor):
            return f"{value / factor:.1f}{unit}"
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.1f}"
