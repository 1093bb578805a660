from __future__ import annotations

import asyncio
import threading

import argon2
import pytest

from fleetproxy.control import passwords
from fleetproxy.control.passwords import Hasher, Throttle
from fleetproxy.errors import RateLimited

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Held(argon2.PasswordHasher):
    """argon2 that begins to work when it is let go."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.let_go = threading.Event()
        self.running = 0
        self.most = 0

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.let_go.wait(10)
        self.running -= 1
        return super().hash(password, salt=salt)


async def test_a_flood_is_refused_not_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MAX_WAITING", 5)
    held = Held()
    hasher = Hasher(held)
    tasks = [asyncio.create_task(hasher.hash(f"password {n}")) for n in range(9)]
    while hasher.refused < 4:
        await asyncio.sleep(0)
    held.let_go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, RateLimited) for outcome in outcomes] == [False] * 5 + [True] * 4
    assert held.most <= passwords.THREADS
    assert await hasher.hash("again")
    hasher.close()


async def test_an_unknown_user_costs_the_same_work() -> None:
    class Counting(argon2.PasswordHasher):
        verified = 0

        def verify(self, hash: str | bytes, password: str | bytes) -> bool:
            self.verified += 1
            return super().verify(hash, password)

    counting = Counting(time_cost=1, memory_cost=8, parallelism=1)
    hasher = Hasher(counting)
    known = await hasher.hash("right password")
    assert await hasher.verify(known, "right password")
    assert not await hasher.verify(known, "wrong password")
    assert not await hasher.verify(None, "right password")
    assert counting.verified == 3
    hasher.close()


async def test_one_password_typed_in_two_ways_is_one() -> None:
    hasher = Hasher(CHEAP)
    assert await hasher.verify(await hasher.hash("caf\u00e9 password"), "cafe\u0301 password")
    assert not await hasher.verify("not a hash", "password")
    hasher.close()


def test_memory_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MAX_REMEMBERED", 100)
    throttle = Throttle()
    for _ in range(12):
        throttle.begin(("victim",), 0.0)
    for number in range(99):
        throttle.begin((f"user {number}",), 0.0)
    assert throttle.wait_s(("victim",), 0.0) > 0
    throttle.begin(("one more",), 0.0)
    assert throttle.wait_s(("victim",), 0.0) == 0
