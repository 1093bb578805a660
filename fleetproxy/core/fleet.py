"""The fleet as control knows it: backends, what polls said of them, and the routing table that follows.

    observation ──► Fleet.apply ──► (new Fleet, events)
    Fleet ──► compile_table ──► RoutingTable

Everything is a value: the same observations in the same order give the same fleet, older ones never win, and unknown
servers change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.names import alias_key, canonical
from fleetproxy.core.table import ON_DISK, RESIDENT, Route, RoutedBackend, RoutingTable


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What one poll of one backend found. A list that is None was not given this time: the last one stays."""

    backend: str
    #: Seconds since the epoch when the poll ended.
    at_s: float
    reachable: bool
    error: str | None = None
    version: str | None = None
    resident: tuple[ResidentModel, ...] | None = None
    on_disk: tuple[DiskModel, ...] | None = None
    raw_ps: msgspec.Raw | None = None
    raw_tags: msgspec.Raw | None = None
    raw_v1_models: msgspec.Raw | None = None


class ServerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A backend went offline or came (back) online."""

    backend: str
    server_id: int
    kind: Literal["online", "offline"]
    detail: str | None
    at_s: float


class ModelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A model came into a backend's memory, or left it."""

    backend: str
    server_id: int
    model: str
    kind: Literal["loaded", "unloaded"]
    size_bytes: int = 0
    vram_bytes: int = 0
    parameter_size: str | None = None
    quantization: str | None = None
    at_s: float


FleetEvent = ServerEvent | ModelEvent


class Thresholds(msgspec.Struct, frozen=True):
    """Polls in a row before a server changes sides. The first poll decides at once."""

    offline: int = 3
    online: int = 2


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """All backends, in configured order, and their states by name."""

    backends: tuple[Backend, ...] = ()
    states: dict[str, BackendState] = {}

    def of(self, backends: Iterable[Backend]) -> Fleet:
        """The same fleet with these backends; states of those that stay are kept, of those that go forgotten."""
        ordered = tuple(backends)
        names = {backend.name for backend in ordered}
        return Fleet(backends=ordered, states={name: state for name, state in self.states.items() if name in names})

    def state(self, name: str) -> BackendState:
        return self.states.get(name, _UNSEEN)

    def apply(
        self, observation: Observation, thresholds: Thresholds = Thresholds()
    ) -> tuple[Fleet, tuple[FleetEvent, ...]]:
        """The fleet after a poll, and what happened. Idempotent; polls older than the last known change nothing."""
        backend = next((backend for backend in self.backends if backend.name == observation.backend), None)
        if backend is None:
            return self, ()
        before = self.state(backend.name)
        if before.polled_at_s is not None and observation.at_s <= before.polled_at_s:
            return self, ()
        after = _observe(before, observation, thresholds)
        states = dict(self.states)
        states[backend.name] = after
        return Fleet(backends=self.backends, states=states), _events(backend, before, after, observation)


_UNSEEN = BackendState()


def _observe(before: BackendState, seen: Observation, thresholds: Thresholds) -> BackendState:
    first = before.polled_at_s is None
    failures = 0 if seen.reachable else before.consecutive_failures + 1
    successes = before.consecutive_successes + 1 if seen.reachable else 0
    if first:
        online = seen.reachable
    elif before.online:
        online = failures < thresholds.offline
    else:
        online = successes >= thresholds.online
    # What an offline server held in memory is gone with it; what it has on disk is worth remembering.
    resident: tuple[ResidentModel, ...]
    if not online:
        resident, raw_ps = (), msgspec.Raw(b"[]")
    else:
        resident = before.resident if seen.resident is None else seen.resident
        raw_ps = before.raw_ps if seen.raw_ps is None else seen.raw_ps
    return BackendState(
        online=online,
        version=seen.version or before.version,
        resident=resident,
        on_disk=before.on_disk if seen.on_disk is None else seen.on_disk,
        raw_ps=raw_ps,
        raw_tags=before.raw_tags if seen.raw_tags is None else seen.raw_tags,
        raw_v1_models=before.raw_v1_models if seen.raw_v1_models is None else seen.raw_v1_models,
        polled_at_s=seen.at_s,
        consecutive_failures=failures,
        consecutive_successes=successes,
        last_error=seen.error,
    )


