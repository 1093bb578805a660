"""What is said when no server has a model: names that are close to it, and where it could be pulled to."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from fleetproxy.core.operation import Operation
from fleetproxy.core.table import RESIDENT, RoutingTable
from fleetproxy.errors import ModelUnknown

_GIB = 1024**3
#: Names compared with the one asked; beyond it a fleet gets no suggestions rather than a slow answer.
MAX_NAMES = 2000
_NEAR = 2


def model_unknown(table: RoutingTable, operation: Operation, *, hide_backends: bool = False) -> ModelUnknown:
    """The error for a model that every server asked has not got.

    On Ollama's paths its body also says where the model could go (`pull_recommendation`) and how (`hint`).
    """
    asked = operation.model or ""
    error = ModelUnknown(asked, near(table, operation))
    if operation.endpoint.dialect == "ollama":
        details: dict[str, Any] = {"hint": f'To download this model, POST /api/pull with {{"model": "{asked}"}}'}
        target = None if hide_backends else pull_recommendation(table)
        if target is not None:
            details = {"pull_recommendation": target, **details}
        error.details = details
    return error


def near(table: RoutingTable, operation: Operation) -> tuple[str, ...]:
    """Served names like the one asked, best first, among those the caller may use."""
    allowed = operation.allowed
    names = [name for name in table.models if allowed is None or name in allowed]
    if operation.canonical is None or len(names) > MAX_NAMES:
        return ()
    found = get_close_matches(operation.canonical, names, n=_NEAR, cutoff=0.7)
    return tuple(name.removesuffix(":latest") for name in found)


def pull_recommendation(table: RoutingTable) -> dict[str, Any] | None:
    """The usable Ollama server with the most free VRAM, in the ancestor's words; None where no total is known."""
    best = None
    for index, routed in enumerate(table.backends):
        free = routed.free_vram_bytes
        if not routed.usable or routed.backend.kind != "ollama" or free is None:
            continue
        if best is None or free > (table.backends[best].free_vram_bytes or 0):
            best = index
    if best is None:
        return None
    routed = table.backends[best]
    total_gb = round((routed.backend.vram_bytes or 0) / _GIB, 1)
    free_gb = round((routed.free_vram_bytes or 0) / _GIB, 1)
    loaded = sorted(
        route.model
        for routes in table.models.values()
        for route in routes
        if route.backend == best and route.tier == RESIDENT
    )
    return {
        "serverName": routed.backend.name,
        "serverHost": routed.backend.authority,
        "totalRamGb": total_gb,
        "freeVramGb": free_gb,
        "loadedModels": loaded,
        "reason": f"Most free VRAM ({free_gb:g} GB of {total_gb:g} GB)",
    }
