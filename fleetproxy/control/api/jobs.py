"""`/api/scheduled-jobs`: the jobs, their plan for the next days, where there is room, and their runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from litestar import Request, Router, delete, get, post, put
from litestar.params import FromPath

from fleetproxy import log
from fleetproxy.control.api.guard import ADMIN, USER, Identity
from fleetproxy.control.api.job_fields import NEW_FAULT, duration_ms_of, read_changes, read_new
from fleetproxy.control.api.reading import (
    EXCEPTION_HANDLERS,
    MAX_BODY_BYTES,
    body,
    hours,
    instant,
    limit,
    path_id,
    stamp,
)
from fleetproxy.control.calendar import cron_of
from fleetproxy.control.discovery import Scan
from fleetproxy.control.job_actions import OPTIONS
from fleetproxy.control.ports import FleetPort
from fleetproxy.control.services import Services, services_of
from fleetproxy.control.state import jobs as rows
from fleetproxy.core.cron import BadCron, BadZone, Cron, describe, parse, zone
from fleetproxy.core.jobs import Conflict, Job, Plan, conflicts, in_conflict, open_slots, plan
from fleetproxy.core.names import canonical
from fleetproxy.errors import BadRequest, RateLimited

_log = log.get("control.jobs")

FleetRequest = Request[Identity, Any, Any]
#: Job id -> bytes its model takes (0: not known), bytes its server has.
Memory = dict[int, tuple[int, int]]

MAX_HOURS = 168
#: Questions about the plan that may wait (`services.planning_slots` are answered at once); further ones get 429.
PLANNING_WAITING = 16
NEXT_SHOWN = 5


@get("/api/scheduled-jobs", opt=USER)
async def list_jobs(request: FleetRequest) -> list[dict[str, Any]]:
    """Newest first. `?enabled=true&model=X`"""
    services = services_of(request)
    enabled = True if request.query_params.get("enabled") == "true" else None
    model = request.query_params.get("model") or None
    found = await services.store.read(rows.all_jobs, enabled=enabled, model=model)
    return await _shown_all(services, found)


@post("/api/scheduled-jobs", opt=ADMIN, status_code=201)
async def create_job(request: FleetRequest) -> dict[str, Any]:
    """A new job, and the conflicts it will be in within a day."""
    services = services_of(request)
    fields = read_new(await body(request, dict[str, Any], NEW_FAULT))
    job = await services.store.write(rows.create, fields, services.now())
    services.calendar.changed()
    _log.info("%s added job %s", request.user.name, job.name)
    every = await services.store.read(rows.all_jobs, enabled=True)
    now = services.now()
    known = memory(every, services.fleet)
    found = await planning(services, _conflicts_of, every, now, now + timedelta(hours=24), known, job.id)
    return {**(await _shown_all(services, [job]))[0], "conflicts": _shown_conflicts(found, every)}


@get("/api/scheduled-jobs/{job_id:str}", opt=USER)
async def show_job(request: FleetRequest, job_id: FromPath[str]) -> dict[str, Any]:
    """One job."""
    services = services_of(request)
    job = await services.store.read(rows.get, path_id(job_id, "job ID"))
    return (await _shown_all(services, [job]))[0]


@put("/api/scheduled-jobs/{job_id:str}", opt=ADMIN)
async def change_job(request: FleetRequest, job_id: FromPath[str]) -> dict[str, Any]:
    """Change what is given; the rest stays."""
    services = services_of(request)
    number = path_id(job_id, "job ID")
    known = await services.store.read(rows.get, number)
    fields = read_changes(await body(request, dict[str, Any], "The body is not a JSON object"), known)
    job = await services.store.write(rows.change, number, fields, services.now())
    services.calendar.changed()
    _log.info("%s changed job %s", request.user.name, job.name)
    return (await _shown_all(services, [job]))[0]


@delete("/api/scheduled-jobs/{job_id:str}", opt=ADMIN, status_code=200)
async def delete_job(request: FleetRequest, job_id: FromPath[str]) -> dict[str, Any]:
    """Delete a job with its runs."""
    services = services_of(request)
    job = await services.store.write(rows.remove, path_id(job_id, "job ID"))
    services.calendar.changed()
    _log.info("%s deleted job %s", request.user.name, job.name)
    return {"success": True, "id": job.id}


@post("/api/scheduled-jobs/{job_id:str}/run", opt=ADMIN, status_code=202)
async def run_job(request: FleetRequest, job_id: FromPath[str]) -> dict[str, Any]:
    """Run a job now, beside its times."""
    services = services_of(request)
    job = await services.store.read(rows.get, path_id(job_id, "job ID"))
    if job.action == "none":
        raise BadRequest(f"Job '{job.name}' has no action: it is only a plan. Actions are {', '.join(OPTIONS)}")
    return {"runId": await services.calendar.run_now(job, request.user.name), "status": "running"}


@get("/api/scheduled-jobs/{job_id:str}/runs", opt=USER)
async def list_runs(request: FleetRequest, job_id: FromPath[str]) -> list[dict[str, Any]]:
    """Runs of a job, newest first. `?limit=50`"""
    services = services_of(request)
    number = path_id(job_id, "job ID")
    await services.store.read(rows.get, number)
    found = await services.store.read(rows.runs, number, limit(request, 50, rows.RUNS_KEPT))
    return [
        {
            "id": run.id,
            "jobId": run.job_id,
            "scheduledFor": instant(run.slot_at),
            "startedAt": stamp(run.started_at),
            "finishedAt": instant(run.finished_at),
            "outcome": run.outcome,
            "detail": run.detail,
            "triggeredBy": run.triggered_by,
        }
        for run in found
    ]


@get("/api/scheduled-jobs/timeline", opt=USER)
async def show_timeline(request: FleetRequest) -> dict[str, Any]:
    """Runs of the next hours and which of them are in each other's way. `?hours=24` (168 at most)"""
    services = services_of(request)
    now = services.now()
    end = now + timedelta(hours=hours(request, 24, MAX_HOURS))
    every = await services.store.read(rows.all_jobs, enabled=True)
    found, clashes, marks = await planning(services, _timeline, every, now, end, memory(every, services.fleet))
    names = {job.id: job for job in every}
    return {
        "executions": [
            {
                "jobId": run.job_id,
                "jobName": names[run.job_id].name,
                "sourceIdentifier": names[run.job_id].source_identifier,
                "targetModel": run.model,
                "startTime": stamp(run.start),
                "endTime": stamp(run.end),
                "isConflict": mark,
            }
            for run, mark in zip(found.runs, marks, strict=True)
        ],
        "conflicts": _shown_conflicts(clashes, every),
        "completeUntil": instant(found.complete_until),
    }


