"""Asks every server of the fleet how it is, over and over.

One task per server, so a poll of a server never overlaps another of the same server, and a dead, slow or lying one
delays nobody. What a poll finds is handed on the moment it is in. Besides the interval, a poll is begun when a process
saw a server fail or recover (`hurry`), when its address changed, and on demand (`poll_all`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from fleetproxy import log
from fleetproxy.control.probe import Getter, Probe, probe
from fleetproxy.core.backend import Backend
from fleetproxy.settings import Poll

_log = log.get("control.poller")

#: `hurry` begins at most one poll of a server in this time.
HURRY_S = 1.0
#: Polls of one server after which optional paths it lacked are tried again.
FORGET_ABSENT = 360
#: Intervals are drawn between these shares, so that servers polled together drift apart.
_JITTER = (0.9, 1.1)

#: Fields that change nothing about where and how a server is asked.
_ADDRESS = (
    "kind", "scheme", "host", "port", "path_prefix", "host_header", "api_key", "http2", "tls_ca_file", "tls_verify",
    "tls_server_name",
)  # fmt: skip


class Client(Getter, Protocol):
    """What asks servers: `transport.httpx_client.HttpxClient`."""

    async def forget(self, name: str) -> None: ...


class PollCounts(msgspec.Struct):
    """Of one server, since it came into the fleet."""

    polls: int = 0
    failures: int = 0
    #: Seconds the last poll took.
    last_s: float = 0.0


class _Watch:
    """One server and its task."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        #: Set when one of the next two is.
        self.wake = asyncio.Event()
        #: Begin the next poll now; begin it as soon as `HURRY_S` allows.
        self.demanded = False
        self.hurried = False
        #: Polls begun and ended.
        self.begun = 0
        self.ended = 0
        self.over = asyncio.Event()
        self.absent: set[str] = set()
        self.counts = PollCounts()
        self.task: asyncio.Task[None] | None = None


class Poller:
    """`found(backend, probe)` is called on the loop for every finished poll; it must not block."""

    def __init__(
        self,
        client: Client,
        settings: Callable[[], Poll],
        found: Callable[[Backend, Probe], None],
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._settings = settings
        self._found = found
        self._rng = rng or random.Random()  # noqa: S311 - spreads polls, guards nothing
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        self._stopped = False
        #: Polls running now.
        self.in_flight = 0

    async def sync(self, backends: Iterable[Backend]) -> None:
        """Poll exactly these servers. New ones, and ones whose address changed, are polled at once."""
        wanted = {backend.name: backend for backend in backends} if not self._stopped else {}
        gone = [self._watches.pop(name) for name in tuple(self._watches) if name not in wanted]
        for name, backend in wanted.items():
            watch = self._watches.get(name)
            if watch is None:
                watch = self._watches[name] = _Watch(backend)
                watch.task = asyncio.create_task(self._run(watch), name=f"poll {name}")
            else:
                moved = not same_address(watch.backend, backend)
                watch.backend = backend
                if moved:
                    watch.absent.clear()
                    watch.demanded = True
                    watch.wake.set()
        await self._end(gone)

    def hurry(self, name: str) -> None:
        """Somebody saw this server fail or recover: look soon. Wishes that come too close together are one."""
        watch = self._watches.get(name)
        if watch is not None:
            watch.hurried = True
            watch.wake.set()

    async def poll_all(self) -> None:
        """Poll every server and return when each poll, begun after this call, has ended. Callers share polls."""
        waiting = []
        for watch in self._watches.values():
            watch.demanded = True
            watch.wake.set()
            waiting.append(self._past(watch, watch.begun + 1))
        await asyncio.gather(*waiting)

    async def polled(self, names: Iterable[str]) -> None:
        """Return when each of these servers has been polled once since it came."""
        watches = [self._watches[name] for name in names if name in self._watches]
        await asyncio.gather(*(self._past(watch, 1) for watch in watches))

    async def stop(self) -> None:
        """End every poll. No `found` is called after this returns."""
        self._stopped = True
        await self.sync(())

    def counts(self) -> dict[str, PollCounts]:
        """By server."""
        return {name: watch.counts for name, watch in self._watches.items()}

    # --- one server ------------------------------------------------------------------------------------------

    async def _run(self, watch: _Watch) -> None:
        while True:
            began = self._clock()
            await self._poll(watch)
            await self._pause(watch, began)

    async def _poll(self, watch: _Watch) -> None:
        backend = watch.backend
        watch.demanded = watch.hurried = False
        watch.begun += 1
        if watch.begun % FORGET_ABSENT == 0:
            watch.absent.clear()
        began = self._clock()
        self.in_flight += 1
        try:
            found = await probe(self._client, backend, self._settings().timeout_s, watch.absent)
        except Exception:
            _log.exception("poll of %s failed", backend.name)
            found = Probe(reachable=False, error="the poll failed; see the log")
        finally:
            self.in_flight -= 1
        watch.counts.polls += 1
        watch.counts.failures += not found.reachable
        watch.counts.last_s = self._clock() - began
        # An answer of the address it had before says nothing about the server as it is now.
        if same_address(backend, watch.backend):
            try:
                self._found(watch.backend, found)
            except Exception:
                _log.exception("what a poll of %s found could not be taken in", backend.name)
        watch.ended = watch.begun
        watch.over.set()
        watch.over = asyncio.Event()

    async def _pause(self, watch: _Watch, began: float) -> None:
        """Wait for the next turn: the interval, or less when it is woken."""
        due = began + self._settings().interval_s * self._rng.uniform(*_JITTER)
        while (left := due - self._clock()) > 0 and not watch.demanded:
            if watch.hurried:
                watch.hurried = False
                due = min(due, began + HURRY_S)
                continue
            watch.wake.clear()
            try:
                await asyncio.wait_for(watch.wake.wait(), left)
            except TimeoutError:
                return

    async def _past(self, watch: _Watch, number: int) -> None:
        while watch.ended < number and self._watches.get(watch.backend.name) is watch:
            await watch.over.wait()

    async def _end(self, gone: list[_Watch]) -> None:
        tasks = [watch.task for watch in gone if watch.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for watch in gone:
            watch.over.set()
            if watch.backend.name not in self._watches:
                await self._client.forget(watch.backend.name)


def same_address(a: Backend, b: Backend) -> bool:
    """Whether both mean the same machine, asked in the same way."""
    return all(getattr(a, name) == getattr(b, name) for name in _ADDRESS)
