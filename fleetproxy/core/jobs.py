"""Scheduled jobs as a plan: when they run, which runs get in each other's way, where there is room for another.

A run is a half-open range of time: it starts when its job is due and ends `expected_duration_ms` later. Two runs of
different jobs are in conflict

    same_model      when they want the same model and their ranges overlap (touching ends do not)
    time_overlap    else, when they start less than CLOSE apart; or when they overlap on one server whose memory does
                    not hold both models

Runs meant for two different servers are never in each other's way. A job without a preferred server may go anywhere.

Everything here is O(n log n) in runs plus the conflicts given out, and given out up to a cap.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal

import msgspec

from fleetproxy.core.cron import Cron
from fleetproxy.core.names import canonical

CLOSE = timedelta(minutes=5)
SLOT_STEP = timedelta(minutes=30)
MAX_SLOTS = 10
#: Runs looked at in one question, all jobs together; the plan is complete up to `Plan.complete_until`.
MAX_RUNS = 20_000
MAX_CONFLICTS = 2_000
#: Pairs looked at for them: runs of one job that overlap each other cost a look and give nothing.
MAX_PAIRS = 200_000

Overlap = Literal["skip", "wait", "allow"]
ConflictType = Literal["same_model", "time_overlap"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A scheduled job."""

    id: int
    name: str
    description: str | None = None
    source_identifier: str
    cron_expression: str
    timezone: str = "UTC"
    target_model: str
    preferred_server_id: int | None = None
    expected_duration_ms: int = 60_000
    is_enabled: bool = True
    #: What we do when it is due; "none": it is a plan of work that somebody else does.
    action: str = "none"
    action_options: dict[str, Any] = {}
    #: Due while its last run goes on: leave it out, wait for the end, or run both.
    overlap: Overlap = "skip"
    #: Found due later than this (the machine slept, control was down): not caught up.
    misfire_grace_s: int = 300
    created_at: datetime
    updated_at: datetime

    @property
    def duration(self) -> timedelta:
        return timedelta(milliseconds=self.expected_duration_ms)


class Occurrence(msgspec.Struct, frozen=True):
    """One run of a job, planned. Ordered by start, then by job."""

    start: datetime
    job_id: int
    end: datetime
    model: str
    #: The server it is meant for; None: any.
    server_id: int | None = None
    #: Of that server's memory: what the model takes, and all there is. 0: not known.
    needs_bytes: int = 0
    room_bytes: int = 0


class Conflict(msgspec.Struct, frozen=True):
    """Two runs in each other's way; `first` starts no later than `second`."""

    first: Occurrence
    second: Occurrence
    kind: ConflictType

    @property
    def server_id(self) -> int | None:
        """The server both are meant for, if both are meant for one."""
        return self.first.server_id if self.first.server_id == self.second.server_id else None

    @property
    def exceeds_memory(self) -> bool:
        """They go on together on a server that does not hold both models, as far as sizes are known."""
        return _crowded(self.first, self.second)

    @property
    def start(self) -> datetime:
        return self.first.start

    @property
    def end(self) -> datetime:
        return max(self.first.end, self.second.end)


class Plan(msgspec.Struct, frozen=True):
    runs: tuple[Occurrence, ...]
    #: None: whole; else runs after this instant were not looked at any more.
    complete_until: datetime | None


