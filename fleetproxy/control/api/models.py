"""`/api/models/*`: is it in a registry, pull it, delete it, load and unload it, and the record of all that."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.params import FromPath
from msgspec import Meta

from fleetproxy import log
from fleetproxy.control import server_calls
from fleetproxy.control.api.guard import ADMIN, USER, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body, instant, limit, path_id, stamp
from fleetproxy.control.registry import Check
from fleetproxy.control.services import Services, services_of
from fleetproxy.control.state import actions
from fleetproxy.control.state.actions import Action
from fleetproxy.core.backend import Backend
from fleetproxy.errors import BadRequest, Conflict, PathUnknown

_log = log.get("control.models")

FleetRequest = Request[Identity, Any, Any]

MAX_MODEL_CHARACTERS = 256
FAULT = "modelName (string) and serverId (positive integer) required"


class Target(msgspec.Struct, rename="camel"):
    model_name: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARACTERS, pattern=r"^[^\x00-\x20\x7f]+$")]
    server_id: Annotated[int, Meta(gt=0, lt=2**53)]


class Deletion(Target, rename="camel"):
    #: The caller knows that no registry has this model: deleted here it is gone.
    acknowledge_custom: bool = False


class Loading(Target, rename="camel"):
    #: For how long it stays in memory unused: `10m`; below nothing is for good. The server's own time without it.
    keep_alive: Annotated[str, Meta(pattern=r"^-?\d{1,6}(ms|s|m|h)?$")] | None = None


@get("/api/models/registry-check", opt=USER)
async def check_registry(request: FleetRequest) -> dict[str, Any]:
    """Whether a public registry has a model. `?model=X`"""
    model = request.query_params.get("model", "")
    if not 0 < len(model) <= MAX_MODEL_CHARACTERS:
        raise BadRequest("model parameter required")
    return _shown_check(await services_of(request).registry.check(model))


@post("/api/models/pull", opt=ADMIN, status_code=200)
async def pull_model(request: FleetRequest) -> dict[str, Any]:
    """Begin to pull a model on a server. The same pull again joins the one that runs."""
    services = services_of(request)
    asked = await body(request, Target, FAULT)
    backend = backend_of(services, asked.server_id)
    services.pulls.refuse_when_full()
    action, new = await _begin(services, request, "pull", asked.model_name, backend)
    if new:
        await services.pulls.start(action.id, backend, asked.model_name)
    return {"actionId": action.id, "status": "pending"}


@post("/api/models/actions/{action_id:str}/cancel", opt=ADMIN, status_code=200)
async def cancel_pull(request: FleetRequest, action_id: FromPath[str]) -> dict[str, bool]:
    """Stop a pull that runs."""
    if not services_of(request).pulls.cancel(path_id(action_id, "action ID")):
        raise PathUnknown("No such pull is running")
    return {"ok": True}


@post("/api/models/delete", opt=ADMIN, status_code=200)
async def delete_model(request: FleetRequest) -> Response[dict[str, Any]]:
    """Delete a model from a server. One that no registry has needs `acknowledgeCustom`."""
    services = services_of(request)
    asked = await body(request, Deletion, FAULT)
    backend = backend_of(services, asked.server_id)
    check = await services.registry.check(asked.model_name)
    if check.is_custom and not asked.acknowledge_custom:
        blocked = {"blocked": True, "reason": "custom_model", "registryCheck": _shown_check(check)}
        return Response(
            {"error": "No registry has this model: it could not be pulled again", **blocked}, status_code=409
        )
    action, new = await _begin(services, request, "delete", asked.model_name, backend)
    if not new:
        raise Conflict("This model is being deleted on this server already")
    return Response(
        await _finish(
            services, action, server_calls.delete(services.caller, backend, asked.model_name), "Model deleted"
        )
    )


@post("/api/models/load", opt=ADMIN, status_code=200)
async def load_model(request: FleetRequest) -> dict[str, Any]:
    """Bring a model into a server's memory; with `keepAlive` for that long (`10m`, `-1m` for good)."""
    services = services_of(request)
    asked = await body(request, Loading, FAULT)
    backend = backend_of(services, asked.server_id)
    action, new = await _begin(services, request, "load", asked.model_name, backend)
    if not new:
        raise Conflict("This model is being loaded on this server already")
    return await _finish(
        services,
        action,
        server_calls.load(services.caller, backend, asked.model_name, asked.keep_alive),
        "Model loaded",
    )