@get("/api/scheduled-jobs/suggestions", opt=USER)
async def suggest_slots(request: FleetRequest) -> dict[str, Any]:
    """Times that are in nobody's way. `?model=X&durationMs=60000&hours=24`"""
    services = services_of(request)
    model = request.query_params.get("model", "").strip()
    if not model:
        raise BadRequest("Missing required parameter: model")
    duration_ms = duration_ms_of(request.query_params.get("durationMs"))
    now = services.now()
    end = now + timedelta(hours=hours(request, 24, MAX_HOURS))
    every = await services.store.read(rows.all_jobs, enabled=True)
    starts = await planning(services, _slots, every, now, end, model, duration_ms)
    duration = timedelta(milliseconds=duration_ms)
    return {
        "openSlots": [
            {"startTime": stamp(start), "endTime": stamp(start + duration), "durationMs": duration_ms}
            for start in starts
        ]
    }


@get("/api/scheduled-jobs/validate", opt=USER)
async def validate_expression(request: FleetRequest) -> dict[str, Any]:
    """Whether an expression can be used, in words, and when it is due next. `?cronExpression=X&timezone=UTC`"""
    services = services_of(request)
    text = request.query_params.get("cronExpression", "")
    try:
        cron = parse(text, zone(request.query_params.get("timezone") or "UTC"))
    except (BadCron, BadZone) as error:
        return {"valid": False, "error": str(error), "description": None, "nextExecutions": []}
    due = cron.next(services.now(), NEXT_SHOWN)
    return {"valid": True, "error": None, "description": describe(cron), "nextExecutions": [stamp(one) for one in due]}


@get("/api/scheduled-jobs/discover", opt=ADMIN)
async def discover_jobs(request: FleetRequest) -> dict[str, Any]:
    """Jobs that running containers tell of. Nothing is run, nothing is changed."""
    scan = await services_of(request).discovery.scan()
    return {"containers": scan.containers, "jobs": [_shown_found(one) for one in scan.jobs], "reason": scan.reason}


@post("/api/scheduled-jobs/discover", opt=ADMIN, status_code=200)
async def import_jobs(request: FleetRequest) -> dict[str, Any]:
    """Add the jobs that running containers tell of, each name once."""
    services = services_of(request)
    scan = await services.discovery.scan()
    usable, unusable = _usable(scan)
    added, existing = await services.store.write(rows.import_jobs, usable, services.now())
    if added:
        services.calendar.changed()
        _log.info("%s imported %d jobs", request.user.name, len(added))
    skipped = [
        *(f"{name} (no model specified)" for name in unusable),
        *(f"{name} (already exists)" for name in existing),
    ]
    return {
        "discovered": len(scan.jobs),
        "added": len(added),
        "skipped": len(skipped),
        "addedJobs": added,
        "skippedJobs": skipped,
        "reason": scan.reason,
    }


# --- planning, in threads ----------------------------------------------------------------------------------------


