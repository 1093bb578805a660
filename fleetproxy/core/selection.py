"""Which backends may serve a request, in order of preference, and why. One pure function: `rank`.

    pinned ──► that server, or nobody
    model  ──► servers that hold it in memory ──► that have it on disk ──► none lists it: once, most free VRAM
    no model ► the first online server that speaks the dialect

Among servers with the model: breaker closed first, whatever the tier (one that fails must not attract traffic), then
the tier, then least busy, then most free VRAM, then at random. Full servers are left out. When only full ones are left,
or somebody already stands in line for them, the request joins the line; it does not go to a tripped one instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Protocol

import msgspec
from msgspec.structs import replace

from fleetproxy.core.backend import DIALECTS, Backend, Dialect
from fleetproxy.core.names import alias_key, canonical
from fleetproxy.core.operation import Operation
from fleetproxy.core.table import RESIDENT, Route, RoutedBackend, RoutingTable
from fleetproxy.errors import (
    BadRequest,
    DialectUnspoken,
    FleetError,
    Forbidden,
    ModelUnknown,
    NoBackend,
    ServerUnavailable,
    ServerUnknown,
)

#: Reason words, as the ancestor's dashboards group by them.
LOADED, LOADED_BUSY = "model_loaded", "model_loaded_busy"
AVAILABLE, AVAILABLE_BUSY, REDIRECTED = "model_available", "model_available_busy", "model_available_busy_redirect"
MOST_VRAM, ANY, PINNED = "fallback_most_vram", "any_online", "pinned_by_header"
AFFINITY, MOST_SPACE = "affinity", "most_free_space"


class Loads(Protocol):
    """What changes faster than the table."""

    def load(self, column: int) -> int:
        """Requests in flight on a backend, over all processes."""

    def waiting(self, column: int) -> int:
        """Exchanges standing in line for a backend."""

    def tripped(self, column: int) -> bool:
        """Its breaker is open: ask it last."""


class Candidates(msgspec.Struct, frozen=True):
    """Ask these, in this order."""

    routes: tuple[Route, ...]
    reason: str
    pin_ignored: bool = False
    #: Full servers that could serve it too: stood in line for when those above have failed.
    full: tuple[Route, ...] = ()


class Wait(msgspec.Struct, frozen=True):
    """All that could serve it are full: stand in line for one of these columns, first preferred."""

    columns: tuple[int, ...]
    #: The routes of the columns, in the same order.
    routes: tuple[Route, ...]
    reason: str
    pin_ignored: bool = False


class Refuse(msgspec.Struct, frozen=True):
    error: FleetError


Decision = Candidates | Wait | Refuse


def rank(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random, *, pin_fallback: bool = False
) -> Decision:
    """Decide once; trying the next route is no new decision.

    `pin_fallback`: a pin that cannot be kept is passed over, and the decision says so.
    """
    if operation.pin is None:
        decision = _unpinned(table, operation, loads, rng)
    else:
        decision = _pinned(table, operation, loads)
        if pin_fallback and isinstance(decision, Refuse):
            decision = _unpinned(table, operation, loads, rng)
            if not isinstance(decision, Refuse):
                decision = replace(decision, pin_ignored=True)
    return decision if operation.allowed is None else _restricted(decision, operation, operation.allowed)


def routes_of(table: RoutingTable, operation: Operation) -> tuple[Route, ...]:
    """Usable routes to the asked model, of any dialect: by its name, an alias, or a name that shares its alias key."""
    name = operation.canonical
    if name is None:
        return ()
    routes = table.models.get(name) or table.aliases.get(name)
    if routes is None and ":" in (operation.model or ""):
        routes = table.alias_keys.get(alias_key(name))
    return routes or ()


def renames(backend: Backend, operation: Operation, route: Route) -> bool:
    """Whether the request must carry the route's name for the model instead of the caller's.

    Ollama knows its models by any spelling of their name, others by the very one they list.
    """
    return route.model != operation.model and (
        backend.kind != "ollama" or canonical(route.model) != operation.canonical
    )


def place_of(table: RoutingTable, name: str) -> int | None:
    """The index of the worker with this id, else of the server (or worker) with this name; None for nobody."""
    for index, routed in enumerate(table.backends):
        if routed.backend.scheme == "hub" and routed.backend.host == name:
            return index
    return table.pins.get(name.lower())


def speaks(backend: Backend, dialect: Dialect) -> bool:
    return dialect in DIALECTS[backend.kind]


def is_full(backend: Backend, loads: Loads) -> bool:
    """No slot is free, or others stand in line for the next one."""
    limit = backend.max_concurrent
    return limit is not None and (loads.load(backend.column) >= limit or loads.waiting(backend.column) > 0)


# --- by model --------------------------------------------------------------------------------------------------------


def _unpinned(table: RoutingTable, operation: Operation, loads: Loads, rng: Random) -> Decision:
    endpoint = operation.endpoint
    if endpoint.placement == "affinity":
        return _by_affinity(table, operation)
    if endpoint.placement == "space":
        return _by_space(table, operation, loads)
    if operation.canonical is None:
        return _any(table, operation, loads)
    routes = table.models.get(operation.canonical)
    if routes is None:
        routes = routes_of(table, operation)
    backends = table.backends
    dialect = endpoint.dialect
    spoken = [route for route in routes if dialect in DIALECTS[backends[route.backend].backend.kind]]
    if len(spoken) == 1:  # the ordinary case, and the hot one
        route = spoken[0]
        backend = backends[route.backend].backend
        if endpoint.generates and is_full(backend, loads):
            return Wait((backend.column,), (route,), LOADED_BUSY if route.tier == RESIDENT else AVAILABLE_BUSY)
        return Candidates((route,), LOADED if route.tier == RESIDENT else AVAILABLE)
    if spoken:
        return _ordered(backends, spoken, loads, rng, slots=endpoint.generates)
    return _unlisted(table, operation, loads, elsewhere=bool(routes))


#: A backend's standing: closed and free, closed but full, tripped and free, tripped and full.
_FREE, _FULL, _TRIPPED = 0, 1, 2
_Keyed = tuple[int, int, float, bool, int, float, Route]


def _ordered(
    backends: Sequence[RoutedBackend], routes: list[Route], loads: Loads, rng: Random, *, slots: bool
) -> Decision:
    limited = all(backends[route.backend].backend.max_concurrent for route in routes)
    keyed: list[_Keyed] = []
    for route in routes:
        routed = backends[route.backend]
        backend = routed.backend
        column = backend.column
        load: float = loads.load(column)
        limit = backend.max_concurrent
        standing = _TRIPPED if loads.tripped(column) else _FREE
        if limit is not None:
            if slots and (load >= limit or loads.waiting(column) > 0):
                standing += _FULL
            if limited:
                load /= limit
        free = routed.free_vram_bytes
        keyed.append((standing, route.tier, load, free is None, -(free or 0), rng.random(), route))
    keyed.sort(key=_without_route)
    best = keyed[0]
    if best[0] & _FULL:
        chosen = [entry for entry in keyed if entry[0] == best[0]]
        reason = LOADED_BUSY if best[1] == RESIDENT else AVAILABLE_BUSY
        columns = tuple([backends[entry[-1].backend].backend.column for entry in chosen])
        return Wait(columns, tuple([entry[-1] for entry in chosen]), reason)
    if best[1] == RESIDENT:
        reason = LOADED
    else:
        reason = REDIRECTED if any(entry[0] & _FULL and entry[1] == RESIDENT for entry in keyed) else AVAILABLE
    asked = tuple([entry[-1] for entry in keyed if not entry[0] & _FULL])
    if len(asked) == len(keyed):
        return Candidates(asked, reason)
    return Candidates(asked, reason, full=tuple([entry[-1] for entry in keyed if entry[0] == _FULL]))


def _without_route(entry: _Keyed) -> tuple[int, int, float, bool, int, float]:
    return entry[:6]


def _unlisted(table: RoutingTable, operation: Operation, loads: Loads, *, elsewhere: bool) -> Decision:
    """No usable server of this dialect lists the model. Our picture may be old: one is asked, its answer counts."""
    usable = _usable(table, operation.endpoint.dialect)
    if elsewhere:
        return Refuse(
            DialectUnspoken(f"The servers that have '{operation.model}' do not speak this path; ask them at /v1/.")
        )
    if not usable:
        return Refuse(NoBackend())
    if operation.canonical in table.unavailable:
        return Refuse(NoBackend(f"Every server that has the model '{operation.model}' is offline or in maintenance."))
    # Stock workers say all they have, and say it anew when it changes.
    asked = [index for index in usable if table.backends[index].backend.kind != "worker"]
    if not asked:
        return Refuse(ModelUnknown(operation.model or ""))
    best = min(asked, key=lambda index: (loads.tripped(table.backends[index].backend.column), *_room(table, index)))
    return _alone(table, operation, loads, Route(best, RESIDENT, operation.model or ""), MOST_VRAM)


def _alone(table: RoutingTable, operation: Operation, loads: Loads, route: Route, reason: str) -> Decision:
    """This backend and no other."""
    backend = table.backends[route.backend].backend
    if operation.endpoint.generates and is_full(backend, loads):
        return Wait((backend.column,), (route,), reason)
    return Candidates((route,), reason)


# --- by other means --------------------------------------------------------------------------------------------------


def _pinned(table: RoutingTable, operation: Operation, loads: Loads) -> Decision:
    name = operation.pin or ""
    index = table.pins.get(name.lower())
    if index is None:
        return Refuse(ServerUnknown(f"The server '{name}' named by X-Ollama-Pin-Server does not exist."))
    routed = table.backends[index]
    if not routed.usable:
        return Refuse(ServerUnavailable(f"The server '{name}' is offline or in maintenance."))
    if not speaks(routed.backend, operation.endpoint.dialect):
        return Refuse(BadRequest(f"endpoint {operation.endpoint.path} is not supported on server {name}"))
    # What the backend calls the model; the asked name itself when it is not known to have it.
    served = next((route.model for route in routes_of(table, operation) if route.backend == index), operation.model)
    return _alone(table, operation, loads, Route(index, RESIDENT, served or ""), PINNED)


def _any(table: RoutingTable, operation: Operation, loads: Loads) -> Decision:
    usable = _usable(table, operation.endpoint.dialect)
    if not usable:
        return Refuse(NoBackend())
    usable.sort(key=lambda index: loads.tripped(table.backends[index].backend.column))
    routes = tuple(Route(index, RESIDENT, "") for index in usable)
    if not operation.endpoint.generates:
        return Candidates(routes, ANY)
    free = tuple(route for route in routes if not is_full(table.backends[route.backend].backend, loads))
    if free:
        return Candidates(free, ANY, full=tuple(route for route in routes if route not in free))
    return Wait(tuple(table.backends[route.backend].backend.column for route in routes), routes, ANY)


def _by_affinity(table: RoutingTable, operation: Operation) -> Decision:
    """Blobs and the create that follows meet on one host: highest random weight of (caller, server name).

    The same in every process: what only one of them knows (breakers, loads) is not asked.
    """
    usable = _usable(table, operation.endpoint.dialect)
    if not usable:
        return Refuse(NoBackend())
    key = (operation.affinity or "").encode()
    best = max(usable, key=lambda index: _weight(key, table.backends[index].backend.name))
    return Candidates((Route(best, RESIDENT, operation.model or ""),), AFFINITY)


def _weight(key: bytes, name: str) -> bytes:
    return hashlib.blake2b(key + b"\x00" + name.encode(), digest_size=8).digest()


def _by_space(table: RoutingTable, operation: Operation, loads: Loads) -> Decision:
    """A pull goes where there is room: most free disk where it is known, else most free VRAM."""
    usable = _usable(table, operation.endpoint.dialect)
    if not usable:
        return Refuse(NoBackend())

    def room(index: int) -> tuple[bool, bool, int, bool, int]:
        routed = table.backends[index]
        disk = routed.free_disk_bytes
        return (loads.tripped(routed.backend.column), disk is None, -(disk or 0), *_room(table, index))

    usable.sort(key=room)
    return Candidates(tuple(Route(index, RESIDENT, operation.model or "") for index in usable), MOST_SPACE)


def _room(table: RoutingTable, index: int) -> tuple[bool, int]:
    free = table.backends[index].free_vram_bytes
    return free is None, -(free or 0)


def _usable(table: RoutingTable, dialect: Dialect) -> list[int]:
    return [index for index, routed in enumerate(table.backends) if routed.usable and speaks(routed.backend, dialect)]


# --- what the caller may use -----------------------------------------------------------------------------------------


def _restricted(decision: Decision, operation: Operation, allowed: frozenset[str]) -> Decision:
    """The decision without what the caller may not use, judged by the name finally served (an alias opens no door).

    A model that is not allowed and one that does not exist get the same answer.
    """
    if operation.canonical is None:
        if operation.endpoint.has_model or operation.endpoint.generates:
            return Refuse(Forbidden("This key may use certain models only, and the request names none."))
        return decision
    if isinstance(decision, Refuse):
        return decision if operation.canonical in allowed else Refuse(ModelUnknown(operation.model or ""))
    kept = tuple(route for route in decision.routes if canonical(route.model) in allowed)
    if not kept:
        return Refuse(ModelUnknown(operation.model or ""))
    if isinstance(decision, Candidates):
        full = tuple(route for route in decision.full if canonical(route.model) in allowed)
        return replace(decision, routes=kept, full=full)
    columns = dict(zip(decision.routes, decision.columns, strict=True))
    return replace(decision, routes=kept, columns=tuple(columns[route] for route in kept))