@post("/api/models/unload", opt=ADMIN, status_code=200)
async def unload_model(request: FleetRequest) -> dict[str, Any]:
    """Let a model go from a server's memory."""
    services = services_of(request)
    asked = await body(request, Target, FAULT)
    backend = backend_of(services, asked.server_id)
    action, new = await _begin(services, request, "unload", asked.model_name, backend)
    if not new:
        raise Conflict("This model is being unloaded on this server already")
    return await _finish(
        services, action, server_calls.unload(services.caller, backend, asked.model_name), "Model unloaded"
    )


@get("/api/models/actions", opt=ADMIN)
async def list_actions(request: FleetRequest) -> list[dict[str, Any]]:
    """What was done, newest first; pulls that run say how far they are. `?limit=50`"""
    services = services_of(request)
    found = await services.store.read(actions.newest, limit(request, 50, 200))
    return [_shown(action, services) for action in found]


def backend_of(services: Services, server_id: int) -> Backend:
    """A server of the fleet by its number. Raises PathUnknown."""
    for backend, _ in services.fleet.backends():
        if backend.id == server_id and backend.kind != "worker":
            return backend
    raise PathUnknown("Server not found")


async def _begin(
    services: Services, request: FleetRequest, kind: actions.Kind, model: str, backend: Backend
) -> tuple[Action, bool]:
    if backend.kind != "ollama":
        raise BadRequest(f"Server '{backend.name}' is no Ollama server: its models are chosen where it is started")
    action, new = await services.store.write(
        actions.begin,
        kind,
        model,
        backend.id,
        server=backend.name,
        triggered_by=request.user.name,
        now=services.now(),
    )
    if new:
        _log.info("%s: %s %s on %s", request.user.name, kind, model, backend.name)
    return action, new


async def _finish(services: Services, action: Action, work: Any, done: str) -> dict[str, Any]:
    """Do it, write down how it went; also when the caller leaves meanwhile."""
    return await services.lasting(_do(services, action, work, done), f"{action.action} {action.model_name}")


async def _do(services: Services, action: Action, work: Any, done: str) -> dict[str, Any]:
    status: actions.Status = "failed"
    detail = "Interrupted"
    try:
        await work
        status, detail = "success", done
    except Exception as error:
        detail = server_calls.reason_of(error)
    finally:
        await services.store.write(actions.finish, action.id, status, detail, services.now())
    services.hurry(action.server_name)
    return {"actionId": action.id, "status": status, "detail": detail[: actions.MAX_DETAIL_CHARACTERS]}


def _shown(action: Action, services: Services) -> dict[str, Any]:
    progress = services.pulls.progress.get(action.id)
    return {
        "id": action.id,
        "action": action.action,
        "modelName": action.model_name,
        "serverId": action.server_id,
        "serverName": action.server_name,
        "status": action.status,
        "detail": action.detail,
        "triggeredBy": action.triggered_by,
        "createdAt": stamp(action.created_at),
        "finishedAt": instant(action.finished_at),
        "progress": None if progress is None else msgspec.to_builtins(progress),
    }


def _shown_check(check: Check) -> dict[str, Any]:
    return {
        "modelName": check.model,
        "existsOnOllama": check.on_ollama,
        "existsOnHuggingFace": check.on_huggingface,
        "isCustom": check.is_custom,
        "checkedAt": stamp(check.checked_at),
    }


handlers = [
    Router(
        path="/",
        route_handlers=[
            check_registry,
            pull_model,
            cancel_pull,
            delete_model,
            load_model,
            unload_model,
            list_actions,
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["models"],
    )
]
