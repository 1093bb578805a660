"""Floods of dial-in workers (W-29 to W-31): what others notice, measured from processes of their own.

The numbers are the catalogue's. A quiet stretch and one with the fault take turns, so that whatever else the machine
does hits both alike; a measurement that was disturbed all the same is taken again, a few times: the fault fails every
one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from fleetproxy.testing.service import ADMIN_KEY, Service
from fleetproxy.testing.spawned import FakeProcess, until
from tests.e2e.bystander import Bystander, flood, quantile
from tests.e2e.fault_cases import rounds
from tests.e2e.go_socket import GoSocket, Refused, free_port
from tests.e2e.test_workers import WorkerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY, MODEL = "worker-key", "llama3.2:3b"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
#: A disturbed measurement is taken again, so often in all.
TRIES = 4


class Place:
    """A service, a server it knows, and a worker that has dialled in at `hub.listen` before the same server."""

    def __init__(self, folder: Path) -> None:
        self.hub_port = free_port()
        self.fake = FakeProcess(folder, "fake", kind="ollama", models=MODEL, seed=7, speed=0)
        self.fake.start()
        settings = {"auth": {"client_key": KEY}, "hub": {"listen": f"127.0.0.1:{self.hub_port}"}}
        self.service = Service(folder / "service", {"straight": self.fake.url}, processes=2, settings=settings)
        address = f"ws://127.0.0.1:{self.hub_port}"
        self.worker = WorkerProcess(folder, address, self.fake.url, "other", MAX_CONCURRENCY="64")
        self.bystanders: list[Bystander] = []

    def start(self) -> None:
        self.service.start()
        self.worker.spawn()
        until(lambda: "other" in self.owners(MODEL), 20, "the worker is there")

    def straight(self) -> Bystander:
        """Who asks the server."""
        return self._add(Bystander(self.service.port, "/v1/chat/completions", CHAT, x_ollama_pin_server="straight"))

    def through_worker(self) -> Bystander:
        """Who asks the worker."""
        return self._add(Bystander(self.service.port, "/api/llm/id/id-other/v1/chat/completions", CHAT))

    def owners(self, model: str) -> set[str]:
        entries = json.loads(self.service.fetch("GET", "/api/llm/v1/models")[2])["data"]
        return {name for entry in entries if entry["id"] == model for name in entry["owned_by"].split(",")}

    def counted(self, reason: str) -> float:
        """Sockets of workers that were closed with this reason, since the hub started."""
        text = self.service.fetch("GET", "/metrics", None, {"Authorization": f"Bearer {ADMIN_KEY}"})[2].decode()
        found = [line for line in text.splitlines() if "worker_sockets" in line and f'"{reason}"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def close(self) -> None:
        for bystander in self.bystanders:
            bystander.close()
        try:
            self.worker.kill()
            assert self.service.stop() == 0
            assert not self.service.bad_lines()
        finally:
            self.service.kill()
            self.fake.kill()

    def _add(self, bystander: Bystander) -> Bystander:
        self.bystanders.append(bystander)
        return bystander


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    place = await asyncio.to_thread(Place, tmp_path_factory.mktemp("floods"))
    try:
        await asyncio.to_thread(place.start)
        yield place
    finally:
        await asyncio.to_thread(place.close)


def in_turns(asking: Bystander, fault: Callable[[], contextlib.AbstractContextManager[None]], share: float) -> float:
    """A quantile of the waits while the fault lasts, as a multiple of that without it."""
    quiet: list[float] = []
    loud: list[float] = []
    for _ in range(4):
        quiet += asking.waits(60)
        with fault():
            loud += asking.waits(60)
    return quantile(loud, share) / quantile(quiet, share)


def lowest(measure: Callable[[], float], bound: float) -> float:
    """The first measurement below the bound, or the lowest of TRIES."""
    found: list[float] = []
    while not found or (min(found) >= bound and len(found) < TRIES):
        found.append(measure())
    return min(found)


async def test_w29_a_flood_of_messages_is_closed_and_slows_nobody(place: Place) -> None:
    """Requests to other workers take less than a fifth longer, though they go through the same process."""
    asking = await asyncio.to_thread(place.through_worker)
    fault = lambda: flood(place.hub_port, KEY, "messages")  # noqa: E731
    times = await asyncio.to_thread(lowest, lambda: in_turns(asking, fault, 0.5), 1.2)
    assert times < 1.2
    before = place.counted("flood")

    def closed() -> bool:
        with fault():
            until(lambda: place.counted("flood") > before, 15.0, "closed: flood")
        return True

    assert await asyncio.to_thread(closed)


async def test_w30_pings_without_end_are_cut_off_and_slow_nobody(place: Place) -> None:
    """Pings before any register message, and nobody reads the pongs."""
    pids = place.service.pids()
    asking = await asyncio.to_thread(place.straight)
    fault = lambda: flood(place.hub_port, KEY, "pings")  # noqa: E731
    before = _resident_bytes(pids["hub"])
    times = await asyncio.to_thread(lowest, lambda: in_turns(asking, fault, 0.99), 2.0)
    assert times < 2.0
    assert _resident_bytes(pids["hub"]) - before < 32 * 1024 * 1024
    assert place.service.pids() == pids


async def test_w31_all_workers_come_back_at_once(place: Place) -> None:
    """After the hub was killed every worker dials at the same moment, and again while the door is full."""
    count = rounds(100, 1000)
    place.service.allowed.append(re.compile("hub"))
    asking = await asyncio.to_thread(place.straight)
    p99s: list[float] = []
    async with contextlib.AsyncExitStack() as stack:

        async def come(number: int) -> None:
            while True:
                with contextlib.suppress(Refused, OSError, TimeoutError, asyncio.IncompleteReadError):
                    dialling = GoSocket.dial("127.0.0.1", place.hub_port, "/api/llm/connect", key=KEY)
                    socket = await stack.enter_async_context(await dialling)
                    name = f"w31-{number}"
                    await socket.say(
                        type="register", worker_id=name, worker_name=name, models=["w31"], max_concurrency=1
                    )
                    return
                await asyncio.sleep(random.uniform(0.05, 0.3))

        async def storm() -> None:
            await asyncio.gather(*(come(number) for number in range(count)))
            await asyncio.to_thread(until, lambda: len(place.owners("w31")) == count, 15.0, f"{count} workers")

        passed = 0
        while passed < 2 and len(p99s) < TRIES:
            waits: list[float] = []
            async with asyncio.timeout(10.0):
                storming = asyncio.ensure_future(storm())
                while not storming.done() or len(waits) < 300:
                    waits += await asyncio.to_thread(asking.waits, 50)
                await storming
            p99s.append(quantile(waits, 0.99))
            passed += p99s[-1] < 0.25
            pid = place.service.pids()["hub"]
            os.kill(pid, signal.SIGKILL)
            new = lambda pid=pid: place.service.pids().get("hub") not in (None, pid)  # noqa: E731
            await asyncio.to_thread(until, new, 10.0, "a new hub")
            await asyncio.to_thread(until, lambda: not place.owners("w31"), 10.0, "nobody is there")
    assert passed == 2, p99s


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