def _events(backend: Backend, before: BackendState, after: BackendState, seen: Observation) -> tuple[FleetEvent, ...]:
    """Changes between two states; nothing on the first poll, which has nothing to compare with."""
    if before.polled_at_s is None:
        return ()
    events: list[FleetEvent] = []
    if before.online != after.online:
        events.append(
            ServerEvent(
                backend=backend.name,
                server_id=backend.id,
                kind="online" if after.online else "offline",
                detail="maintenance" if not backend.enabled else seen.error,
                at_s=seen.at_s,
            )
        )
    was = {model.name: model for model in before.resident}
    now = {model.name: model for model in after.resident}
    for name, model in now.items():
        if name not in was:
            events.append(
                ModelEvent(
                    backend=backend.name,
                    server_id=backend.id,
                    model=name,
                    kind="loaded",
                    size_bytes=model.size_bytes,
                    vram_bytes=model.size_vram_bytes,
                    parameter_size=model.parameter_size,
                    quantization=model.quantization,
                    at_s=seen.at_s,
                )
            )
    for name, model in was.items():
        if name not in now:
            events.append(
                ModelEvent(
                    backend=backend.name,
                    server_id=backend.id,
                    model=name,
                    kind="unloaded",
                    parameter_size=model.parameter_size,
                    quantization=model.quantization,
                    at_s=seen.at_s,
                )
            )
    return tuple(events)


# --- the table -------------------------------------------------------------------------------------------------------


def compile_table(fleet: Fleet, aliases: Mapping[str, str]) -> RoutingTable:
    """What the data plane routes by. `aliases` maps a name callers may use to the one that is served."""
    routed = tuple(_routed(backend, fleet.state(backend.name)) for backend in fleet.backends)
    models: dict[str, list[Route]] = {}
    elsewhere: set[str] = set()
    for index, entry in enumerate(routed):
        for route in _routes(index, fleet.state(entry.backend.name)):
            name = canonical(route.model)
            if entry.usable:
                models.setdefault(name, []).append(route)
            else:
                elsewhere.add(name)
    ordered = {
        name: tuple(sorted(routes, key=lambda route: (route.tier, route.backend))) for name, routes in models.items()
    }
    aliased: dict[str, tuple[Route, ...]] = {}
    for name in sorted(ordered):
        key = alias_key(name)
        if key != name:
            aliased[key] = _joined(aliased.get(key, ()), ordered[name])
    for alias, target in aliases.items():
        served = _served(canonical(target), aliases)
        name = canonical(alias)
        if served in ordered and name not in ordered:
            aliased[name] = ordered[served]
        elif served in elsewhere and name not in ordered:
            elsewhere.add(name)
    return RoutingTable(
        backends=routed,
        models=ordered,
        aliases=aliased,
        pins={entry.backend.name.lower(): index for index, entry in enumerate(routed)},
        unavailable=frozenset(elsewhere - ordered.keys()),
    )


def _routed(backend: Backend, state: BackendState) -> RoutedBackend:
    total = backend.vram_bytes
    return RoutedBackend(
        backend=backend,
        usable=state.online and backend.enabled and not backend.draining,
        online=state.online,
        free_vram_bytes=max(0, total - state.vram_used_bytes) if total is not None else None,
    )


def _routes(index: int, state: BackendState) -> Iterable[Route]:
    """Each model of a backend once, as well placed as it is."""
    best: dict[str, Route] = {}
    for model in state.resident:
        best[canonical(model.name)] = Route(index, RESIDENT, model.name)
    for disk in state.on_disk:
        best.setdefault(canonical(disk.name), Route(index, ON_DISK, disk.name))
    return best.values()


def _joined(a: tuple[Route, ...], b: tuple[Route, ...]) -> tuple[Route, ...]:
    """Routes of several names that share an alias key: each backend once, the better tier first."""
    best: dict[int, Route] = {}
    for route in sorted((*a, *b), key=lambda route: (route.tier, route.backend)):
        best.setdefault(route.backend, route)
    return tuple(best.values())


def _served(target: str, aliases: Mapping[str, str]) -> str:
    """Follow an alias to the name at its end; a loop ends where it would begin again."""
    by_name = {canonical(alias): canonical(name) for alias, name in aliases.items()}
    seen = set()
    while target in by_name and target not in seen:
        seen.add(target)
        target = by_name[target]
    return target
