"""Keeps this process's snapshot joined with the workers the hub has now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import msgspec

from fleetproxy.core.presence import with_workers
from fleetproxy.core.table import RoutingTable, Snapshot
from fleetproxy.core.worker import Worker
from fleetproxy.transport.hub import HubClient


class Presence:
    """Between the link and the plane: what control publishes and what the hub says, as one snapshot.

    News of the hub that come in one read are taken together.
    """

    def __init__(
        self,
        hub: HubClient,
        publish: Callable[[Snapshot, Mapping[str, Snapshot]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
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
        workers = self._hub.workers.values()
        table = with_workers(snapshot.table, workers)
        joined = snapshot if table is snapshot.table else msgspec.structs.replace(snapshot, table=table)
        speech = [worker for worker in workers if worker.family == "asr"]
        both = with_workers(snapshot.table, workers, ("llm", "asr")) if speech else joined.table
        self._publish(
            joined,
            {
                "audio": msgspec.structs.replace(snapshot, table=both),
                "asr": msgspec.structs.replace(
                    snapshot, table=with_workers(RoutingTable(), speech, ("asr",)), first_seen_s=_since(speech)
                ),
            },
        )


def _since(workers: Iterable[Worker]) -> dict[str, int]:
    """Model -> since when somebody has had it here, in seconds since the epoch."""
    found: dict[str, int] = {}
    for worker in workers:
        for model in worker.offer.models:
            found[model] = min(found.get(model, int(worker.connected_at_s)), int(worker.connected_at_s))
    return found
