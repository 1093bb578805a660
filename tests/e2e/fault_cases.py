"""How often a case is repeated, and which cases there are."""

from __future__ import annotations

import os

#: The catalogue's cases of the first order in these families: each must have a test.
FIRST_ORDER = {
    "U": (
        *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 20, 21, 22, 23, 27),
        *(31, 32, 33, 34, 35, 36, 38, 40, 42, 43, 47, 49, 54),
    ),
    "C": (1, 2, 3, 4, 5, 8, 12, 13, 14, 15, 19, 20, 21, 22, 26, 27, 28, 29, 30, 31, 34, 35, 36, 40, 41, 43),
    "J": (1, 2, 3, 4, 5, 8),
    "S": (1, 2, 3, 4, 7),
    "P": (1, 2, 3, 4, 5, 6, 8, 9, 10, 14),
    "W": (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 24, 26, 29, 30, 31, 34),
    "M": (1, 2, 5, 7, 8, 10),
    "T": (1, 2, 3, 4, 6, 7, 8, 9, 10, 11),
}


def rounds(few: int, full: int) -> int:
    """Repetitions of a case: few by default, the catalogue's number with FLEETPROXY_FAULT_ROUNDS=full."""
    return full if os.environ.get("FLEETPROXY_FAULT_ROUNDS") == "full" else few
