"""Scheduled jobs."""

from __future__ import annotations

from typing import Any, Literal

from fleetproxy.control.api.answers.base import Answer, At


class Job(Answer):
    id: int
    name: str
    description: str | None
    source_identifier: str
    cron_expression: str
    timezone: str
    target_model: str
    preferred_server_id: int | None
    preferred_server_name: str | None
    expected_duration_ms: int
    is_enabled: bool
    next_executions: list[At]
    created_at: At
    updated_at: At
    cron_description: str | None
    action: str
    action_options: dict[str, Any]
    overlap: Literal["skip", "wait", "allow"]
    misfire_grace_seconds: int


class ConflictJob(Answer):
    job_id: int
    job_name: str
    target_model: str


class Conflict(Answer):
    """`serverId`: both are meant for it. `exceedsMemory`: it does not hold both models, as far as sizes are known."""

    start_time: At
    end_time: At
    jobs: list[ConflictJob]
    conflict_type: str
    server_id: int | None
    exceeds_memory: bool


class NewJob(Job):
    conflicts: list[Conflict]


class DeletedJob(Answer):
    success: Literal[True]
    id: int


class StartedRun(Answer):
    run_id: int
    status: Literal["running"]


class Run(Answer):
    id: int
    job_id: int
    scheduled_for: At | None
    started_at: At
    finished_at: At | None
    outcome: str
    detail: str | None
    triggered_by: str | None


class Execution(Answer):
    job_id: int
    job_name: str
    source_identifier: str
    target_model: str
    start_time: At
    end_time: At
    is_conflict: bool


class Timeline(Answer):
    """`completeUntil`: later runs may be missing, for there are too many; null: none is."""

    executions: list[Execution]
    conflicts: list[Conflict]
    complete_until: At | None


class Slot(Answer):
    start_time: At
    end_time: At
    duration_ms: int


class Suggestions(Answer):
    open_slots: list[Slot]


class Validation(Answer):
    valid: bool
    error: str | None
    description: str | None
    next_executions: list[At]


class FoundJob(Answer):
    name: str
    source_identifier: str
    cron_expression: str
    target_model: str
    description: str | None


class Found(Answer):
    """`reason`: why nothing could be looked at."""

    containers: int
    jobs: list[FoundJob]
    reason: str | None


class Imported(Answer):
    discovered: int
    added: int
    skipped: int
    added_jobs: list[str]
    skipped_jobs: list[str]
    reason: str | None
