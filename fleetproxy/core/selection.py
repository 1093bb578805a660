"""Which backends may serve a request, in order of preference, and why. One pure function: `rank`.

    pinned ──► that server, or nobody
    model  ──► servers that hold it in memory ──► that have it on disk ──► none lists it: once, most free VRAM
    no model ► the first online server that speaks the dialect

Inside a tier: breaker closed first, then least busy, then most free VRAM, then at random. Full servers are left out;
when only full ones are left, or somebody already stands in line for them, the request joins the line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Protocol

import msgspec

from fleetproxy.core.backend import DIALECTS, Backend, Dialect
from fleetproxy.core.names import alias_key
from fleetproxy.core.operation import Operation
from fleetproxy.core.table import RESIDENT, Route, RoutedBackend, RoutingTable
from fleetproxy.errors import BadRequest, FleetError, NoBackend, ServerUnavailable, ServerUnknown

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
    """Decide once; trying the next route is no new decision."""
    pin_ignored = False
    if operation.pin is not None:
        decision = _pinned(table, operation, loads)
        if not (pin_fallback and isinstance(decision, Refuse)):
            return decision
        pin_ignored = True
    endpoint = operation.endpoint
    canonical = operation.canonical
    if endpoint.placement == "affinity":
        return _by_affinity(table, operation)
    if endpoint.placement == "space":
        return _by_space(table, operation)
    if canonical is None:
        return _any(table, operation, loads, pin_ignored)
    routes = table.models.get(canonical)
    if routes is None:
        routes = table.aliases.get(canonical) or table.aliases.get(alias_key(canonical))
    if routes is not None:
        backends = table.backends
        dialect = endpoint.dialect
        spoken = [route for route in routes if dialect in DIALECTS[backends[route.backend].backend.kind]]
        if spoken:
            return _order(backends, spoken, loads, rng, slots=endpoint.generates, pin_ignored=pin_ignored)
    return _unlisted(table, operation, loads, pin_ignored)


def _order(
    backends: Sequence[RoutedBackend],
    routes: list[Route],
    loads: Loads,
    rng: Random,
    *,
    slots: bool,
    pin_ignored: bool,
) -> Decision:
    """Routes by preference; full ones stand aside."""
    if len(routes) == 1:  # the ordinary case, and the hot one
        route = routes[0]
        backend = backends[route.backend].backend
        if slots and is_full(backend, loads):
            reason = LOADED_BUSY if route.tier == RESIDENT else AVAILABLE_BUSY
            return Wait((backend.column,), (route,), reason, pin_ignored)
        return Candidates((route,), LOADED if route.tier == RESIDENT else AVAILABLE, pin_ignored)
    limited = all(backends[route.backend].backend.max_concurrent for route in routes)
    keyed = []
    for route in routes:
        routed = backends[route.backend]
        backend = routed.backend
        column = backend.column
        load: float = loads.load(column)
        if limited and backend.max_concurrent:
            load /= backend.max_concurrent
        free = routed.free_vram_bytes
        keyed.append(
            (
                slots and is_full(backend, loads),
                loads.tripped(column),
                route.tier,
                load,
                free is None,
                -(free or 0),
                rng.random(),
                route,
            )
        )
    keyed.sort(key=_without_route)
    first = keyed[0]
    if first[0]:
        ordered = tuple(entry[-1] for entry in keyed)
        reason = LOADED_BUSY if first[2] == RESIDENT else AVAILABLE_BUSY
        return Wait(tuple(backends[route.backend].backend.column for route in ordered), ordered, reason, pin_ignored)
    if first[2] == RESIDENT:
        reason = LOADED
    else:
        reason = REDIRECTED if any(entry[0] and entry[2] == RESIDENT for entry in keyed) else AVAILABLE
    return Candidates(tuple(entry[-1] for entry in keyed if not entry[0]), reason, pin_ignored)


_Keyed = tuple[bool, bool, int, float, bool, int, float, Route]


def _without_route(entry: _Keyed) -> tuple[bool, bool, int, float, bool, int, float]:
    return entry[:7]


def is_full(backend: Backend, loads: Loads) -> bool:
    """No slot is free, or others stand in line for the next one."""
    limit = backend.max_concurrent
    return limit is not None and (loads.load(backend.column) >= limit or loads.waiting(backend.column) > 0)


def _pinned(table: RoutingTable, operation: Operation, loads: Loads) -> Decision:
    name = operation.pin or ""
    index = table.pins.get(name.lower())
    if index is None:
        return Refuse(ServerUnknown(f"The server '{name}' named by X-Ollama-Pin-Server does not exist."))
    routed = table.backends[index]
    if not routed.usable:
        return Refuse(ServerUnavailable(f"The server '{name}' is offline or in maintenance."))
    backend = routed.backend
    if not speaks(backend, operation.endpoint.dialect):
        return Refuse(BadRequest(f"The server '{name}' does not speak {operation.endpoint.path}."))
    route = Route(index, RESIDENT, _served_name(table, operation, index))
    if operation.endpoint.generates and is_full(backend, loads):
        return Wait((backend.column,), (route,), PINNED)
    return Candidates((route,), PINNED)


def _served_name(table: RoutingTable, operation: Operation, index: int) -> str:
    """What a backend calls the asked model; the asked name itself when it is not known to have it."""
    canonical = operation.canonical
    if canonical is None:
        return ""
    for routes in (table.models.get(canonical), table.aliases.get(canonical), table.aliases.get(alias_key(canonical))):
        for route in routes or ():
            if route.backend == index:
                return route.model
    return operation.model or ""


def _any(table: RoutingTable, operation: Operation, loads: Loads, pin_ignored: bool) -> Decision:
    usable = _usable(table, operation.endpoint.dialect)
    if not usable:
        return Refuse(NoBackend())
    usable.sort(key=lambda index: loads.tripped(table.backends[index].backend.column))
    return Candidates(tuple(Route(index, RESIDENT, "") for index in usable), ANY, pin_ignored)


def _unlisted(table: RoutingTable, operation: Operation, loads: Loads, pin_ignored: bool) -> Decision:
    """No usable server lists the model. Our picture may be old: one server is asked, and its answer is the answer."""
    usable = _usable(table, operation.endpoint.dialect)
    if not usable:
        return Refuse(NoBackend())
    if operation.canonical in table.unavailable:
        return Refuse(NoBackend(f"Every server that has the model '{operation.model}' is offline or in maintenance."))
    best = min(usable, key=lambda index: (loads.tripped(table.backends[index].backend.column), *_room(table, index)))
    route = Route(best, RESIDENT, operation.model or "")
    backend = table.backends[best].backend
    if operation.endpoint.generates and is_full(backend, loads):
        return Wait((backend.column,), (route,), MOST_VRAM, pin_ignored)
    return Candidates((route,), MOST_VRAM, pin_ignored)


def _by_affinity(table: RoutingTable, operation: Operation) -> Decision:
    """Blobs and the create that follows meet on one host: highest random weight of (caller, server name)."""
    usable = _usable(table, operation.endpoint.dialect)
    if not usable:
        return Refuse(NoBackend())
    key = (operation.affinity or "").encode()
    best = max(usable, key=lambda index: _weight(key, table.backends[index].backend.name))
    return Candidates((Route(best, RESIDENT, operation.model or ""),), AFFINITY)


def _weight(key: bytes, name: str) -> bytes:
    return hashlib.blake2b(key + b"\x00" + name.encode(), digest_size=8).digest()


def _by_space(table: RoutingTable, operation: Operation) -> Decision:
    """A pull goes where there is room: most free disk where it is known, else most free VRAM."""
    usable = _usable(table, operation.endpoint.dialect)
    if not usable:
        return Refuse(NoBackend())

    def room(index: int) -> tuple[bool, int, bool, int]:
        disk = table.backends[index].free_disk_bytes
        return (disk is None, -(disk or 0), *_room(table, index))

    return Candidates((Route(min(usable, key=room), RESIDENT, operation.model or ""),), MOST_SPACE)


def _room(table: RoutingTable, index: int) -> tuple[bool, int]:
    free = table.backends[index].free_vram_bytes
    return free is None, -(free or 0)


def _usable(table: RoutingTable, dialect: Dialect) -> list[int]:
    return [index for index, routed in enumerate(table.backends) if routed.usable and speaks(routed.backend, dialect)]


def speaks(backend: Backend, dialect: Dialect) -> bool:
    return dialect in DIALECTS[backend.kind]
