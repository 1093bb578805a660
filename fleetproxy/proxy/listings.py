"""The model lists of the families' surface, made from the routing table of this process and kept until it changes."""

from __future__ import annotations

from collections.abc import Mapping

from fleetproxy.core.operation import Endpoint
from fleetproxy.core.selection import place_of
from fleetproxy.core.table import RoutingTable, Snapshot
from fleetproxy.errors import ModelUnknown, ServerUnknown
from fleetproxy.families import registry
from fleetproxy.families.llm import nfrx
from fleetproxy.proxy.plane import Plane


class Listings:
    """One per process."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        #: By family, with what it was made of.
        self._made: dict[str, tuple[RoutingTable, Mapping[str, int], dict[str, bytes]]] = {}

    def answer(self, snapshot: Snapshot, endpoint: Endpoint, path: str) -> bytes:
        """The body of a list, or of one entry. `path` is raw. Raises ServerUnknown, ModelUnknown."""
        listed = self._of_one(snapshot, path) if endpoint.pinned else self._of_all(snapshot, endpoint.family)
        if not endpoint.path.endswith("{id}"):
            return nfrx.body(listed)
        model = registry.parameter(endpoint, path)
        found = listed.get(model)
        if found is None:
            raise ModelUnknown(model)
        return found

    def _of_all(self, snapshot: Snapshot, family: str) -> dict[str, bytes]:
        made = self._made.get(family)
        if made is None or made[0] is not snapshot.table or made[1] is not snapshot.first_seen_s:
            made = self._made[family] = (snapshot.table, snapshot.first_seen_s, self._entries(snapshot, None))
        return made[2]

    def _of_one(self, snapshot: Snapshot, path: str) -> dict[str, bytes]:
        wanted = nfrx.worker_of(path)
        place = place_of(snapshot.table, wanted)
        if place is None:
            raise ServerUnknown(f"no worker or server '{wanted}' is connected")
        return self._entries(snapshot, place)

    def _entries(self, snapshot: Snapshot, place: int | None) -> dict[str, bytes]:
        return nfrx.entries(
            snapshot.table,
            snapshot.first_seen_s,
            self._plane.wall_us() // 1_000_000,
            only=place,
            hide_backends=snapshot.access.hide_backends,
        )
