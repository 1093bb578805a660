"""The fleet as the dashboard API shows it, polling on demand, and control's own health."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from litestar import Request, Response, get, post

from fleetproxy.control.api.guard import PUBLIC, USER
from fleetproxy.control.api.reading import stamp, too_many
from fleetproxy.control.fleet import Member
from fleetproxy.control.services import services_of
from fleetproxy.core.admission import Admission
from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.table import Principal
from fleetproxy.errors import RateLimited

#: Polls on demand, of each user; the operator's own keys are not counted.
POLLS_PER_MINUTE = 60
_GIB = 1024**3
#: What the ancestor calls each kind.
_TYPES = {"ollama": "ollama", "openai": "vllm"}
#: "Never", as the ancestor writes it.
_NEVER = "2100-01-01T00:00:00.000Z"

FleetRequest = Request[Any, Any, Any]


class FleetView(Protocol):
    """`control.fleet.LiveFleet`."""

    def members(self) -> Sequence[Member]: ...


class Desk(msgspec.Struct, frozen=True):
    """What these handlers work with; the app's state `desk`."""

    fleet: FleetView
    #: Poll every server now; returns when all have been.
    poll_all: Callable[[], Any]
    #: Name of a check -> whether it passes now.
    checks: Callable[[], Mapping[str, bool]]
    #: Latest words of the metrics agent on a server's machine, by server.
    machines: Callable[[], Mapping[str, Mapping[str, Any]]]
    #: Who has polled on demand how often.
    polls: Admission = msgspec.field(default_factory=Admission)


def desk_of(request: FleetRequest) -> Desk:
    desk = request.app.state["desk"]
    assert isinstance(desk, Desk)
    return desk


@get("/api/servers", opt=USER, tags=["fleet"])
async def list_servers(request: FleetRequest) -> Response[bytes]:
    """Every server: how it is, what it holds, how busy it is. In the order of their numbers."""
    desk = desk_of(request)
    machines = desk.machines()
    shown = [server(member, machines.get(member.backend.name)) for member in desk.fleet.members()]
    return _json(200, shown)


@post("/api/poll", opt=USER, status_code=200, tags=["fleet"])
async def poll_now(request: FleetRequest) -> dict[str, bool]:
    """Poll every server now. Answers when the last one has answered, or has not in time. 60 a minute each (429)."""
    desk, identity = desk_of(request), request.user
    if identity.is_operator:
        await desk.poll_all()
        return {"ok": True}
    caller = Principal(name=f"{identity.name} {identity.via}", requests_per_minute=POLLS_PER_MINUTE)
    try:
        desk.polls.admit(caller, services_of(request).monotonic())
    except RateLimited as error:
        raise too_many(error.retry_after_s or 1.0) from None
    try:
        await desk.poll_all()
    finally:
        desk.polls.dismiss(caller)
    return {"ok": True}


@get(["/healthz", "/livez", "/health"], opt=PUBLIC, tags=["fleet"])
async def tell_health() -> Response[bytes]:
    """This process is up. Asks nobody."""
    return _json(200, {"status": "ok"})


@get("/readyz", opt=PUBLIC, tags=["fleet"])
async def tell_readiness(request: FleetRequest) -> Response[bytes]:
    """Requests can be served: 200, or 503 with what is missing. Asks nobody."""
    failed = [name for name, passed in desk_of(request).checks().items() if not passed]
    if failed:
        return _json(503, {"status": "not_ready", "failed": failed})
    return _json(200, {"status": "ok"})


#: Plain functions, to be mounted last: other files have handlers for other methods of the same paths, and a router
#: brings an OPTIONS handler of its own for each of its paths.
handlers = [list_servers, poll_now, tell_health, tell_readiness]


# --- shapes --------------------------------------------------------------------------------------------------


def server(member: Member, machine: Mapping[str, Any] | None) -> dict[str, Any]:
    """One server, with the fleet manager's fields and ours."""
    loaded, available = _models(member.backend, member.state)
    return {**facts(member, machine), "loadedModels": loaded, "availableModels": available}


def facts(member: Member, machine: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same without its models, of which there may be hundreds."""
    backend, state = member.backend, member.state
    in_memory = {model.name for model in state.resident}
    total = backend.vram_bytes
    return {
        "id": backend.id,
        "name": backend.name,
        "host": backend.authority,
        "totalRamGb": 0 if total is None else round(total / _GIB),
        "isOnline": state.online,
        "ollamaVersion": state.version if backend.kind == "ollama" else None,
        "totalVramUsed": state.vram_used_bytes,
        "polledAt": _instant(state.polled_at_s),
        "modelLoadTimes": {name: _instant(at_s) for name, at_s in member.loaded_at_s.items() if name in in_memory},
        "systemMetrics": machine,
        "backendType": _TYPES.get(backend.kind, "generic"),
        "isDisabled": not backend.enabled,
        # Ours.
        "version": state.version,
        "url": f"{backend.scheme}://{backend.authority}{backend.path_prefix}",
        "origin": member.origin,
        "isDraining": backend.draining,
        "isLeaving": member.leaving,
        "inFlight": member.in_flight,
        "waiting": member.waiting,
        "maxConcurrent": backend.max_concurrent,
        "embeddingBatchSize": backend.embedding_batch_size,
        "vramTotalBytes": total,
        "vramFreeBytes": None if total is None else max(0, total - state.vram_used_bytes),
        "failedPolls": state.consecutive_failures,
        "lastError": state.last_error,
    }


def _models(backend: Backend, state: BackendState) -> tuple[Any, Any]:
    """What is loaded and what is available: the server's own objects, or, of servers other than Ollama, made alike."""
    if backend.kind == "ollama":
        return state.raw_ps, state.raw_tags
    return [_loaded(model) for model in state.resident], [_available(model) for model in state.on_disk]


def _loaded(model: ResidentModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "size": None,
        "digest": "",
        "details": _DETAILS,
        "expires_at": _NEVER,
        "size_vram": None,
        "context_length": model.context_length,
    }


def _available(model: DiskModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": None,
        "size": None,
        "digest": "",
        "details": _DETAILS,
    }


_DETAILS = {
    "parent_model": "",
    "format": "vllm",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


def _instant(at_s: float | None) -> str | None:
    return None if at_s is None else stamp(datetime.fromtimestamp(at_s, UTC))


def _json(status: int, value: Any) -> Response[bytes]:
    # Listings are passed on as the servers wrote them, so this is encoded here and not by the framework.
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
