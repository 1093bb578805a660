"""Memory, loads, slots and pace of a fake."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.testing.fakes import Profile
from fleetproxy.testing.fakes.catalog import Model, full_name, make
from fleetproxy.testing.fakes.clock import FOREVER_S, duration_s, rfc3339
from fleetproxy.testing.fakes.engine import Busy, Engine, Pace


def engine(**fields: object) -> Engine:
    return Engine(Profile(**fields), lambda: 0)  # type: ignore[arg-type]


async def use(machine: Engine, model: Model, keep_alive_s: float = FOREVER_S, context: int | None = None) -> int:
    async with machine.lease(model, keep_alive_s, context) as lease:
        assert model.name in machine.resident
        return lease.load_ns


async def test_only_the_first_request_waits_for_the_load() -> None:
    machine = engine()
    model = make("llama3.2:3b")
    assert await use(machine, model) == int(Pace(0).load_s(model) * 1e9)
    assert await use(machine, model) == 0
    assert machine.loads == 1
    await machine.close()


async def test_the_least_recently_used_idle_model_makes_room() -> None:
    machine = engine(vram_gb=10)
    old, young, big = make("a=4"), make("b=4"), make("c=4")
    await use(machine, old)
    await use(machine, young)
    await use(machine, old)
    await use(machine, big)
    assert set(machine.resident) == {"a:latest", "c:latest"}
    assert machine.used_bytes <= machine.vram_bytes
    await machine.close()


async def test_a_model_in_use_is_never_evicted() -> None:
    machine = engine(vram_gb=5)
    async with machine.lease(make("a=4"), FOREVER_S):
        waiting = asyncio.create_task(use(machine, make("b=4")))
        await asyncio.sleep(0.01)
        assert set(machine.resident) == {"a:latest"}
        assert machine.waiting == 1
    await waiting
    assert set(machine.resident) == {"b:latest"}
    await machine.close()


async def test_a_model_larger_than_the_memory_runs_partly_outside_it() -> None:
    machine = engine(vram_gb=5)
    await use(machine, make("a=40"))
    resident = machine.resident["a:latest"]
    assert resident.vram_bytes == machine.vram_bytes < resident.size_bytes
    await machine.close()


async def test_a_full_load_queue_is_busy() -> None:
    machine = engine(vram_gb=5, queue=1)
    async with machine.lease(make("a=4"), FOREVER_S):
        first = asyncio.create_task(use(machine, make("b=4")))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await use(machine, make("c=4"))
    await first
    await machine.close()


async def test_slots_bound_what_runs_at_once_and_embedding_models_have_one() -> None:
    machine = engine(slots=3)
    for name, slots in (("llama3.2:3b", 3), ("nomic-embed-text", 1)):
        machine.peak = 0
        model = make(name)

        async def hold(model: Model = model) -> None:
            async with machine.lease(model, FOREVER_S):
                await asyncio.sleep(0.001)

        await asyncio.gather(*(hold() for _ in range(9)))
        assert machine.peak == slots
    await machine.close()


async def test_keep_alive_zero_unloads_after_the_last_user() -> None:
    machine = engine()
    model = make("a=1")
    async with machine.lease(model, FOREVER_S):
        await use(machine, model, 0)
        assert "a:latest" in machine.resident
    await use(machine, model, 0)
    assert not machine.resident


async def test_keep_alive_runs_out() -> None:
    machine = engine()
    model = make("a=1")
    await use(machine, model, 0.02)
    assert "a:latest" in machine.resident
    async with asyncio.timeout(5):
        while machine.resident:
            await asyncio.sleep(0.005)


async def test_another_context_length_loads_anew() -> None:
    machine = engine()
    model = make("a=1")
    await use(machine, model)
    assert await use(machine, model, FOREVER_S, 8192) > 0
    assert await use(machine, model, FOREVER_S, 8192) == 0
    assert machine.loads == 2
    await machine.close()


@pytest.mark.parametrize(("vram_gb", "context"), [(8, 4096), (26, 32_768), (60, 131_072)])
def test_the_context_follows_the_memory(vram_gb: float, context: int) -> None:
    assert engine(vram_gb=vram_gb).context_for(make("llama3.2:3b"), None) == context


async def test_a_leaver_during_the_load_does_not_undo_it() -> None:
    machine = engine(speed=50)
    model = make("a=2")
    leaver = asyncio.create_task(use(machine, model))
    await asyncio.sleep(0)
    stayer = asyncio.create_task(use(machine, model))
    await asyncio.sleep(0)
    leaver.cancel()
    assert await stayer > 0
    assert machine.loads == 1
    assert machine.waiting == 0
    await machine.close()


async def test_pace_waits_at_least_its_time() -> None:
    start = time.monotonic()
    await Pace(1.0).until(start, 0.02)
    assert time.monotonic() - start >= 0.02


@given(st.floats(min_value=0, max_value=1e6, allow_nan=False))
def test_keep_alive_numbers_are_seconds(seconds: float) -> None:
    assert duration_s(seconds) == seconds
    assert duration_s(-seconds or -1.0) == FOREVER_S


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("-1m", FOREVER_S), ("0", 0), ("250ms", 0.25), ("0s", 0)]
)
def test_keep_alive_takes_go_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("value", ["5", "m", "5m3", "", True, [], "5 m"])
def test_other_durations_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"duration|Unknown"):
        duration_s(value)


def test_timestamps_have_nanoseconds() -> None:
    assert rfc3339(1_700_000_000_000_000_042) == "2023-11-14T22:13:20.000000042Z"


@pytest.mark.parametrize("name", ["phi", "phi:latest", "library/phi", "registry.ollama.ai/library/phi:latest", "PHI"])
def test_spellings_of_one_name_are_one_model(name: str) -> None:
    assert full_name(name) == "phi:latest"


def test_variants_differ_in_digest_only() -> None:
    one, two = make("llama3.2:3b"), make("llama3.2:3b#other")
    assert one.digest != two.digest
    assert one.name == two.name
    assert make("LLAMA3.2:3b").digest == one.digest
