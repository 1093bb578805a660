"""What happened and what follows from it: events, residency, machine metrics, placement advice, new models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from litestar import Request, Router, get

from fleetproxy.control.api.guard import USER, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, hours, integer, limit, stamp
from fleetproxy.control.ports import FleetPort
from fleetproxy.control.services import services_of
from fleetproxy.control.state import discoveries
from fleetproxy.core.advice import Demand, Shelf, affinities, consider_adding, consider_removing, oversized
from fleetproxy.core.residency import stays
from fleetproxy.errors import BadRequest

FleetRequest = Request[Identity, Any, Any]


@get("/api/events", opt=USER)
async def list_events(request: FleetRequest) -> list[dict[str, Any]]:
    """Models loaded and unloaded, newest first. `?hours=24`"""
    services = services_of(request)
    since = _since(request, services.now(), 24)
    return [_row(row) for row in await services.records.model_events(since, 500)]


@get("/api/server-events", opt=USER)
async def list_server_events(request: FleetRequest) -> list[dict[str, Any]]:
    """Servers gone offline, back online, rebooted, or with another version than before (`deploy`; `serverId` 0 is
    fleetproxy itself); newest first. `?hours=24`
    """
    services = services_of(request)
    since = _since(request, services.now(), 24)
    return [_row(row) for row in await services.records.server_events(since, 100)]


@get("/api/usage", opt=USER)
async def list_usage(request: FleetRequest) -> list[dict[str, Any]]:
    """How long each model stayed in each server's memory, longest first. `?hours=168`"""
    services = services_of(request)
    now = services.now()
    since = _since(request, now, 168)
    return [
        {
            "serverName": stay.server,
            "serverId": stay.server_id,
            "modelName": stay.model,
            "totalLoadedSeconds": stay.loaded_s,
            "loadCount": stay.loads,
            "lastSeen": stamp(stay.last_seen),
        }
        for stay in stays(await services.records.sightings(since), since, now)
    ]


@get("/api/system-metrics", opt=USER)
async def list_system_metrics(request: FleetRequest) -> list[dict[str, Any]]:
    """A server's machine over time, one row per minute, oldest first. `?serverId=1&hours=24`"""
    services = services_of(request)
    server_id = integer(request.query_params.get("serverId"))
    if server_id is None or not 0 < server_id < 2**53:
        raise BadRequest("serverId required")
    since = _since(request, services.now(), 24)
    return [_row(row) for row in await services.records.system_metrics(server_id, since)]


@get("/api/recommendations", opt=USER)
async def recommend(request: FleetRequest) -> dict[str, Any]:
    """Which models to remove, replicate, or not to have on a small server. `?hours=168`"""
    services = services_of(request)
    now = services.now()
    period = hours(request, 168)
    since = now - timedelta(hours=period)
    shelves = _shelves(services.fleet)
    counts = await services.records.request_counts(since)
    demand = {
        row["modelName"]: Demand(row["count"], row["avgDurationMs"] or 0.0, row["busiestMinuteCount"])
        for row in counts["by_model"]
    }
    by_server = {(row["serverId"], row["modelName"]): row["count"] for row in counts["by_server"]}
    seen = stays(await services.records.sightings(since), since, now)
    return {
        "considerRemoving": msgspec.to_builtins(consider_removing(shelves, seen, by_server, demand)),
        "considerAdding": msgspec.to_builtins(consider_adding(shelves, demand)),
        "oversizedModels": msgspec.to_builtins(oversized(shelves)),
        "periodHours": period,
        "serverNames": [shelf.server for shelf in shelves],
    }


@get("/api/discoveries", opt=USER)
async def list_discoveries(request: FleetRequest) -> dict[str, Any]:
    """Models the fleet has got, newest first, and who uses their relatives. `?hours=168&limit=50`"""
    services = services_of(request)
    period = hours(request, 168)
    found = await services.store.read(discoveries.newest, limit(request, 50, 200))
    counts = await services.records.request_counts(services.now() - timedelta(hours=period))
    use = [(row["source"], row["modelName"], row["count"]) for row in counts["by_source"] if row["source"]]
    families = {one.model_name: one.model_family.lower() for one in found if one.model_family}
    return {
        "discoveries": [
            {
                "id": one.id,
                "modelName": one.model_name,
                "modelFamily": one.model_family,
                "families": one.families,
                "parameterSize": one.parameter_size,
                "quantization": one.quantization,
                "modelSize": one.model_size_bytes,
                # What only a registry on the internet knows; we ask none without being told to.
                "description": None,
                "capabilities": [],
                "pullCount": None,
                "registryExists": None,
                "firstSeenServerName": one.first_seen_server_name,
                "infoFetchStatus": "success" if one.model_family else "partial",
                "infoFetchedAt": stamp(one.discovered_at),
                "discoveredAt": stamp(one.discovered_at),
                "serviceAffinities": msgspec.to_builtins(affinities(one.model_name, families, use)),
            }
            for one in found
        ],
        "periodHours": period,
    }


def _since(request: FleetRequest, now: datetime, default_hours: int) -> datetime:
    return now - timedelta(hours=hours(request, default_hours))


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: stamp(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _shelves(fleet: FleetPort) -> Sequence[Shelf]:
    return [
        Shelf(backend.id, backend.name, backend.vram_bytes, state.on_disk)
        for backend, state in fleet.backends()
        if backend.kind == "ollama"
    ]


handlers = [
    Router(
        path="/",
        route_handlers=[
            list_events,
            list_server_events,
            list_usage,
            list_system_metrics,
            recommend,
            list_discoveries,
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        tags=["events"],
    )
]
