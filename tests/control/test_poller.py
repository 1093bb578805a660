"""The poller: one poll per server at a time, nobody waits for anybody else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fleetproxy.control import poller as module
from fleetproxy.control.poller import Poller
from fleetproxy.control.probe import Probe
from fleetproxy.core.backend import Backend
from fleetproxy.errors import ConnectFailed
from fleetproxy.settings import Poll
from tests.control.scripted import OLLAMA, Answer, Servers, backend


class Found:
    """What the poller handed on."""

    def __init__(self) -> None:
        self.probes: list[tuple[Backend, Probe]] = []
        self.fail = False

    def __call__(self, backend: Backend, probe: Probe) -> None:
        if self.fail:
            raise ValueError("cannot take this in")
        self.probes.append((backend, probe))

    def of(self, name: str) -> list[Probe]:
        return [probe for backend, probe in self.probes if backend.name == name]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def polling(
    servers: Servers, found: Found, *backends: Backend, interval_s: float = 1000.0
) -> AsyncIterator[Poller]:
    poller = Poller(servers, lambda: Poll(interval_s=interval_s), found, rng=random.Random(1))
    await poller.sync(backends)
    try:
        yield poller
    finally:
        await poller.stop()


async def test_every_server_is_polled_at_once_and_again_after_the_interval() -> None:
    servers, found = Servers(a=OLLAMA, b=OLLAMA), Found()
    async with polling(servers, found, backend("a"), backend("b"), interval_s=0.01) as poller:
        await until(lambda: len(found.of("a")) >= 3 and len(found.of("b")) >= 3)
        assert poller.counts()["a"].polls >= 3
        assert poller.counts()["a"].failures == 0


async def test_a_hanging_server_delays_no_other_one() -> None:
    never = asyncio.Event()
    servers, found = Servers(a=OLLAMA, dead=dict.fromkeys(OLLAMA, never)), Found()
    async with polling(servers, found, backend("dead"), backend("a"), interval_s=0.005) as poller:
        await until(lambda: len(found.of("a")) >= 5)
        assert poller.in_flight >= 1
        assert found.of("dead") == []
        assert servers.most["dead"] == 1


async def test_polls_on_demand_are_shared_and_never_overlap() -> None:
    servers, found = Servers(a=OLLAMA, b=OLLAMA), Found()
    async with polling(servers, found, backend("a"), backend("b")) as poller:
        await asyncio.gather(*(poller.poll_all() for _ in range(100)))
        assert servers.most == {"a": 1, "b": 1}
        assert 1 <= len(found.of("a")) <= 2
        before = len(found.of("a"))
        await poller.poll_all()
        assert len(found.of("a")) == before + 1


async def test_a_poll_on_demand_begins_after_the_demand() -> None:
    gate = asyncio.Event()
    servers, found = Servers(a=OLLAMA | {"/api/ps": gate}), Found()
    async with polling(servers, found, backend("a")) as poller:
        await until(lambda: "/api/ps" in servers.paths("a"))
        demand = asyncio.create_task(poller.poll_all())
        await asyncio.sleep(0)
        servers.servers["a"] = dict(OLLAMA)
        gate.set()
        await demand
        assert len(found.of("a")) == 2
        assert found.of("a")[-1].resident is not None


async def test_a_poll_on_demand_does_not_wait_for_servers_that_leave() -> None:
    servers, found = Servers(dead=dict.fromkeys(OLLAMA, asyncio.Event())), Found()
    async with polling(servers, found, backend("dead")) as poller:
        demand = asyncio.create_task(poller.poll_all())
        await asyncio.sleep(0)
        await poller.sync([])
        await asyncio.wait_for(demand, 5)
        assert servers.forgotten == ["dead"]
        assert poller.in_flight == 0


async def test_a_server_that_was_seen_failing_is_polled_soon_but_not_in_a_storm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HURRY_S", 0.02)
    servers, found = Servers(a=OLLAMA), Found()
    async with polling(servers, found, backend("a")) as poller:
        await until(lambda: len(found.of("a")) == 1)
        began = asyncio.get_running_loop().time()
        for _ in range(200):
            poller.hurry("a")
            poller.hurry("unknown")
            await asyncio.sleep(0)
        await until(lambda: len(found.of("a")) >= 2)
        took = asyncio.get_running_loop().time() - began
        assert len(found.of("a")) <= 2 + took / 0.02


async def test_a_server_that_moved_is_polled_at_its_new_address_and_its_old_answer_is_dropped() -> None:
    gate = asyncio.Event()
    servers, found = Servers(a=OLLAMA | {"/api/ps": gate}), Found()
    async with polling(servers, found, backend("a", port=1)) as poller:
        await until(lambda: "/api/ps" in servers.paths("a"))
        await poller.sync([backend("a", port=2)])
        servers.servers["a"] = dict(OLLAMA)
        gate.set()
        await until(lambda: len(found.probes) == 1)
        assert [probed.port for probed, _ in found.probes] == [2]


async def test_other_settings_of_a_server_change_without_a_poll() -> None:
    servers, found = Servers(a=OLLAMA), Found()
    async with polling(servers, found, backend("a")) as poller:
        await until(lambda: len(found.probes) == 1)
        await poller.sync([backend("a", max_concurrent=3, enabled=False)])
        await poller.poll_all()
        assert [probed.max_concurrent for probed, _ in found.probes] == [None, 3]


async def test_failures_are_counted_and_handed_on() -> None:
    servers, found = Servers(a=dict.fromkeys(OLLAMA, ConnectFailed("refused"))), Found()
    async with polling(servers, found, backend("a")) as poller:
        await until(lambda: len(found.probes) == 1)
        assert not found.probes[0][1].reachable
        assert (poller.counts()["a"].polls, poller.counts()["a"].failures) == (1, 1)


async def test_a_fault_of_ours_stops_neither_this_server_nor_the_others() -> None:
    class Broken(Servers):
        async def get(self, backend: Backend, path: str, timeout_s: float) -> Answer:
            if backend.name == "odd":
                raise ZeroDivisionError
            return await super().get(backend, path, timeout_s)

    servers, found = Broken(a=OLLAMA, odd=OLLAMA), Found()
    found.fail = True
    async with polling(servers, found, backend("a"), backend("odd"), interval_s=0.005) as poller:
        await until(lambda: poller.counts()["a"].polls >= 2)
        found.fail = False
        await until(lambda: len(found.of("odd")) >= 2 and len(found.of("a")) >= 2)
        assert "see the log" in str(found.of("odd")[0].error)


async def test_paths_a_server_lacked_are_tried_again_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGET_ABSENT", 3)
    servers, found = Servers(a=OLLAMA | {"/v1/models": Answer(404)}), Found()
    async with polling(servers, found, backend("a"), interval_s=0.001):
        await until(lambda: len(found.of("a")) >= 5)
        assert 2 <= servers.paths("a").count("/v1/models") <= len(found.of("a")) // 3 + 2


async def test_after_stop_nothing_runs_and_nothing_is_found() -> None:
    servers, found = Servers(a=OLLAMA, dead=dict.fromkeys(OLLAMA, asyncio.Event())), Found()
    before = asyncio.all_tasks()
    async with polling(servers, found, backend("a"), backend("dead"), interval_s=0.001) as poller:
        await until(lambda: len(found.probes) >= 2)
        await poller.stop()
        count = len(found.probes)
        await poller.sync([backend("a")])
        await asyncio.sleep(0.01)
        assert len(found.probes) == count
        assert asyncio.all_tasks() == before
