"""Advice on which models should be on which servers: what to remove, what to add, what does not fit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from fleetproxy.core.backend import DiskModel
from fleetproxy.core.residency import Stay

GIB = 1024**3
#: Loaded this often or more, and asked for in fewer than this share of the loads: the model is only in the way.
MIN_LOADS, MAX_REQUESTS_PER_LOAD = 5, 0.15
#: A model with fewer requests is not worth a copy.
MIN_REQUESTS = 10
#: A model larger than this share of a server's memory crowds out everything else.
MAX_SHARE = 0.8


class Shelf(msgspec.Struct, frozen=True):
    """A server and what it has on disk."""

    server_id: int
    server: str
    memory_bytes: int | None
    models: tuple[DiskModel, ...]


class Demand(msgspec.Struct, frozen=True):
    """How a model is asked for, over the whole fleet."""

    requests: int
    avg_duration_ms: float
    busiest_minute: int


class Placement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Advice to remove a model from a server, or (without a server) to add a copy."""

    model_name: str
    server_name: str
    server_id: int
    load_count: int
    unload_count: int
    request_count: int
    churn_score: float
    available_on: tuple[str, ...]
    total_servers: int
    total_request_count: int


class Oversized(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    model_name: str
    server_name: str
    server_id: int
    model_size_gb: float
    server_ram_gb: float
    usage_percent: float
    available_on: tuple[str, ...]


def consider_removing(
    shelves: Sequence[Shelf],
    stays: Iterable[Stay],
    requests: Mapping[tuple[int, str], int],
    demand: Mapping[str, Demand],
) -> list[Placement]:
    """Copies that are loaded again and again and hardly asked for, while another server has the model too."""
    holders = _holders(shelves)
    names = {shelf.server_id: shelf.server for shelf in shelves}
    found = []
    for stay in stays:
        server = names.get(stay.server_id)
        have = holders.get(stay.model, ())
        asked = requests.get((stay.server_id, stay.model), 0)
        if server not in have or len(have) < 2 or stay.loads < MIN_LOADS or asked / stay.loads >= MAX_REQUESTS_PER_LOAD:
            continue
        found.append(
            Placement(
                model_name=stay.model,
                server_name=server,
                server_id=stay.server_id,
                load_count=stay.loads,
                unload_count=stay.unloads,
                request_count=asked,
                churn_score=stay.loads - asked,
                available_on=have,
                total_servers=len(have),
                total_request_count=demand[stay.model].requests if stay.model in demand else asked,
            )
        )
    return sorted(found, key=lambda advice: (-advice.churn_score, advice.server_id, advice.model_name))


def consider_adding(shelves: Sequence[Shelf], demand: Mapping[str, Demand]) -> list[Placement]:
    """Models whose busiest minute held more work than the servers that have them could do in it."""
    holders = _holders(shelves)
    found = []
    for model, wanted in demand.items():
        have = holders.get(model, ())
        load = round(wanted.busiest_minute * wanted.avg_duration_ms / 60_000, 1)
        if not have or len(have) == len(shelves) or wanted.requests < MIN_REQUESTS or load <= len(have):
            continue
        found.append(
            Placement(
                model_name=model,
                server_name="",
                server_id=0,
                load_count=0,
                unload_count=0,
                request_count=wanted.requests,
                churn_score=load,
                available_on=have,
                total_servers=len(have),
                total_request_count=wanted.requests,
            )
        )
    return sorted(found, key=lambda advice: (-advice.churn_score, advice.model_name))


def oversized(shelves: Sequence[Shelf]) -> list[Oversized]:
    """Models that take more than MAX_SHARE of the memory of a server they are on; worst first."""
    holders = _holders(shelves)
    found = [
        Oversized(
            model_name=model.name,
            server_name=shelf.server,
            server_id=shelf.server_id,
            model_size_gb=round(model.size_bytes / GIB, 1),
            server_ram_gb=round(shelf.memory_bytes / GIB, 1),
            usage_percent=round(100 * model.size_bytes / shelf.memory_bytes, 1),
            available_on=holders[model.name],
        )
        for shelf in shelves
        if shelf.memory_bytes
        for model in shelf.models
        if model.size_bytes > MAX_SHARE * shelf.memory_bytes
    ]
    return sorted(found, key=lambda advice: (-advice.usage_percent, advice.server_id, advice.model_name))


_VARIANT = re.compile(r"-(instruct|chat|coder|vision|embed.*)$", re.ASCII)


def family_of(model: str, families: Mapping[str, str]) -> str:
    """The family of a model: as its server says, else its name without tag and variant."""
    return families.get(model) or _VARIANT.sub("", model.partition(":")[0].lower())


class Affinity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A service that uses a relative of a newly found model."""

    source: str
    current_model: str
    request_count: int
    family_match: str


def affinities(
    model: str, families: Mapping[str, str], use: Iterable[tuple[str, str, int]], limit: int = 20
) -> list[Affinity]:
    """Who might want `model`: sources that asked for another model of its family. `use`: (source, model, requests)."""
    family = family_of(model, families)
    found = [
        Affinity(source=source, current_model=other, request_count=count, family_match=theirs)
        for source, other, count in use
        if other != model and (theirs := family_of(other, families)) and _related(family, theirs)
    ]
    return sorted(found, key=lambda one: (-one.request_count, one.source, one.current_model))[:limit]


def _related(one: str, other: str) -> bool:
    return bool(one) and (one.startswith(other) or other.startswith(one))


def _holders(shelves: Sequence[Shelf]) -> dict[str, tuple[str, ...]]:
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for shelf in shelves:
        for name in dict.fromkeys(model.name for model in shelf.models):
            holders[name].append(shelf.server)
    return {name: tuple(servers) for name, servers in holders.items()}
