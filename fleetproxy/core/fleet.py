"""The fleet as control knows it: backends, what polls said of them, and the routing table that follows.

    observation ──► Fleet.apply ──► (new Fleet, events)
    Fleet ──► compile_table ──► RoutingTable

Everything is a value: the same observations in the same order give the same fleet, older ones never win, and unknown
servers change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
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
    free_disk_bytes: int | None = None
    raw_ps: msgspec.Raw | None = None
    raw_tags: msgspec.Raw | None = None
    raw_v1_models: msgspec.Raw | None = None


class ServerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A backend went offline, came (back) online, or runs another version than before."""

    backend: str
    server_id: int
    kind: Literal["online", "offline", "deploy"]
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
        """The same fleet with these backends. One that is still at its old address keeps what is known of it."""
        ordered = tuple(backends)
        old = {backend.name: backend for backend in self.backends}
        states = {
            backend.name: self.states[backend.name]
            for backend in ordered
            if backend.name in self.states and backend.name in old and _same_place(old[backend.name], backend)
        }
        return Fleet(backends=ordered, states=states)

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
#: Of a version, in words about it.
_VERSION_CHARACTERS = 64
#: What makes a backend another one, of which nothing is known.
_PLACE = ("kind", "scheme", "host", "port", "path_prefix")


def _same_place(old: Backend, new: Backend) -> bool:
    return all(getattr(old, field) == getattr(new, field) for field in _PLACE)


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
        resident_known=before.resident_known or seen.resident is not None or not online,
        free_disk_bytes=before.free_disk_bytes if seen.free_disk_bytes is None else seen.free_disk_bytes,
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
    """Changes between two states; nothing where nothing was known: a restart makes no events."""
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
    if before.version is not None and after.version is not None and before.version != after.version:
        told = f"{before.version[:_VERSION_CHARACTERS]} -> {after.version[:_VERSION_CHARACTERS]}"
        events.append(
            ServerEvent(
                backend=backend.name,
                server_id=backend.id,
                kind="deploy",
                detail=f"Ollama {told}" if backend.kind == "ollama" else told,
                at_s=seen.at_s,
            )
        )
    if not before.resident_known:
        return tuple(events)
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
    """What the data plane routes by. `aliases` maps a name callers may use to the one that is meant; chains are
    followed, circles lead nowhere, and a model of that name comes first.
    """
    routed = tuple(_routed(backend, fleet.state(backend.name)) for backend in fleet.backends)
    found: dict[str, list[Route]] = {}
    keyed: dict[str, list[Route]] = {}
    elsewhere: set[str] = set()
    for index, entry in enumerate(routed):
        for route in _routes(index, fleet.state(entry.backend.name)):
            name = canonical(route.model)
            if not entry.usable:
                elsewhere.add(name)
                continue
            found.setdefault(name, []).append(route)
            key = alias_key(name) if ":" in route.model else ""
            if key:
                keyed.setdefault(key, []).append(route)
    models = {name: _ordered(routes) for name, routes in found.items()}
    unavailable = elsewhere - models.keys()
    meant = _meant(aliases, models.keys(), unavailable)
    return RoutingTable(
        backends=routed,
        models=models,
        aliases={alias: models[name] for alias, name in meant.items() if name in models},
        alias_keys={key: _ordered(routes) for key, routes in keyed.items()},
        pins={entry.backend.name.lower(): index for index, entry in reversed(list(enumerate(routed)))},
        unavailable=frozenset(unavailable | {alias for alias, name in meant.items() if name in unavailable}),
    )


def _routed(backend: Backend, state: BackendState) -> RoutedBackend:
    total = backend.vram_bytes
    return RoutedBackend(
        backend=backend,
        usable=state.online and backend.enabled and not backend.draining,
        online=state.online,
        free_vram_bytes=max(0, total - state.vram_used_bytes) if total is not None else None,
        free_disk_bytes=state.free_disk_bytes,
    )


def _routes(index: int, state: BackendState) -> Iterable[Route]:
    """Each model of a backend once, as well placed as it is."""
    best: dict[str, Route] = {}
    for model in state.resident:
        best[canonical(model.name)] = Route(index, RESIDENT, model.name)
    for disk in state.on_disk:
        best.setdefault(canonical(disk.name), Route(index, ON_DISK, disk.name))
    return best.values()


def _ordered(routes: Iterable[Route]) -> tuple[Route, ...]:
    """In static order (tier, then server), each backend once, where it is best."""
    best: dict[int, Route] = {}
    for route in sorted(routes, key=lambda route: (route.tier, route.backend)):
        best.setdefault(route.backend, route)
    return tuple(best.values())


def _meant(aliases: Mapping[str, str], served: Set[str], unavailable: Set[str]) -> dict[str, str]:
    """Alias -> the model it means in the end, both canonical: the first of its chain that is served, else known."""
    targets = {canonical(alias): canonical(target) for alias, target in aliases.items()}
    meant: dict[str, str] = {}
    for alias, first in targets.items():
        chain = [first]
        while chain[-1] in targets and targets[chain[-1]] not in chain:
            chain.append(targets[chain[-1]])
        for known in (served, unavailable):
            name = next((name for name in chain if name in known), None)
            if name is not None:
                meant[alias] = name
                break
    return meant