def plan(
    jobs: Iterable[Job],
    crons: Mapping[int, Cron],
    start: datetime,
    end: datetime,
    *,
    running: bool = False,
    memory: Mapping[int, tuple[int, int]] | None = None,
) -> Plan:
    """The runs of the enabled jobs in [start, end), in order. `running`: also those before, that go on at `start`.

    `memory`: job id -> what its model takes of its server's memory and all there is, bytes, where that is known.
    Jobs without a cron (unreadable expression or time zone) have no runs.
    """
    # Jobs due at the same times share one search of the calendar.
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.id):
        if job.is_enabled and job.id in crons:
            cron = crons[job.id]
            groups.setdefault((cron.plain, cron.zone.key), []).append(job)
    streams = [_group_runs(group, crons[group[0].id], start, end, running) for group in groups.values()]
    runs: list[Occurrence] = []
    for due, group in heapq.merge(*streams, key=lambda item: item[0]):
        for job in group:
            if due >= start or due + job.duration > start:
                if len(runs) == MAX_RUNS:
                    return Plan(tuple(sorted(runs, key=_order)), runs[-1].start)
                sizes = (memory or {}).get(job.id, (0, 0))
                runs.append(
                    Occurrence(due, job.id, due + job.duration, job.target_model, job.preferred_server_id, *sizes)
                )
    return Plan(tuple(sorted(runs, key=_order)), None)


def conflicts(runs: Sequence[Occurrence], *, only: int | None = None) -> list[Conflict]:
    """Pairs of runs in each other's way, in order of their start; at most MAX_CONFLICTS. `only`: those of that job."""
    ordered = sorted(runs, key=_order)
    candidates = _pairs(ordered) if only is None else _pairs_of(ordered, only)
    found = (
        Conflict(one, other, kind)
        for one, other in islice(candidates, MAX_PAIRS)
        if (kind := conflict(one, other)) is not None
    )
    return sorted(islice(found, MAX_CONFLICTS), key=_conflict_order)


def conflict(one: Occurrence, other: Occurrence) -> ConflictType | None:
    """How two runs are in each other's way, if they are."""
    if one.job_id == other.job_id or _apart(one, other):
        return None
    if canonical(one.model) == canonical(other.model) and _overlap(one, other):
        return "same_model"
    return "time_overlap" if abs(one.start - other.start) < CLOSE or _crowded(one, other) else None


def in_conflict(runs: Sequence[Occurrence], found: Sequence[Conflict]) -> list[bool]:
    """For each run: is it in a conflict, or does a conflict of its job cover a part of it?"""
    ranges: dict[int, _Ranges] = {}
    for one in sorted(found, key=_conflict_order):
        for job_id in (one.first.job_id, one.second.job_id):
            ranges.setdefault(job_id, _Ranges()).add(one.start, one.end)
    return [run.job_id in ranges and ranges[run.job_id].overlap(run.start, run.end) for run in runs]


def open_slots(
    runs: Sequence[Occurrence], model: str, duration: timedelta, start: datetime, end: datetime
) -> list[datetime]:
    """Starts, SLOT_STEP apart from `start` on, where a run of `model` would be in nobody's way; at most MAX_SLOTS."""
    starts = sorted(run.start for run in runs)
    same = sorted((run for run in runs if canonical(run.model) == canonical(model)), key=_order)
    same_starts = [run.start for run in same]
    latest_end: list[datetime] = []
    for run in same:
        latest_end.append(max(run.end, latest_end[-1]) if latest_end else run.end)
    found: list[datetime] = []
    slot = start
    while slot < end and len(found) < MAX_SLOTS:
        near = bisect_left(starts, slot + CLOSE) - bisect_right(starts, slot - CLOSE)
        before = bisect_left(same_starts, slot + duration)
        if near <= 0 and not (before and latest_end[before - 1] > slot):
            found.append(slot)
        slot += SLOT_STEP
    return found


# --- running -------------------------------------------------------------------------------------------------------

Verdict = Literal["run", "wait", "skipped", "missed"]


def verdict(job: Job, slot: datetime, now: datetime, still_running: bool) -> Verdict:
    """What to do with a slot that has come."""
    if now - slot > timedelta(seconds=job.misfire_grace_s):
        return "missed"
    if still_running and job.overlap != "allow":
        return "wait" if job.overlap == "wait" else "skipped"
    return "run"


def _group_runs(
    group: list[Job], cron: Cron, start: datetime, end: datetime, running: bool
) -> Iterator[tuple[datetime, list[Job]]]:
    longest = max(job.duration for job in group) if running else timedelta()
    # `after` leaves its own instant out; a run due exactly at the start is in.
    for due in cron.after(start - longest - timedelta(microseconds=1)):
        if due >= end:
            return
        yield due, group


