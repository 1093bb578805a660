"""Passive health: what passing requests tell about a backend, between polls.

    CLOSED ──limit failures in a row──► OPEN ──its time is up──► HALF_OPEN ──success──► CLOSED
                                          ▲                          │
                                          └──────── failure ─────────┘   (twice the time, up to a maximum)

A backend that is OPEN is asked only when nobody else is left; HALF_OPEN lets one request through as a probe. A server
that fails fast must not attract traffic, so every failure counts, however quick. At most all but one of the backends
of the fleet are kept out at once (`keep_out`): with everybody failing, asking somebody beats refusing everybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import msgspec


class State(IntEnum):
    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


class Event(IntEnum):
    SUCCEEDED = 0
    FAILED = 1
    #: The backend said itself when to come back (429 with Retry-After).
    COOL_DOWN = 2
    #: Its time out is over (`Breaker.until_s` has passed).
    COOLED = 3


class Policy(msgspec.Struct, frozen=True):
    """After `failures` in a row a backend is out for `open_s`, doubling at each failed probe up to `max_s`."""

    failures: int = 5
    open_s: float = 30.0
    max_s: float = 600.0
    #: A backend's own Retry-After is believed up to this.
    cool_down_max_s: float = 60.0


class Breaker(msgspec.Struct, frozen=True):
    """One backend's standing. Times are seconds of a monotonic clock."""

    state: State = State.CLOSED
    failures: int = 0
    until_s: float = 0.0
    #: How long it is out this time.
    open_s: float = 0.0


CLOSED = Breaker()


def step(breaker: Breaker, event: Event, now_s: float, policy: Policy, cool_down_s: float = 0.0) -> Breaker:
    """The standing after an event."""
    match breaker.state, event:
        case (State.CLOSED, Event.FAILED):
            failures = breaker.failures + 1
            if failures < policy.failures:
                return Breaker(State.CLOSED, failures)
            return Breaker(State.OPEN, failures, now_s + policy.open_s, policy.open_s)
        case (State.HALF_OPEN, Event.FAILED):
            open_s = min(max(breaker.open_s, policy.open_s) * 2, policy.max_s)
            return Breaker(State.OPEN, breaker.failures + 1, now_s + open_s, open_s)
        case (State.OPEN, Event.COOLED):
            return Breaker(State.HALF_OPEN, breaker.failures, breaker.until_s, breaker.open_s)
        case (State.OPEN, Event.SUCCEEDED):
            return breaker  # a request from before the trip: it says nothing about now
        case (_, Event.SUCCEEDED):
            return CLOSED
        case (State.CLOSED | State.HALF_OPEN, Event.COOL_DOWN):
            wait_s = min(max(cool_down_s, 0.0), policy.cool_down_max_s)
            return Breaker(State.OPEN, breaker.failures, now_s + wait_s, wait_s) if wait_s else breaker
        case _:
            return breaker


def keep_out(tripped: Iterable[int], candidates: Iterable[int]) -> frozenset[int]:
    """Which of the tripped columns are really kept out: all, unless that would leave no candidate; then none."""
    out = frozenset(tripped)
    everyone = frozenset(candidates)
    return frozenset() if everyone and everyone <= out else out


def retry_after_s(value: bytes | None, wall_s: float) -> float | None:
    """Seconds a Retry-After header asks for (RFC 9110 section 10.2.3: seconds or a date); None when it says nothing."""
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return float(text)
    return _http_date_s(text, wall_s)


_MONTHS = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), start=1
    )
}


def _http_date_s(text: str, wall_s: float) -> float | None:
    """Seconds from now until an IMF-fixdate ("Sun, 06 Nov 1994 08:49:37 GMT"); None when it is not one."""
    parts = text.replace(",", " ").replace(":", " ").split()
    if len(parts) != 8 or parts[7] != "GMT" or parts[2] not in _MONTHS:
        return None
    try:
        day, year, hour, minute, second = (int(parts[i]) for i in (1, 3, 4, 5, 6))
    except ValueError:
        return None
    month = _MONTHS[parts[2]]
    if not (1970 <= year <= 9999 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    # Days since the epoch by the civil-calendar formula (years begin in March, so the leap day comes last).
    shifted_year = year - (month <= 2)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = shifted_year * 365 + shifted_year // 4 - shifted_year // 100 + shifted_year // 400 + day_of_year - 719468
    return max(0.0, days * 86400 + hour * 3600 + minute * 60 + second - wall_s)
