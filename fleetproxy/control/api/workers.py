"""`/api/workers`: the dial-in workers and MCP relays, and draining them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
from litestar import Request, Response, Router, get, patch, post
from litestar.params import FromPath

from fleetproxy import log
from fleetproxy.control.api.guard import ADMIN, USER, Identity
from fleetproxy.control.api.live import live_of
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body, path_id
from fleetproxy.control.live.shapes import worker_number
from fleetproxy.control.visitors import Visitor
from fleetproxy.core.worker import Worker
from fleetproxy.errors import Conflict, PathUnknown

_log = log.get("control.workers")

WorkerRequest = Request[Identity, Any, Any]
#: Workers that may be drained at once; they are remembered while they are away.
MAX_RESTING = 4096
_FAULT = "isDraining must be a boolean"


class Visitors(Protocol):
    """`control.visitors.Visitors`."""

    def all(self) -> Sequence[Visitor]: ...


class Resting(Protocol):
    """`control.fleet.LiveFleet`."""

    resting: frozenset[tuple[str, str]]


class WorkersDesk(msgspec.Struct, frozen=True):
    """What these handlers work with; the app's state `workers`."""

    visitors: Visitors
    fleet: Resting
    #: Returns when every process knows who rests.
    everywhere: Callable[[], Awaitable[None]]


class Change(msgspec.Struct, rename="camel"):
    is_draining: bool


def desk_of(request: WorkerRequest) -> WorkersDesk:
    desk = request.app.state["workers"]
    assert isinstance(desk, WorkersDesk)
    return desk


@get("/api/workers", opt=USER)
async def list_workers(request: WorkerRequest) -> Response[bytes]:
    """Every dial-in worker (`workers`) and MCP relay (`relays`) that is connected, and how busy it is."""
    live = live_of(request.app)
    live.fresh()
    shown = {"workers": live.picture.group("workers"), "relays": live.picture.group("relays")}
    return Response(msgspec.json.encode(shown), media_type="application/json")


@patch("/api/workers/{worker_id:str}", opt=ADMIN)
async def change_worker(request: WorkerRequest, worker_id: FromPath[str]) -> dict[str, bool]:
    """Drain a worker or relay (`isDraining`): what it is at ends, it gets nothing new. Or let it work again.

    It is known by its number, or by its own id. Draining outlasts its connection, and ends when the service is started
    anew.
    """
    asked = await body(request, Change, _FAULT)
    return await _drain(request, worker_id, asked.is_draining)


@post("/api/workers/{worker_id:str}/drain", opt=ADMIN, status_code=200)
async def drain_worker(request: WorkerRequest, worker_id: FromPath[str]) -> dict[str, bool]:
    """The same as `{"isDraining": true}`."""
    return await _drain(request, worker_id, True)


@post("/api/workers/{worker_id:str}/undrain", opt=ADMIN, status_code=200)
async def undrain_worker(request: WorkerRequest, worker_id: FromPath[str]) -> dict[str, bool]:
    """The same as `{"isDraining": false}`."""
    return await _drain(request, worker_id, False)


async def _drain(request: WorkerRequest, text: str, draining: bool) -> dict[str, bool]:
    desk = desk_of(request)
    worker = _find(desk, text)
    key = (worker.family, worker.id)
    resting = desk.fleet.resting
    if draining and key not in resting and len(resting) >= MAX_RESTING:
        here = {(one.worker.family, one.worker.id) for one in desk.visitors.all()}
        resting = frozenset(resting & here)
        if len(resting) >= MAX_RESTING:
            raise Conflict(f"{MAX_RESTING} workers are drained already; let some work again first")
    desk.fleet.resting = resting | {key} if draining else resting - {key}
    await desk.everywhere()
    _log.info("%s %s worker %s", request.user.name, "drains" if draining else "undrains", worker.name)
    return {"ok": True}


def _find(desk: WorkersDesk, text: str) -> Worker:
    """By number, else by its own id, else by name. Raises PathUnknown."""
    workers = [visitor.worker for visitor in desk.visitors.all()]
    number = path_id(text, "worker ID") if text.isascii() and text.isdigit() else None
    found = next((worker for worker in workers if worker_number(worker) == number), None)
    found = found or next((worker for worker in workers if worker.id == text), None)
    found = found or next((worker for worker in workers if worker.name == text), None)
    if found is None:
        raise PathUnknown("Worker not found")
    return found


handlers = [
    Router(
        path="/",
        route_handlers=[list_workers, change_worker, drain_worker, undrain_worker],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["workers"],
    )
]
