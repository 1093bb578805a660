"""Time for fakes: a wall clock that may stand still, RFC 3339 text, and Go's durations."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

FOREVER_S = float("inf")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Clock:
    """The wall clock of a fake. With an epoch it stands there, so that answers can be compared byte for byte."""

    def __init__(self, epoch_s: float | None = None) -> None:
        self._epoch_ns = None if epoch_s is None else int(epoch_s * 1e9)

    def now_ns(self) -> int:
        return time.time_ns() if self._epoch_ns is None else self._epoch_ns

    def now_s(self) -> float:
        return self.now_ns() / 1e9


def rfc3339(moment_ns: int) -> str:
    """UTC with nanoseconds, as Go writes it."""
    seconds, rest = divmod(moment_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def duration_s(value: object) -> float:
    """Ollama's keep_alive in seconds: a number, a Go duration ("5m", "-1m", "1h30m"), negative meaning for ever.

    ValueError for anything else, worded as Go words it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"Unknown type: '{value}'")
    if isinstance(value, str):
        text = value.strip()
        sign = -1 if text.startswith("-") else 1
        body = text.lstrip("+-")
        parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", body)
        if body != "0" and (not parts or "".join(number + unit for number, unit in parts) != body):
            raise ValueError(f'time: invalid duration "{value}"')
        seconds = sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        seconds = float(value)
    return FOREVER_S if seconds < 0 else seconds
