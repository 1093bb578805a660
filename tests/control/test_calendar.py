from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleetproxy.control.analytics.rows import JobRun
from fleetproxy.control.calendar import Calendar
from fleetproxy.control.state import Store, jobs
from fleetproxy.core.jobs import Job
from fleetproxy.errors import BadRequest, Conflict

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Doer:
    """Does jobs when it is let; says what it did."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def run(self, job: Job) -> str:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.done.append(job.name)
        return f"did {job.name}"


class World:
    def __init__(self, store: Store, calendar: Calendar, doer: Doer) -> None:
        self.store, self.calendar, self.doer = store, calendar, doer
        self.now = NOW
        self.rows: list[JobRun] = []
        self.failures: list[tuple[str, str]] = []

    async def job(self, expression: str = "*/10 * * * *", name: str = "job", **fields: object) -> Job:
        made = await self.store.write(
            jobs.create,
            {
                "name": name,
                "source_identifier": "test",
                "cron_expression": expression,
                "target_model": "phi",
                "action": "preload",
                **fields,
            },
            self.now,
        )
        self.calendar.changed()
        await self.calendar.beat()
        return made

    async def at(self, **span: float) -> None:
        """Time passes in one jump; then a beat, and what it began ends if it can."""
        self.now += timedelta(**span)
        await self.calendar.beat()
        for _ in range(50):
            await asyncio.sleep(0)
            if not self.doer.gate.is_set() or not self.calendar._running:
                break
            await asyncio.sleep(0.002)

    async def runs(self) -> list[tuple[str, str | None]]:
        found = await self.store.read(jobs.runs, None, 1000)
        return [(run.outcome, run.slot_at and run.slot_at.strftime("%H:%M:%S")) for run in reversed(found)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store, doer = await Store.open(tmp_path / "state.db"), Doer()
    calendar = Calendar(store, doer, lambda: world.now)
    world = World(store, calendar, doer)
    calendar._put = world.rows.append  # type: ignore[assignment]

    async def failed(name: str, detail: str) -> None:
        world.failures.append((name, detail))

    calendar._failed = failed
    yield world
    await calendar.close()
    await store.close()


async def test_a_job_is_run_at_its_times(world: World) -> None:
    # From 0 on: of a counter that begins with 1 no alert sees an increase.
    assert world.calendar.counts == {"ok": 0, "failed": 0, "skipped": 0, "missed": 0, "aborted": 0}
    await world.job()
    for _ in range(30):
        await world.at(minutes=1)
    assert await world.runs() == [("ok", "12:10:00"), ("ok", "12:20:00"), ("ok", "12:30:00")]
    assert [(row.job, row.result, row.detail) for row in world.rows] == [("job", "ok", "did job")] * 3


async def test_plans_and_jobs_that_are_off_are_never_run(world: World) -> None:
    await world.job(action="none")
    await world.job(is_enabled=False)
    await world.at(hours=1)
    assert await world.runs() == []


async def test_of_times_slept_through_the_newest_is_caught_up_within_its_grace(world: World) -> None:
    await world.job(misfire_grace_s=300)
    await world.at(minutes=63)
    assert await world.runs() == [("ok", "13:00:00")]
    await world.at(minutes=6)
    assert await world.runs() == [("ok", "13:00:00")]
    await world.at(minutes=1)
    assert await world.runs() == [("ok", "13:00:00"), ("ok", "13:10:00")]


async def test_times_too_old_are_missed_once(world: World) -> None:
    await world.job(misfire_grace_s=60)
    await world.at(minutes=67)
    assert await world.runs() == [("missed", "12:10:00")]
    assert world.doer.done == []
    await world.at(minutes=3)
    assert await world.runs() == [("missed", "12:10:00"), ("ok", "13:10:00")]
    assert [row.result for row in world.rows] == ["skipped", "ok"]


async def test_a_job_each_second_slept_through_for_a_month_costs_little(world: World) -> None:
    await world.job("* * * * * *")
    await world.at(days=30)
    assert await world.runs() == [("ok", "12:00:00")]


@pytest.mark.parametrize(
    ("overlap", "runs"),
    [
        ("skip", [("running", "12:10:00"), ("skipped", "12:20:00"), ("skipped", "12:30:00")]),
        ("wait", [("running", "12:10:00")]),
        ("allow", [("running", "12:10:00"), ("running", "12:20:00"), ("running", "12:30:00")]),
    ],
)
async def test_a_time_that_comes_while_the_last_run_goes_on(
    world: World, overlap: str, runs: list[tuple[str, str]]
) -> None:
    await world.job(overlap=overlap)
    world.doer.gate.clear()
    for _ in range(30):
        await world.at(minutes=1)
    assert await world.runs() == runs
    world.doer.gate.set()
    await world.at(seconds=1)
    await world.at(seconds=1)
    finished = await world.runs()
    if overlap == "wait":
        assert finished == [("ok", "12:10:00"), ("ok", "12:30:00")]
    else:
        assert finished == [("ok" if outcome == "running" else outcome, slot) for outcome, slot in runs]


async def test_a_restart_runs_no_time_again_and_catches_up_what_is_fresh(world: World) -> None:
    await world.job(misfire_grace_s=120)
    await world.at(minutes=10)
    again = Calendar(world.store, world.doer, lambda: world.now)
    await again.beat()
    assert await world.runs() == [("ok", "12:10:00")]
    world.now += timedelta(minutes=11)
    third = Calendar(world.store, world.doer, lambda: world.now)
    await third.beat()
    await asyncio.gather(*(task for running in third._running.values() for task in running))
    assert await world.runs() == [("ok", "12:10:00"), ("ok", "12:20:00")]


async def test_two_calendars_run_each_time_once(world: World) -> None:
    await world.job(overlap="allow")
    other = Calendar(world.store, world.doer, lambda: world.now)
    await other.beat()
    for _ in range(40):
        world.now += timedelta(minutes=1)
        await asyncio.gather(world.calendar.beat(), other.beat())
    await world.at(seconds=1)
    await asyncio.gather(*(task for running in other._running.values() for task in running))
    slots = [slot for _, slot in await world.runs()]
    assert sorted(slots, key=str) == ["12:10:00", "12:20:00", "12:30:00", "12:40:00"]
    assert len(world.doer.done) == 4


async def test_a_clock_set_back_runs_no_time_again_and_goes_on(world: World) -> None:
    await world.job(overlap="allow")
    for _ in range(3):
        await world.at(minutes=10)
    await world.at(minutes=-25)  # 12:05 again
    for _ in range(40):
        await world.at(minutes=1)
    assert [slot for _, slot in await world.runs()] == ["12:10:00", "12:20:00", "12:30:00", "12:40:00"]


async def test_a_clock_that_was_a_year_ahead_does_not_stop_the_calendar(world: World) -> None:
    world.now += timedelta(days=365)
    await world.job()
    await world.at(minutes=10)
    await world.at(days=-365)
    await world.at(minutes=10)
    assert len(world.doer.done) == 2


async def test_failures_are_written_down_and_told(world: World) -> None:
    await world.job()
    world.doer.error = BadRequest("no server that is online has phi")
    await world.at(minutes=10)
    (run,) = await world.store.read(jobs.runs, None, 10)
    assert (run.outcome, run.detail) == ("failed", "no server that is online has phi")
    assert world.failures == [("job", "no server that is online has phi")]
    world.doer.error = RuntimeError("secret of the implementation")
    await world.at(minutes=10)
    assert world.failures[-1] == ("job", "unexpected RuntimeError")
    world.doer.error = None
    await world.at(minutes=10)
    assert [outcome for outcome, _ in await world.runs()] == ["failed", "failed", "ok"]


async def test_a_stopped_control_leaves_no_run_running(world: World) -> None:
    await world.job()
    world.doer.gate.clear()
    await world.at(minutes=10)
    await world.calendar.close()
    assert await world.runs() == [("aborted", "12:10:00")]
    killed = await world.store.write(jobs.begin_run, 1, NOW + timedelta(hours=5), "running", "schedule", now=world.now)
    assert killed
    await world.store.write(jobs.abort_runs, world.now)
    assert [outcome for outcome, _ in await world.runs()] == ["aborted", "aborted"]


async def test_running_by_hand(world: World) -> None:
    job = await world.job()
    world.doer.gate.clear()
    run_id = await world.calendar.run_now(job, "root")
    with pytest.raises(Conflict, match="is running"):
        await world.calendar.run_now(job, "root")
    world.doer.gate.set()
    await world.at(seconds=1)
    (run,) = await world.store.read(jobs.runs, job.id, 10)
    assert (run.id, run.outcome, run.slot_at, run.triggered_by) == (run_id, "ok", None, "root")


async def test_a_changed_job_is_not_due_for_times_before_the_change(world: World) -> None:
    job = await world.job("0 13 * * *")
    world.now += timedelta(minutes=30)
    await world.store.write(jobs.change, job.id, {"cron_expression": "15 12 * * *"}, world.now)
    world.calendar.changed()
    await world.at(minutes=1)
    assert await world.runs() == []
    await world.store.write(jobs.remove, job.id)
    world.calendar.changed()
    await world.at(days=1)
    assert await world.runs() == []


async def test_runs_of_a_job_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RUNS_KEPT", 5)
    await world.job("* * * * *")
    for _ in range(12):
        await world.at(minutes=1)
    assert [slot for _, slot in await world.runs()] == [f"12:{minute:02d}:00" for minute in range(8, 13)]


async def test_the_beat_comes_from_aiocron(world: World) -> None:
    await world.job("* * * * * *")
    running = asyncio.create_task(world.calendar.run())
    world.now += timedelta(seconds=5)
    for _ in range(300):
        if world.doer.done:
            break
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.doer.done
