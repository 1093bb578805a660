"""Limits per principal: requests in flight and requests per minute.

Each process enforces its share, limit / N rounded up, so nothing is asked of another process on the hot path; a
principal whose connections all land in one process gets that process's share only (docs: how limits are counted).
"""

from __future__ import annotations

import math

from fleetproxy.core.table import Principal
from fleetproxy.errors import RateLimited

#: Principals kept in mind; the longest idle are forgotten first (they would have a full bucket again anyway).
MAX_PRINCIPALS = 10_000


class _Account:
    __slots__ = ("in_flight", "tokens", "updated_s")

    def __init__(self, tokens: float, now_s: float) -> None:
        self.in_flight = 0
        self.tokens = tokens
        self.updated_s = now_s


class Admission:
    """Accounts of one process. Time is an argument (monotonic seconds)."""

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self._accounts: dict[str, _Account] = {}

    def admit(self, principal: Principal, now_s: float) -> None:
        """Count one request in. Raises RateLimited, with when to come back, and counts nothing then."""
        per_minute = principal.requests_per_minute
        burst = max(1.0, per_minute / self._processes) if per_minute is not None else math.inf
        account = self._accounts.pop(principal.name, None)
        if account is None:
            account = _Account(burst, now_s)
            if len(self._accounts) >= MAX_PRINCIPALS:
                self._forget()
        self._accounts[principal.name] = account  # last in: the longest idle stand first
        if per_minute is not None:
            rate_per_s = per_minute / self._processes / 60
            earned = max(0.0, now_s - account.updated_s) * rate_per_s
            account.tokens = min(burst, account.tokens + earned)
            account.updated_s = now_s
            if account.tokens < 1.0:
                wait_s = (1.0 - account.tokens) / rate_per_s
                raise RateLimited(
                    f"This key may send {per_minute} requests a minute; try again in {math.ceil(wait_s)} s.",
                    retry_after_s=wait_s,
                )
        limit = principal.max_in_flight
        if limit is not None and account.in_flight >= math.ceil(limit / self._processes):
            raise RateLimited(f"This key may have {limit} requests running at once; wait for one to end.")
        if per_minute is not None:
            account.tokens -= 1.0
        account.in_flight += 1

    def dismiss(self, principal: Principal) -> None:
        """An admitted request has ended."""
        account = self._accounts.get(principal.name)
        if account is not None and account.in_flight > 0:
            account.in_flight -= 1

    def in_flight(self, principal: Principal) -> int:
        account = self._accounts.get(principal.name)
        return account.in_flight if account is not None else 0

    def _forget(self) -> None:
        for name, account in list(self._accounts.items()):
            if not account.in_flight:
                del self._accounts[name]
                return
