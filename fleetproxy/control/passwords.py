"""Checking passwords: argon2id in two threads, so that a flood of logins costs neither the event loop nor the machine.

Who fails often waits (`core.backoff`), per account and per address; an address from which the user is already logged
in is not held back by guesses made elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from fleetproxy.core import backoff
from fleetproxy.core.password_policy import normalise
from fleetproxy.errors import RateLimited

R = TypeVar("R")

THREADS = 2
#: Passwords that may wait for a thread; further ones get 429.
MAX_WAITING = 50
#: Accounts and addresses whose failures are remembered; the oldest are forgotten first.
MAX_REMEMBERED = 20_000


class Hasher:
    """argon2id. About 64 MiB and 0.15 s a password with the default cost."""

    def __init__(self, cost: argon2.PasswordHasher | None = None) -> None:
        self._argon2 = cost or argon2.PasswordHasher(time_cost=3, memory_cost=65536, parallelism=1)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._waiting = 0
        self._dummy: str | None = None
        #: Passwords turned away because too many were waiting.
        self.refused = 0

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._argon2.hash(normalise(password)))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether it is this password. Without a hash (no such user) the same work is done and the answer is no."""
        return await self._run(lambda: self._verify(password_hash, normalise(password)))

    def outdated(self, password_hash: str) -> bool:
        """Made with other parameters than today's."""
        try:
            return self._argon2.check_needs_rehash(password_hash)
        except InvalidHashError:
            return False

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password_hash: str | None, password: str) -> bool:
        if self._dummy is None:
            self._dummy = self._argon2.hash("nobody's password")
        if password_hash is None:
            self._matches(self._dummy, password)
            return False
        return self._matches(password_hash, password)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._argon2.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], R]) -> R:
        if self._waiting >= MAX_WAITING:
            self.refused += 1
            raise RateLimited("Too many logins at once; try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


class Throttle:
    """Failures by account and by address, bounded. Times come in as arguments."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, backoff.Failures] = OrderedDict()

    def wait_s(self, keys: tuple[str, ...], now_s: float) -> float:
        """Seconds until a try under these keys is looked at."""
        return max((backoff.wait_s(self._failures.get(key, backoff.NONE), now_s) for key in keys), default=0.0)

    def begin(self, keys: tuple[str, ...], now_s: float) -> None:
        """A try begins: it counts as failed until it is forgiven, so that a thousand at once are counted too."""
        for key in keys:
            self._failures[key] = backoff.after_failure(self._failures.get(key, backoff.NONE), now_s)
            self._failures.move_to_end(key)
        while len(self._failures) > MAX_REMEMBERED:
            self._failures.popitem(last=False)

    def forgive(self, account: str, others: tuple[str, ...]) -> None:
        """The try was good: the account starts anew, and the other keys lose this one try (not those before it, or
        logging in to one's own account between guesses would buy more of them)."""
        self._failures.pop(account, None)
        for key in others:
            known = self._failures.get(key)
            if known is not None:
                self._failures[key] = backoff.Failures(known.count - 1, known.last_s)
