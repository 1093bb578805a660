"""How many users when: pure functions of time; steady.py, spike.py and soak.py give them to Locust."""

from __future__ import annotations

import math
from collections.abc import Callable

#: (users, users started or stopped a second); None ends the run.
Tick = tuple[int, float] | None
Shape = Callable[[float, int, float], Tick]

#: Where the command line says nothing.
DEFAULT_USERS, DEFAULT_LENGTH_S = 30, 120.0


def steady(elapsed_s: float, users: int, length_s: float) -> Tick:
    """Up within the first tenth, then as many to the end."""
    return None if elapsed_s >= length_s else (users, _rate(users, length_s / 10))


def spike(elapsed_s: float, users: int, length_s: float) -> Tick:
    """A quarter of the users; all of them at once from 30 % to 50 % and from 70 % to 80 % of the time."""
    if elapsed_s >= length_s:
        return None
    share = elapsed_s / length_s
    crowd = 0.3 <= share < 0.5 or 0.7 <= share < 0.8
    return (users, float(users)) if crowd else (max(1, users // 4), float(users))


def soak(elapsed_s: float, users: int, length_s: float) -> Tick:
    """Six slow waves between half of the users and all of them."""
    if elapsed_s >= length_s:
        return None
    wave = (1 - math.cos(12 * math.pi * elapsed_s / length_s)) / 2
    return max(1, round(users * (0.5 + 0.5 * wave))), _rate(users, length_s / 20)


def _rate(users: int, within_s: float) -> float:
    return max(1.0, users / max(within_s, 1.0))