def _pairs(ordered: Sequence[Occurrence]) -> Iterator[tuple[Occurrence, Occurrence]]:
    """Pairs that may be in conflict, each once, in order of the earlier run."""
    same = _Together(ordered, lambda run: canonical(run.model))
    tight = _Together((run for run in ordered if run.needs_bytes and run.room_bytes), lambda run: run.server_id)
    starts = [run.start for run in ordered]
    for place, run in enumerate(ordered):
        close = run.start + CLOSE
        for other in range(place + 1, bisect_left(starts, close)):
            yield run, ordered[other]
        # Those that start later than that but while this one goes on: of its model, then of its server.
        for one in same.between(run, close):
            yield run, one
        if run.needs_bytes and run.room_bytes:
            for one in tight.between(run, close):
                if canonical(one.model) != canonical(run.model):
                    yield run, one


def _pairs_of(ordered: Sequence[Occurrence], job_id: int) -> Iterator[tuple[Occurrence, Occurrence]]:
    """Pairs of one job's runs with others that may be in conflict."""
    others = [run for run in ordered if run.job_id != job_id]
    starts = [run.start for run in others]
    longest = max((run.end - run.start for run in others), default=timedelta())
    for run in ordered:
        if run.job_id != job_id:
            continue
        first = bisect_left(starts, run.start - max(longest, CLOSE))
        last = bisect_left(starts, max(run.end, run.start + CLOSE))
        for other in others[first:last]:
            yield (other, run) if _order(other) < _order(run) else (run, other)


def _overlap(one: Occurrence, other: Occurrence) -> bool:
    return one.start < other.end and other.start < one.end


def _apart(one: Occurrence, other: Occurrence) -> bool:
    """Each is meant for a server of its own."""
    return None not in (one.server_id, other.server_id) and one.server_id != other.server_id


def _crowded(one: Occurrence, other: Occurrence) -> bool:
    """They go on together on one server, and it does not hold both models."""
    room_bytes = min(one.room_bytes, other.room_bytes)
    known = one.server_id is not None and one.server_id == other.server_id and one.needs_bytes and other.needs_bytes
    too_much = bool(known and room_bytes) and one.needs_bytes + other.needs_bytes > room_bytes
    return too_much and canonical(one.model) != canonical(other.model) and _overlap(one, other)


class _Together:
    """Runs by what they have in common, each group in the order of its starts."""

    def __init__(self, ordered: Iterable[Occurrence], key: Callable[[Occurrence], Hashable]) -> None:
        self._key = key
        self._runs: dict[Hashable, list[Occurrence]] = {}
        for run in ordered:
            self._runs.setdefault(key(run), []).append(run)
        self._starts = {common: [run.start for run in runs] for common, runs in self._runs.items()}

    def between(self, run: Occurrence, start: datetime) -> Sequence[Occurrence]:
        """Those of the run's group that start from then on, before it ends."""
        common = self._key(run)
        starts = self._starts[common]
        return self._runs[common][bisect_left(starts, start) : bisect_left(starts, run.end)]


def _order(run: Occurrence) -> tuple[datetime, int]:
    return run.start, run.job_id


def _conflict_order(one: Conflict) -> tuple[Any, ...]:
    return *_order(one.first), *_order(one.second)


class _Ranges:
    """Ranges of time, added in order of their start."""

    def __init__(self) -> None:
        self._starts: list[datetime] = []
        self._latest_end: list[datetime] = []

    def add(self, start: datetime, end: datetime) -> None:
        self._starts.append(start)
        self._latest_end.append(max(end, self._latest_end[-1]) if self._latest_end else end)

    def overlap(self, start: datetime, end: datetime) -> bool:
        before = bisect_left(self._starts, end)
        return before > 0 and self._latest_end[before - 1] > start
