"""A routing decision, explained: every server of the fleet, and why it was taken, kept in reserve or passed over.

The explanation asks `rank` itself, so it can never tell another story than the one that happens.
"""

from __future__ import annotations

from random import Random
from typing import Literal

import msgspec

from fleetproxy.core.operation import Operation
from fleetproxy.core.selection import Decision, Loads, Refuse, Wait, is_full, rank, routes_of, speaks
from fleetproxy.core.table import RESIDENT, RoutingTable

Tier = Literal["resident", "on_disk", "not_listed"]
Verdict = Literal[
    "chosen",  # asked first
    "next",  # asked when those before it could not serve
    "waited_for",  # full: the request stands in line for it
    "offline",
    "maintenance",  # online, but disabled or draining
    "not_pinned",  # the caller named another server
    "dialect",  # does not speak this path
    "model_missing",  # others have the model
    "full",  # others have a free slot
    "tripped",  # it failed lately, and others are sound
    "not_allowed",  # the caller's key may not use the model
    "not_preferred",  # one server is enough here, and another one came first
]


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """One server, as it stood when the decision was made."""

    backend: str
    verdict: Verdict
    #: 1 for the first to be asked or waited for; None for those left out.
    place: int | None
    tier: Tier
    #: What it calls the model.
    model: str | None
    in_flight: int
    slots: int | None
    waiting: int
    free_vram_bytes: int | None
    tripped: bool


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    outcome: Literal["candidates", "wait", "refuse"]
    #: The reason word of the decision, or the code of the refusal.
    reason: str
    #: The text of the refusal; "" otherwise.
    message: str = ""
    pin_ignored: bool = False
    #: All servers: those asked first, then the rest in the fleet's order.
    considered: tuple[Considered, ...]


def explain(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random, *, pin_fallback: bool = False
) -> Explanation:
    """What `rank` decides with the same arguments, and why."""
    decision = rank(table, operation, loads, rng, pin_fallback=pin_fallback)
    chosen = [] if isinstance(decision, Refuse) else [route.backend for route in decision.routes]
    served = {route.backend: route for route in routes_of(table, operation)}
    considered = []
    for index in [*chosen, *(index for index in range(len(table.backends)) if index not in chosen)]:
        routed = table.backends[index]
        backend = routed.backend
        route = served.get(index)
        considered.append(
            Considered(
                backend=backend.name,
                verdict=_verdict(table, operation, loads, decision, index),
                place=chosen.index(index) + 1 if index in chosen else None,
                tier="not_listed" if route is None else "resident" if route.tier == RESIDENT else "on_disk",
                model=route.model if route is not None else None,
                in_flight=loads.load(backend.column),
                slots=backend.max_concurrent,
                waiting=loads.waiting(backend.column),
                free_vram_bytes=routed.free_vram_bytes,
                tripped=loads.tripped(backend.column),
            )
        )
    if isinstance(decision, Refuse):
        error = decision.error
        return Explanation(outcome="refuse", reason=error.code, message=str(error), considered=tuple(considered))
    return Explanation(
        outcome="wait" if isinstance(decision, Wait) else "candidates",
        reason=decision.reason,
        pin_ignored=decision.pin_ignored,
        considered=tuple(considered),
    )


def _verdict(table: RoutingTable, operation: Operation, loads: Loads, decision: Decision, index: int) -> Verdict:
    chosen = () if isinstance(decision, Refuse) else tuple(route.backend for route in decision.routes)
    if index in chosen:
        if isinstance(decision, Wait):
            return "waited_for"
        return "chosen" if index == chosen[0] else "next"
    endpoint, backend = operation.endpoint, table.backends[index].backend
    served = {route.backend for route in routes_of(table, operation)} if endpoint.placement == "model" else set()
    pin = operation.pin if isinstance(decision, Refuse) or not decision.pin_ignored else None
    lost: tuple[tuple[bool, Verdict], ...] = (
        (not table.backends[index].online, "offline"),
        (not table.backends[index].usable, "maintenance"),
        (pin is not None and table.pins.get(pin.lower()) != index, "not_pinned"),
        (not speaks(backend, endpoint.dialect), "dialect"),
        (bool(served) and index not in served, "model_missing"),
        (operation.allowed is not None and not chosen, "not_allowed"),
        (loads.tripped(backend.column), "tripped"),
        (endpoint.generates and is_full(backend, loads), "full"),
    )
    return next((verdict for applies, verdict in lost if applies), "not_preferred")