async def planning(services: Services, work: Any, *arguments: Any) -> Any:
    """Run a question about the plan off the event loop, a few at a time. Raises RateLimited."""
    if services.planning_waiting >= PLANNING_WAITING:
        raise RateLimited("Too many questions about the plan at once; try again in a moment")
    services.planning_waiting += 1
    try:
        async with services.planning_slots:
            return await asyncio.to_thread(work, *arguments)
    finally:
        services.planning_waiting -= 1


def memory(every: Sequence[Job], fleet: FleetPort) -> Memory:
    """What the model of each job takes on its preferred server, and what that has, where both are known."""
    wanted = {job.preferred_server_id for job in every}
    rooms: dict[int | None, int] = {}
    sizes: dict[tuple[int | None, str], int] = {}
    for backend, state in fleet.backends():
        if backend.id in wanted and backend.vram_bytes:
            rooms[backend.id] = backend.vram_bytes
            sizes |= {(backend.id, canonical(one.name)): one.size_bytes for one in state.on_disk}
            # In memory a model takes more than on disk: its context, too.
            sizes |= {(backend.id, canonical(one.name)): one.size_vram_bytes for one in state.resident}
    return {
        job.id: (sizes.get((job.preferred_server_id, canonical(job.target_model)), 0), rooms[job.preferred_server_id])
        for job in every
        if job.preferred_server_id in rooms
    }


def _crons(every: Sequence[Job]) -> dict[int, Cron]:
    return {job.id: cron for job in every if (cron := cron_of(job)) is not None}


def _timeline(
    every: Sequence[Job], now: datetime, end: datetime, known: Memory
) -> tuple[Plan, list[Conflict], list[bool]]:
    found = plan(every, _crons(every), now, end, memory=known)
    clashes = conflicts(found.runs)
    return found, clashes, in_conflict(found.runs, clashes)


def _conflicts_of(every: Sequence[Job], now: datetime, end: datetime, known: Memory, job_id: int) -> list[Conflict]:
    return conflicts(plan(every, _crons(every), now, end, memory=known).runs, only=job_id)


def _slots(every: Sequence[Job], now: datetime, end: datetime, model: str, duration_ms: int) -> list[datetime]:
    runs = plan(every, _crons(every), now, end, running=True).runs
    return open_slots(runs, model, timedelta(milliseconds=duration_ms), now, end)


def _timed(every: Sequence[Job], now: datetime) -> list[tuple[list[datetime], str | None]]:
    return [
        (cron.next(now, NEXT_SHOWN), describe(cron)) if (cron := cron_of(job)) is not None else ([], None)
        for job in every
    ]


# --- showing -------------------------------------------------------------------------------------------------------


async def _shown_all(services: Services, found: Sequence[Job]) -> list[dict[str, Any]]:
    names = {entry.id: entry.name for entry in await services.server_entries()}
    timed = await planning(services, _timed, found, services.now())
    return [
        {
            "id": job.id,
            "name": job.name,
            "description": job.description,
            "sourceIdentifier": job.source_identifier,
            "cronExpression": job.cron_expression,
            "timezone": job.timezone,
            "targetModel": job.target_model,
            "preferredServerId": job.preferred_server_id,
            "preferredServerName": names.get(job.preferred_server_id or 0),
            "expectedDurationMs": job.expected_duration_ms,
            "isEnabled": job.is_enabled,
            "nextExecutions": [stamp(due) for due in times],
            "createdAt": stamp(job.created_at),
            "updatedAt": stamp(job.updated_at),
            "cronDescription": words,
            "action": job.action,
            "actionOptions": job.action_options,
            "overlap": job.overlap,
            "misfireGraceSeconds": job.misfire_grace_s,
        }
        for job, (times, words) in zip(found, timed, strict=True)
    ]


def _shown_conflicts(found: Sequence[Conflict], every: Sequence[Job]) -> list[dict[str, Any]]:
    names = {job.id: job.name for job in every}
    return [
        {
            "startTime": stamp(one.start),
            "endTime": stamp(one.end),
            "jobs": [
                {"jobId": run.job_id, "jobName": names[run.job_id], "targetModel": run.model}
                for run in (one.first, one.second)
            ],
            "conflictType": one.kind,
            "serverId": one.server_id,
            "exceedsMemory": one.exceeds_memory,
        }
        for one in found
    ]


def _shown_found(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": fields["name"],
        "sourceIdentifier": fields["source_identifier"],
        "cronExpression": fields["cron_expression"],
        "targetModel": fields["target_model"],
        "description": fields["description"],
    }


def _usable(scan: Scan) -> tuple[list[Mapping[str, Any]], list[str]]:
    usable = [one for one in scan.jobs if one["target_model"] != "unknown"]
    return usable, [str(one["name"]) for one in scan.jobs if one["target_model"] == "unknown"]


handlers = [
    Router(
        path="/",
        route_handlers=[
            list_jobs,
            create_job,
            show_job,
            change_job,
            delete_job,
            run_job,
            list_runs,
            show_timeline,
            suggest_slots,
            validate_expression,
            discover_jobs,
            import_jobs,
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["jobs"],
    )
]
