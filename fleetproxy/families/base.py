"""A family is a value: what its endpoints are and how its wire language is read, measured and refused."""

from __future__ import annotations

import msgspec

from fleetproxy.core.operation import Endpoint


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin. `name` is its id in paths (`/api/<name>/...`), settings (`plugins`) and state."""

    name: str
    summary: str
    endpoints: tuple[Endpoint, ...]
