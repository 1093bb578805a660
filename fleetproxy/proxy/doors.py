"""The families' surface (`/api/llm`, `/api/asr`): who may come in, and whom a path there names."""

from __future__ import annotations

from fleetproxy.core.roles import any_of
from fleetproxy.core.selection import place_of
from fleetproxy.core.table import Access, RoutingTable
from fleetproxy.errors import PathUnknown, ServerUnknown, Unauthorized
from fleetproxy.families.llm import nfrx


def check_plugin(family: str, rules: Access) -> None:
    """Raises PathUnknown where the family is off (`plugins`)."""
    if family not in rules.plugins:
        raise PathUnknown


def check_stranger(rules: Access, roles: frozenset[str]) -> None:
    """Whether somebody without a key we know may come in. Raises Unauthorized."""
    if rules.families_required and not any_of(roles, rules.api_http_roles):
        raise Unauthorized


def is_there(table: RoutingTable, raw_path: bytes) -> bool:
    """Whether a pinned path means somebody."""
    return place_of(table, nfrx.worker_of(raw_path.decode("latin-1"))) is not None


def pinned(table: RoutingTable, raw_path: bytes) -> str:
    """The name of the backend that a pinned path means. Raises ServerUnknown."""
    wanted = nfrx.worker_of(raw_path.decode("latin-1"))
    place = place_of(table, wanted)
    if place is None:
        raise ServerUnknown(f"no worker or server '{wanted}' is connected")
    return table.backends[place].backend.name
