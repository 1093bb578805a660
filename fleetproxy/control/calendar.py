"""Runs scheduled jobs when they are due. The only importer of aiocron, which gives the beat: once a second.

What is due is decided here, against the wall clock, so that a clock that jumps, a machine that slept or a control
that was down changes nothing about the rules:

- Each time of a job is run at most once, whatever happens: it is written down (in the store, where a time of a job is
  unique) before it is run.
- Of several times that have passed, only the newest is looked at. It is run if it is no older than the job's
  `misfire_grace_s`; else the job has "missed" it, once, and waits for its next time.
- A time that comes while the last run goes on is left out, waited with, or run beside it, as the job's `overlap` says.

Jobs without an action are plans: they are never run.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import aiocron

from fleetproxy import log
from fleetproxy.control.analytics.rows import JobRun, Row
from fleetproxy.control.server_calls import reason_of
from fleetproxy.control.state import Store
from fleetproxy.control.state import jobs as rows
from fleetproxy.core.cron import BadCron, BadZone, Cron, parse, zone
from fleetproxy.core.jobs import Job, verdict
from fleetproxy.errors import Conflict, FleetError

_log = log.get("control.calendar")

#: Runs at once, all jobs together; others wait.
AT_ONCE = 8
#: A clock set back by more than this makes the calendar look at its jobs anew.
JUMP = timedelta(seconds=60)
_RESULTS = {"ok": "ok", "failed": "failed", "skipped": "skipped", "missed": "skipped", "aborted": "cancelled"}


class Doer(Protocol):
    """`control.job_actions.Actions`."""

    async def run(self, job: Job) -> str: ...


class Calendar:
    def __init__(
        self,
        store: Store,
        doer: Doer,
        now: Callable[[], datetime],
        *,
        put: Callable[[Row], None] = lambda row: None,
        failed: Callable[[str, str], Any] = lambda name, detail: None,
    ) -> None:
        self._store = store
        self._doer = doer
        self._now = now
        self._put = put
        self._failed = failed
        self._jobs: dict[int, tuple[Job, Cron]] = {}
        #: (due, job id, version of the calendar)
        self._due: list[tuple[datetime, int, int]] = []
        self._version = 0
        self._stale = True
        self._beating = False
        self._last_beat: datetime | None = None
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: dict[int, set[asyncio.Task[Any]]] = {}
        #: The newest time of a job that waits for its last run to end.
        self._waiting: dict[int, datetime] = {}
        #: Runs ended since start, by outcome; from 0 on, since a counter that begins with 1 has never increased.
        self.counts: dict[str, int] = dict.fromkeys(_RESULTS, 0)

    def changed(self) -> None:
        """Jobs were added, changed or removed."""
        self._stale = True

    async def run(self) -> None:
        """Until cancelled."""
        await self._store.write(rows.abort_runs, self._now())
        ticker = aiocron.Cron("* * * * * *", func=self.beat, tz=UTC)
        ticker.start()
        try:
            await asyncio.Event().wait()
        finally:
            ticker.stop()
            await self.close()

    async def close(self) -> None:
        """End what is running; it is written down as aborted."""
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def beat(self) -> None:
        """Run what is due. Never raises."""
        if self._beating:
            return
        self._beating = True
        try:
            now = self._now()
            if self._last_beat is not None and now < self._last_beat - JUMP:
                _log.warning("the clock was set back: scheduled jobs are looked at anew")
                self._stale = True
            self._last_beat = now
            if self._stale:
                await self._load(now)
            while self._due and self._due[0][0] <= now:
                due, job_id, version = heapq.heappop(self._due)
                if version == self._version and job_id in self._jobs:
                    await self._come(job_id, due, now)
        except FleetError as error:
            _log.warning("scheduled jobs wait: %s", error)
        except Exception:
            _log.exception("scheduled jobs wait")
        finally:
            self._beating = False

    async def run_now(self, job: Job, who: str) -> int:
        """Run a job beside its times; the number of the run. Raises Conflict while it runs (unless it may overlap)."""
        if self._running.get(job.id) and job.overlap != "allow":
            raise Conflict(f"Job '{job.name}' is running; wait for its end")
        run_id = await self._store.write(rows.begin_run, job.id, None, "running", who, now=self._now())
        assert run_id is not None  # a run by hand has no slot that could be taken
        await self._start(job, None, run_id)
        return run_id

    # --- what is due -----------------------------------------------------------------------------------------------

    async def _load(self, now: datetime) -> None:
        self._stale = False
        try:
            found = await self._store.read(rows.all_jobs, enabled=True)
            last = await self._store.read(rows.last_slots)
        except BaseException:
            self._stale = True
            raise
        self._jobs = await asyncio.to_thread(compiled, [job for job in found if job.action != "none"])
        self._version += 1
        self._due = []
        for job_id, (job, _) in self._jobs.items():
            # A job that was changed is not due for times before the change.
            since = max(filter(None, (last.get(job_id), job.updated_at)))
            # Dealt with up to a time that is still to come: the clock was wrong then. What was run is not run again.
            self._plan(job_id, min(since, now))

    def _plan(self, job_id: int, after: datetime) -> None:
        """Put the job's next time after that one on the list."""
        _, cron = self._jobs[job_id]
        for due in cron.next(after):
            heapq.heappush(self._due, (due, job_id, self._version))

    async def _come(self, job_id: int, due: datetime, now: datetime) -> None:
        """Times of a job have come: `due`, and whatever came after it until now."""
        job, cron = self._jobs[job_id]
        # Only so far back: the times of a week in which we were off need not be counted one by one.
        slot = max(due, *_until(cron.after(max(due, now - timedelta(seconds=job.misfire_grace_s + 1))), now), due)
        await self._decide(job, slot, now)
        if job_id in self._jobs:
            self._plan(job_id, max(slot, now - timedelta(microseconds=1)))

    async def _decide(self, job: Job, slot: datetime, now: datetime) -> None:
        decision = verdict(job, slot, now, bool(self._running.get(job.id)))
        if decision == "wait":
            self._waiting[job.id] = slot
            return
        outcome: rows.Outcome = "running" if decision == "run" else decision
        run_id = await self._store.write(rows.begin_run, job.id, slot, outcome, "schedule", now=now)
        if run_id is None:
            return  # dealt with before, or the job is gone
        if decision == "run":
            await self._start(job, slot, run_id)
        else:
            self._count(job, decision, slot, started=now, duration_ms=0.0, detail="")
            _log.warning("job %s %s its time %s", job.name, decision, slot.isoformat())

    # --- running ---------------------------------------------------------------------------------------------------

    async def _start(self, job: Job, slot: datetime | None, run_id: int) -> None:
        task = asyncio.create_task(self._do(job, slot, run_id), name=f"job {job.name}")
        self._running.setdefault(job.id, set()).add(task)
        task.add_done_callback(lambda done: self._ended(job, done))
        # Under way before anybody can cancel it: a task that never began would not write down its end.
        await asyncio.sleep(0)

    async def _do(self, job: Job, slot: datetime | None, run_id: int) -> None:
        started, began_s = self._now(), time.monotonic()
        outcome: rows.Outcome = "aborted"
        detail = "fleetproxy was stopped meanwhile"
        try:
            async with self._slots:
                detail = await self._doer.run(job)
            outcome = "ok"
        except Exception as error:
            outcome, detail = "failed", str(error) if isinstance(error, FleetError) else reason_of(error)
            if not isinstance(error, FleetError) and detail.startswith("unexpected"):
                _log.exception("job %s failed", job.name)
        finally:
            await self._store.write(rows.end_run, run_id, outcome, detail, self._now())
            took_ms = (time.monotonic() - began_s) * 1000
            self._count(job, outcome, slot, started=started, duration_ms=took_ms, detail=detail)
        if outcome == "failed":
            _log.warning("job %s failed: %s", job.name, detail)
            told = self._failed(job.name, detail)
            if told is not None:
                await told

    def _ended(self, job: Job, task: asyncio.Task[Any]) -> None:
        running = self._running.get(job.id, set())
        running.discard(task)
        if not running:
            self._running.pop(job.id, None)
        if not task.cancelled() and task.exception() is not None:
            _log.error("job %s: its end could not be written down: %r", job.name, task.exception())
        slot = self._waiting.pop(job.id, None)
        if slot is not None and job.id in self._jobs and not task.cancelled():
            # The time that waited comes again; only so long after its time as the job allows.
            heapq.heappush(self._due, (slot, job.id, self._version))

    def _count(
        self, job: Job, outcome: str, slot: datetime | None, *, started: datetime, duration_ms: float, detail: str
    ) -> None:
        self.counts[outcome] += 1
        self._put(
            JobRun(
                started_at_us=int(started.timestamp() * 1e6),
                job=job.name,
                job_id=job.id,
                planned_at_us=None if slot is None else int(slot.timestamp() * 1e6),
                duration_ms=duration_ms,
                result=_RESULTS[outcome],  # type: ignore[arg-type]
                detail=detail or outcome,
            )
        )


def compiled(found: Iterable[Job]) -> dict[int, tuple[Job, Cron]]:
    """Jobs by id with their expressions; those that cannot be read are left out."""
    ready = {}
    for job in found:
        cron = cron_of(job)
        if cron is not None:
            ready[job.id] = (job, cron)
    return ready


def cron_of(job: Job) -> Cron | None:
    """A job's expression in its time zone; None when either cannot be read."""
    try:
        return parse(job.cron_expression, zone(job.timezone), job.id)
    except (BadCron, BadZone):
        return None


def _until(times: Iterable[datetime], now: datetime) -> list[datetime]:
    """The newest of the times up to now, as a list of one or none."""
    newest: list[datetime] = []
    for due in times:
        if due > now:
            break
        newest = [due]
    return newest
