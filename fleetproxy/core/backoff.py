"""How long somebody who keeps failing to log in must wait. Times are seconds of one monotonic clock."""

from __future__ import annotations

import ipaddress

import msgspec

#: Failures that cost nothing but themselves, within WINDOW_S.
FREE = 10
WINDOW_S = 600.0
#: The wait doubles with each further failure, up to this; nobody is locked out for good.
LONGEST_S = 900.0


class Failures(msgspec.Struct, frozen=True):
    """Failed tries of one account or one address."""

    count: int = 0
    last_s: float = 0.0


NONE = Failures()


def after_failure(failures: Failures, now_s: float) -> Failures:
    """One more failure. A quiet time as long as the window and the wait together wipes the slate."""
    if forgotten(failures, now_s):
        return Failures(1, now_s)
    return Failures(failures.count + 1, now_s)


def wait_s(failures: Failures, now_s: float) -> float:
    """Seconds until the next try is looked at; 0 when it may come now."""
    return max(0.0, failures.last_s + _penalty_s(failures.count) - now_s) if failures.count >= FREE else 0.0


def forgotten(failures: Failures, now_s: float) -> bool:
    """Whether these failures no longer count."""
    return failures.count == 0 or now_s - failures.last_s > WINDOW_S + _penalty_s(failures.count)


def address_key(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 network that one IPv6 line has to itself."""
    try:
        parsed = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


def _penalty_s(count: int) -> float:
    return 0.0 if count < FREE else min(LONGEST_S, 2.0 ** min(count - FREE, 16))
