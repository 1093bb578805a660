"""How long models stayed in memory, from the events that say when they came and went."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import msgspec


class Sighting(msgspec.Struct, frozen=True):
    """A model came into a server's memory, or left it."""

    at: datetime
    server_id: int
    server: str
    model: str
    kind: Literal["loaded", "unloaded"]
    #: What was known of a model that was loaded.
    size_bytes: int = 0
    vram_bytes: int = 0
    parameter_size: str | None = None
    quantization: str | None = None


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """All stays of one model in one server's memory within a window."""

    server_id: int
    server: str
    model: str
    loaded_s: float
    #: Times it was loaded within the window.
    loads: int
    unloads: int
    last_seen: datetime


def stays(sightings: Iterable[Sighting], since: datetime, now: datetime) -> list[Stay]:
    """Longest first. `sightings` in the order of time; those before `since` only tell what was loaded at its start.

    A model still loaded counts until `now`. "Loaded" again without "unloaded" in between (a restart of ours) does not
    interrupt a stay.
    """
    open_since: dict[tuple[int, str], datetime] = {}
    found: dict[tuple[int, str], Stay] = {}
    for sighting in sightings:
        key = (sighting.server_id, sighting.model)
        inside = sighting.at >= since
        known = found.get(key) or Stay(
            server_id=sighting.server_id,
            server=sighting.server,
            model=sighting.model,
            loaded_s=0.0,
            loads=0,
            unloads=0,
            last_seen=sighting.at,
        )
        began = open_since.get(key)
        if sighting.kind == "loaded":
            if began is None:
                open_since[key] = max(sighting.at, since)
            loads, unloads, loaded_s = known.loads + (inside and began is None), known.unloads, known.loaded_s
        else:
            loads, unloads = known.loads, known.unloads + (inside and began is not None)
            loaded_s = known.loaded_s
            if began is not None:
                del open_since[key]
                loaded_s += max(0.0, (sighting.at - began).total_seconds()) if inside else 0.0
        found[key] = Stay(
            server_id=sighting.server_id,
            server=sighting.server,
            model=sighting.model,
            loaded_s=loaded_s,
            loads=loads,
            unloads=unloads,
            last_seen=sighting.at,
        )
    for key, began in open_since.items():
        known = found[key]
        total_s = known.loaded_s + max(0.0, (now - began).total_seconds())
        found[key] = msgspec.structs.replace(known, loaded_s=total_s)
    seen = [stay for stay in found.values() if stay.last_seen >= since or stay.loaded_s > 0]
    return sorted(seen, key=lambda stay: (-stay.loaded_s, stay.server_id, stay.model))


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """One stay of a model in a server's memory."""

    server_id: int
    server: str
    model: str
    loaded_at: datetime
    #: None: it lasts.
    unloaded_at: datetime | None
    #: Of it, within the window.
    seconds: float
    size_bytes: int = 0
    vram_bytes: int = 0
    parameter_size: str | None = None
    quantization: str | None = None


def intervals(sightings: Iterable[Sighting], since: datetime, until: datetime) -> list[Interval]:
    """Every stay that touches [since, until), by server, model and time. `sightings` as for `stays`."""
    open_since: dict[tuple[int, str], Sighting] = {}
    found: list[Interval] = []

    def close(began: Sighting, ended: datetime | None) -> None:
        last = until if ended is None else ended
        if last < since or began.at >= until or (last == since and began.at < since):
            return
        found.append(
            Interval(
                server_id=began.server_id,
                server=began.server,
                model=began.model,
                loaded_at=began.at,
                unloaded_at=ended,
                seconds=max(0.0, (last - max(began.at, since)).total_seconds()),
                size_bytes=began.size_bytes,
                vram_bytes=began.vram_bytes,
                parameter_size=began.parameter_size,
                quantization=began.quantization,
            )
        )

    for sighting in sightings:
        if sighting.at >= until:
            break
        key = (sighting.server_id, sighting.model)
        if sighting.kind == "loaded":
            open_since.setdefault(key, sighting)
        elif (began := open_since.pop(key, None)) is not None:
            close(began, sighting.at)
    for began in open_since.values():
        close(began, None)
    return sorted(found, key=lambda one: (one.server_id, one.model, one.loaded_at))
