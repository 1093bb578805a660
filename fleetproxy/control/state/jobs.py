"""Scheduled jobs and their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fleetproxy.control.state.tables import JobRow, JobRunRow, ServerRow
from fleetproxy.core.jobs import Job
from fleetproxy.errors import BadRequest, Conflict, PathUnknown

MAX_JOBS = 10_000
#: Runs kept of each job.
RUNS_KEPT = 200
MAX_DETAIL_CHARACTERS = 2000

Outcome = Literal["running", "ok", "failed", "skipped", "missed", "aborted"]
_FIELDS = tuple(field for field in Job.__struct_fields__ if field != "id")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    job_id: int
    slot_at: datetime | None
    started_at: datetime
    finished_at: datetime | None
    outcome: str
    detail: str | None
    triggered_by: str


def all_jobs(session: Session, *, enabled: bool | None = None, model: str | None = None) -> list[Job]:
    """Newest first."""
    query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc())
    if enabled is not None:
        query = query.where(JobRow.is_enabled == enabled)
    if model is not None:
        query = query.where(JobRow.target_model == model)
    return [_value(row) for row in session.scalars(query)]


def get(session: Session, job_id: int) -> Job:
    """Raises PathUnknown."""
    return _value(_existing(session, job_id))


def create(session: Session, fields: Mapping[str, Any], now: datetime) -> Job:
    """A new job of these fields of `core.jobs.Job`. Raises BadRequest (no such server), Conflict (too many jobs)."""
    if (session.scalar(select(func.count()).select_from(JobRow)) or 0) >= MAX_JOBS:
        raise Conflict(f"There may be {MAX_JOBS} jobs; delete some first")
    _check_server(session, fields.get("preferred_server_id"))
    draft = Job(id=0, created_at=now, updated_at=now, **fields)
    row = JobRow(**{field: getattr(draft, field) for field in _FIELDS})
    session.add(row)
    session.flush()
    return _value(row)


def change(session: Session, job_id: int, fields: Mapping[str, Any], now: datetime) -> Job:
    """Raises PathUnknown, or BadRequest for a server that does not exist."""
    row = _existing(session, job_id)
    _check_server(session, fields.get("preferred_server_id"))
    for field, value in fields.items():
        setattr(row, field, value)
    row.updated_at = now
    session.flush()
    return _value(row)


def remove(session: Session, job_id: int) -> Job:
    """With its runs."""
    row = _existing(session, job_id)
    job = _value(row)
    session.delete(row)
    session.flush()
    return job


def import_jobs(session: Session, found: Sequence[Mapping[str, Any]], now: datetime) -> tuple[list[str], list[str]]:
    """Add jobs whose names are new: (names added, names that exist already). All of it at once: twice is once."""
    known = set(session.scalars(select(JobRow.name)))
    added: list[str] = []
    skipped: list[str] = []
    for fields in found:
        name = str(fields["name"])
        if name in known:
            skipped.append(name)
            continue
        known.add(name)
        create(session, fields, now)
        added.append(name)
    return added, skipped


# --- runs ----------------------------------------------------------------------------------------------------------


def begin_run(
    session: Session, job_id: int, slot_at: datetime | None, outcome: Outcome, triggered_by: str, *, now: datetime
) -> int | None:
    """Write down that a slot is being run (or is left out); None when that slot was written down before."""
    if session.get(JobRow, job_id) is None:
        return None
    row = JobRunRow(
        job_id=job_id,
        slot_at=slot_at,
        started_at=now,
        finished_at=None if outcome == "running" else now,
        outcome=outcome,
        detail=None,
        triggered_by=triggered_by,
    )
    try:
        with session.begin_nested():
            session.add(row)
            session.flush()
    except IntegrityError:
        return None
    old = select(JobRunRow.id).where(JobRunRow.job_id == job_id).order_by(JobRunRow.id.desc()).offset(RUNS_KEPT)
    session.execute(delete(JobRunRow).where(JobRunRow.id.in_(old)))
    return row.id


def end_run(session: Session, run_id: int, outcome: Outcome, detail: str, now: datetime) -> None:
    row = session.get(JobRunRow, run_id)
    if row is not None and row.outcome == "running":
        row.outcome, row.detail, row.finished_at = outcome, detail[:MAX_DETAIL_CHARACTERS], now


def abort_runs(session: Session, now: datetime) -> None:
    """Control starts: runs that were going on ended with the control before it."""
    session.execute(
        update(JobRunRow)
        .where(JobRunRow.outcome == "running")
        .values(outcome="aborted", detail="fleetproxy was stopped meanwhile", finished_at=now)
    )


def runs(session: Session, job_id: int | None, limit: int) -> list[Run]:
    """Newest first."""
    query = select(JobRunRow).order_by(JobRunRow.id.desc()).limit(limit)
    if job_id is not None:
        query = query.where(JobRunRow.job_id == job_id)
    return [Run(**{field: getattr(row, field) for field in Run.__struct_fields__}) for row in session.scalars(query)]


def last_slots(session: Session) -> dict[int, datetime]:
    """The newest slot of each job that was dealt with."""
    rows = session.execute(
        select(JobRunRow.job_id, func.max(JobRunRow.slot_at))
        .where(JobRunRow.slot_at.is_not(None))
        .group_by(JobRunRow.job_id)
    )
    return {job_id: slot for job_id, slot in rows if slot is not None}


def _existing(session: Session, job_id: int) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None:
        raise PathUnknown("Job not found")
    return row


def _check_server(session: Session, server_id: object) -> None:
    if server_id is None:
        return
    row = session.get(ServerRow, server_id)
    if row is None or row.removed_at is not None:
        raise BadRequest(f"preferredServerId: no server has the id {server_id}")


def _value(row: JobRow) -> Job:
    return Job(id=row.id, **{field: getattr(row, field) for field in _FIELDS})
