"""`GET /api/models/explain`: who would be asked for a model now, and why not the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

import msgspec
from litestar import Request, Router, get

from fleetproxy.control.api.guard import USER, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS
from fleetproxy.control.live.shapes import instant
from fleetproxy.control.visitors import Visitor
from fleetproxy.core.explain import Explanation, explain
from fleetproxy.core.names import canonical
from fleetproxy.core.operation import Endpoint, Operation
from fleetproxy.core.presence import with_workers
from fleetproxy.core.table import RoutingTable, Snapshot
from fleetproxy.core.wording import VERDICTS, reason_words
from fleetproxy.errors import BadRequest
from fleetproxy.families import registry

ExplainRequest = Request[Identity, Any, Any]

MAX_CHARACTERS = 256
DEFAULT_PATH = "/api/chat"


class Counter(Protocol):
    """`link.board.Board`."""

    def load(self, column: int) -> int: ...
    def waiting(self, column: int) -> int: ...


class Visitors(Protocol):
    """`control.visitors.Visitors`."""

    def all(self) -> Sequence[Visitor]: ...


class Routing(msgspec.Struct, frozen=True):
    """What a proxy process would decide with; the app's state `routing`."""

    snapshot: Callable[[], Snapshot]
    visitors: Visitors
    board: Counter
    #: A process has this backend's breaker open.
    tripped: Callable[[int], bool]

    def load(self, column: int) -> int:
        return self.board.load(column)

    def waiting(self, column: int) -> int:
        return self.board.waiting(column)

    def table(self, endpoint: Endpoint) -> RoutingTable:
        """The table this endpoint is routed by."""
        table = self.snapshot().table
        workers = [visitor.worker for visitor in self.visitors.all()]
        if endpoint.table == "audio":
            return with_workers(table, workers, ("llm", "asr"))
        if endpoint.table == "asr":
            return with_workers(RoutingTable(), workers, ("asr",))
        return table


def routing_of(app: Any) -> Routing:
    routing = app.state["routing"]
    assert isinstance(routing, Routing)
    return routing


@get("/api/models/explain", opt=USER)
async def explain_model(request: ExplainRequest) -> dict[str, Any]:
    """Every server, as it stands for a request for `?model=X` at `&path=/api/chat`: who is asked first, who next, and
    why the others are not. `&pin=name` as the header would name a server.
    """
    asked = request.query_params
    model, path = asked.get("model", "").strip(), asked.get("path", "") or DEFAULT_PATH
    if not 0 < len(model) <= MAX_CHARACTERS:
        raise BadRequest("model parameter required")
    endpoint = endpoint_of(path) if len(path) <= MAX_CHARACTERS else None
    if endpoint is None:
        raise BadRequest("path: no request for a model goes there")
    return explained(routing_of(request.app), endpoint, model, asked.get("pin") or None)


def endpoint_of(path: str) -> Endpoint | None:
    """The endpoint that requests at a path are for; None for paths no server is chosen for."""
    found = [endpoint for method in ("POST", "GET") if (endpoint := registry.find(method, path)) is not None]
    routed = [one for one in found if one.shape in ("relay", "scatter") and one.family in ("llm", "asr")]
    return routed[0] if routed and len(routed) == len(found) else None


def explained(routing: Routing, endpoint: Endpoint, model: str | None, pin: str | None = None) -> dict[str, Any]:
    """An explanation, as the API shows it."""
    operation = Operation(endpoint=endpoint, model=model, canonical=canonical(model) if model else None, pin=pin)
    table = routing.table(endpoint)
    fallback = routing.snapshot().access.pin_fallback
    # What is left to chance among equals is shown in the fleet's order of preference, the same at each look.
    found = explain(table, operation, routing, Random(0), pin_fallback=fallback)  # noqa: S311 - breaks ties
    return {
        "model": model,
        "path": endpoint.path,
        "outcome": found.outcome,
        "reason": found.reason,
        "words": found.message if found.outcome == "refuse" else reason_words(found.reason),
        "message": found.message,
        "pinIgnored": found.pin_ignored,
        "at": instant(time.time()),
        "considered": considered(table, found),
    }


def considered(table: RoutingTable, found: Explanation) -> list[dict[str, Any]]:
    numbers = {routed.backend.name: routed.backend.id for routed in table.backends}
    return [
        {
            "serverId": numbers[one.backend],
            "serverName": one.backend,
            "place": one.place,
            "verdict": one.verdict,
            "words": VERDICTS[one.verdict],
            "tier": one.tier,
            "model": one.model,
            "inFlight": one.in_flight,
            "slots": one.slots,
            "waiting": one.waiting,
            "freeVramBytes": one.free_vram_bytes,
            "tripped": one.tripped,
        }
        for one in found.considered
    ]


handlers = [
    Router(path="/", route_handlers=[explain_model], exception_handlers=EXCEPTION_HANDLERS, tags=["models"]),
]
