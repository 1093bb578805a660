"""What a scheduled job can do when it is due. Each action checks its options when the job is saved, and runs bounded.

none        nothing: the job is a plan of work that somebody else does
preload     bring the target model into memory          options: keepAlive
unload      let it go from memory
pull        pull it (a newer version, too)
prompt      ask it something                             options: prompt (required), timeoutS
retention   forget rows of the analytics that are older  options: days (required), tables (all but the roll-ups)
export      write the rows of the last days to files in the data folder, one for each table and day:
            `exports/requests/date=2026-11-21/requests.parquet`      options: days, tables (requests), format (parquet)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from fleetproxy.control import server_calls
from fleetproxy.control.ports import Caller, FleetPort
from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.core.jobs import Job
from fleetproxy.core.names import canonical
from fleetproxy.errors import BadRequest
from fleetproxy.transport.base import Transport


class NoOptions(msgspec.Struct, forbid_unknown_fields=True):
    pass


class PreloadOptions(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    keep_alive: Annotated[str, Meta(pattern=r"^-?\d{1,6}(ms|s|m|h)?$")] | None = None


class PromptOptions(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    prompt: Annotated[str, Meta(min_length=1, max_length=20_000)]
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 600.0


Kept = Literal[
    "requests", "attempts", "model_events", "server_events", "system_metrics", "metric_samples", "job_runs",
    "requests_hourly",
]  # fmt: skip


class RetentionOptions(msgspec.Struct, forbid_unknown_fields=True):
    days: Annotated[int, Meta(ge=1, le=3650)]
    tables: Annotated[list[Kept], Meta(min_length=1)] | None = None


class ExportOptions(msgspec.Struct, forbid_unknown_fields=True):
    days: Annotated[int, Meta(ge=1, le=3650)] = 7
    tables: Annotated[list[Kept], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["requests"])
    format: Literal["parquet", "csv", "ndjson"] = "parquet"


OPTIONS: dict[str, type[msgspec.Struct]] = {
    "none": NoOptions,
    "preload": PreloadOptions,
    "unload": NoOptions,
    "pull": NoOptions,
    "prompt": PromptOptions,
    "retention": RetentionOptions,
    "export": ExportOptions,
}


class Upkeep(Protocol):
    """What the analytics store does for jobs."""

    async def forget(self, before: datetime, tables: Collection[str] | None = None) -> int:
        """Drop rows older than that; how many."""

    async def export(self, tables: Collection[str], since: datetime, form: str, folder: Path) -> tuple[int, int]:
        """Write the rows since then to files; how many rows, in how many files."""


def check_options(action: str, options: object) -> dict[str, Any]:
    """Options of an action as they are kept. Raises BadRequest."""
    shape = OPTIONS.get(action)
    if shape is None:
        raise BadRequest(f"Unknown action {action[:32]!r}: known are {', '.join(OPTIONS)}")
    try:
        checked: dict[str, Any] = msgspec.to_builtins(msgspec.convert({} if options is None else options, shape))
    except msgspec.ValidationError as error:
        raise BadRequest(f"actionOptions of {action}: {error}") from None
    return checked


class Actions:
    """Runs them."""

    def __init__(
        self,
        fleet: FleetPort,
        caller: Caller,
        transport: Transport,
        *,
        exports: Path,
        upkeep: Callable[[], Upkeep | None],
        now: Callable[[], datetime],
    ) -> None:
        self._fleet = fleet
        self._caller = caller
        self._transport = transport
        self._exports = exports
        self._upkeep = upkeep
        self._now = now

    async def run(self, job: Job) -> str:
        """Do what the job says; what was done, in words. Raises FleetError or Refused."""
        options = msgspec.convert(job.action_options, OPTIONS[job.action])
        return await _DOING[job.action](self, job, options)

    async def _none(self, job: Job, options: NoOptions) -> str:
        return "nothing to do: this job is only a plan"

    async def _preload(self, job: Job, options: PreloadOptions) -> str:
        backend = self._server(job, must_have=True)
        await server_calls.load(self._caller, backend, job.target_model, options.keep_alive)
        return f"loaded {job.target_model} on {backend.name}"

    async def _unload(self, job: Job, options: NoOptions) -> str:
        """On the preferred server, or wherever it is in memory."""
        holders = [
            backend
            for backend, state in self._candidates(job)
            if backend.kind == "ollama" and _holds(state, job.target_model)
        ]
        for backend in holders:
            await server_calls.unload(self._caller, backend, job.target_model)
        return f"unloaded {job.target_model} on {', '.join(one.name for one in holders) or 'no server: none had it'}"

    async def _pull(self, job: Job, options: NoOptions) -> str:
        backend = self._server(job, must_have=False)
        await server_calls.pull(self._transport, backend, job.target_model, lambda seen: None)
        return f"pulled {job.target_model} on {backend.name}"

    async def _prompt(self, job: Job, options: PromptOptions) -> str:
        backend = self._server(job, must_have=True, any_kind=True)
        said = await server_calls.prompt(self._caller, backend, job.target_model, options.prompt, options.timeout_s)
        # Answers are not kept anywhere: a job's record says only that there was one.
        return f"{backend.name} answered with {len(said)} characters"

    async def _retention(self, job: Job, options: RetentionOptions) -> str:
        dropped = await self._store().forget(self._now() - timedelta(days=options.days), options.tables)
        return f"forgot {dropped} rows older than {options.days} days"

    async def _export(self, job: Job, options: ExportOptions) -> str:
        since = self._now() - timedelta(days=options.days)
        await asyncio.to_thread(self._exports.mkdir, mode=0o700, parents=True, exist_ok=True)
        rows, files = await self._store().export(options.tables, since, options.format, self._exports)
        return f"wrote {rows} rows of {', '.join(options.tables)} to {files} files in {self._exports.name}/"

    def _store(self) -> Upkeep:
        upkeep = self._upkeep()
        if upkeep is None:
            raise BadRequest("this fleetproxy keeps no analytics that could be forgotten or exported")
        return upkeep

    def _candidates(self, job: Job) -> Sequence[tuple[Backend, BackendState]]:
        return [
            (backend, state)
            for backend, state in self._fleet.backends()
            if state.online
            and backend.enabled
            and backend.kind != "worker"
            and job.preferred_server_id in (None, backend.id)
        ]

    def _server(self, job: Job, *, must_have: bool, any_kind: bool = False) -> Backend:
        """The preferred server; else one that holds the model, has it on disk, or (for a pull) has most free memory."""
        candidates = [one for one in self._candidates(job) if any_kind or one[0].kind == "ollama"]
        if not candidates:
            raise BadRequest(
                "no fitting server is online" if job.preferred_server_id is None else "its server is offline"
            )
        ranked = sorted(candidates, key=lambda one: _fitness(one, job.target_model))
        backend, state = ranked[0]
        if must_have and job.preferred_server_id is None and _fitness((backend, state), job.target_model)[0] > 1:
            raise BadRequest(f"no server that is online has {job.target_model}")
        return backend


_Doing = Callable[[Actions, Job, Any], Awaitable[str]]
_DOING: dict[str, _Doing] = {
    "none": Actions._none,
    "preload": Actions._preload,
    "unload": Actions._unload,
    "pull": Actions._pull,
    "prompt": Actions._prompt,
    "retention": Actions._retention,
    "export": Actions._export,
}


def _holds(state: BackendState, model: str) -> bool:
    return any(canonical(one.name) == canonical(model) for one in state.resident)


def _fitness(candidate: tuple[Backend, BackendState], model: str) -> tuple[int, int, int]:
    """Lower is better: holds the model, has it on disk, neither; then most free memory; then the lowest number."""
    backend, state = candidate
    on_disk = any(canonical(one.name) == canonical(model) for one in state.on_disk)
    free = (backend.vram_bytes or 0) - state.vram_used_bytes
    return (0 if _holds(state, model) else 1 if on_disk else 2), -free, backend.id
