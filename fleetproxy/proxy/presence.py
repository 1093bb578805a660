"""Keeps this process's snapshot joined with the workers the hub has now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from fleetproxy.core.presence import with_workers
from fleetproxy.core.table import Snapshot
from fleetproxy.transport.hub import HubClient


class Presence:
    """Between the link and the plane: what control publishes and what the hub says, as one snapshot.

    News of the hub that come in one read are taken together.
    """

    def __init__(self, hub: HubClient, publish: Callable[[Snapshot], None], loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._publish = publish
        self._loop = loop
        self._snapshot: Snapshot | None = None
        self._due = False
        hub.watch_workers(self._changed)

    def publish(self, snapshot: Snapshot) -> None:
        """Control has a new snapshot."""
        self._snapshot = snapshot
        self._join()

    def _changed(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._join)

    def _join(self) -> None:
        self._due = False
        snapshot = self._snapshot
        if snapshot is None:
            return
        table = with_workers(snapshot.table, self._hub.workers.values())
        self._publish(snapshot if table is snapshot.table else msgspec.structs.replace(snapshot, table=table))
