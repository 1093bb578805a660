"""From what a poll found to what the fleet learns, and from what the fleet says happened to rows of the store.

Values in, values out.
"""

from __future__ import annotations

import msgspec

from fleetproxy.control.analytics.rows import ModelEvent, Row, ServerEvent
from fleetproxy.control.probe import Probe
from fleetproxy.core import fleet as core
from fleetproxy.core.backend import Backend, BackendState, ResidentModel
from fleetproxy.core.fleet import Observation
from fleetproxy.families.llm import listings

#: Fields of a state that change with every poll and that no snapshot is made of.
FLEETING = ("polled_at_s", "consecutive_failures", "consecutive_successes", "last_error")

#: Fields that say which machine a backend is.
_PLACE = ("kind", "scheme", "host", "port", "path_prefix")


def same_place(a: Backend, b: Backend) -> bool:
    """Whether what was seen of one still says something about the other."""
    return all(getattr(a, name) == getattr(b, name) for name in _PLACE)


def same_but_fleeting(a: BackendState, b: BackendState) -> bool:
    """Whether two states differ in nothing that matters to routing, listings or events."""
    return a == msgspec.structs.replace(b, **{name: getattr(a, name) for name in FLEETING})


def observation(backend: Backend, probe: Probe, at_s: float) -> Observation:
    """What one poll of a backend means. OpenAI-compatible servers hold in memory what they list."""
    in_memory, stored = probe.resident, probe.on_disk
    if backend.kind != "ollama":
        in_memory = stored = probe.v1_models
    return Observation(
        backend=backend.name,
        at_s=at_s,
        reachable=probe.reachable,
        error=probe.error,
        version=probe.version,
        resident=None if in_memory is None else listings.resident(in_memory),
        on_disk=None if stored is None else listings.on_disk(stored),
        raw_ps=None if probe.resident is None else probe.resident.raw,
        raw_tags=None if probe.on_disk is None else probe.on_disk.raw,
        raw_v1_models=None if probe.v1_models is None else probe.v1_models.raw,
    )


def just_after(at_s: float | None) -> float:
    """The next moment after a poll, for clocks that were set back: a poll that ended later must count as later."""
    return 0.0 if at_s is None else at_s + 1e-3


def first_sights(
    backend: Backend, state: BackendState, told: frozenset[str], at_s: float
) -> tuple[core.ModelEvent, ...]:
    """Models in memory that were never told of as loaded: there when the server was seen first. They count as loaded
    from here on, or their stay would be told nowhere."""
    return tuple(
        core.ModelEvent(
            backend=backend.name,
            server_id=backend.id,
            model=model.name,
            kind="loaded",
            size_bytes=model.size_bytes,
            vram_bytes=model.size_vram_bytes,
            parameter_size=model.parameter_size,
            quantization=model.quantization,
            at_s=at_s,
        )
        for model in _each_once(state.resident)
        if model.name not in told
    )


def unloaded(backend: Backend, model: str, at_s: float) -> core.ModelEvent:
    """A model of a server that has left the fleet."""
    return core.ModelEvent(backend=backend.name, server_id=backend.id, model=model, kind="unloaded", at_s=at_s)


def row(event: core.FleetEvent) -> Row:
    """An event as the store keeps it."""
    occurred_at_us = int(event.at_s * 1_000_000)
    if isinstance(event, core.ServerEvent):
        return ServerEvent(
            occurred_at_us=occurred_at_us,
            server_id=event.server_id,
            server=event.backend,
            event=event.kind,
            detail=event.detail,
        )
    return ModelEvent(
        occurred_at_us=occurred_at_us,
        server_id=event.server_id,
        server=event.backend,
        model=event.model,
        event=event.kind,
        size_bytes=event.size_bytes,
        vram_bytes=event.vram_bytes,
        parameter_size=event.parameter_size,
        quantization=event.quantization,
    )


def _each_once(models: tuple[ResidentModel, ...]) -> tuple[ResidentModel, ...]:
    return tuple({model.name: model for model in models}.values())
