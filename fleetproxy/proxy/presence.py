"""Keeps this process's snapshot joined with the workers the hub has now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from fleetproxy.core.presence import with_workers
from fleetproxy.core.table import RoutingTable, Snapshot
from fleetproxy.core.worker import Worker
from fleetproxy.transport.hub import HubClient

#: Of the loop's time joining may take this share, but news wait no longer than that: a thousand workers that come at
#: once are joined a few times, not a thousand times (20 000 routes take 60 ms).
JOIN_SHARE, LATEST_S = 0.1, 1.0


class Presence:
    """Between the link and the plane: what control publishes and what the hub says, as one snapshot.

    News of the hub that come in one read are taken together; so are, in a large fleet, those of a moment.
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
        #: News that are not joined yet; done when they are.
        self._due: asyncio.Future[None] | None = None
        #: When the last join ended (loop time), and how long it took.
        self._joined_at = self._took_s = 0.0
        hub.watch_workers(self._changed)

    def publish(self, snapshot: Snapshot) -> None:
        """Control has a new snapshot."""
        self._snapshot = snapshot
        self._join()

    async def settled(self) -> None:
        """Return when everybody the hub has let in by now can be asked for here (see `HubClient.settled`)."""
        await self._hub.settled()
        if self._due is not None:
            await asyncio.shield(self._due)

    def _changed(self) -> None:
        if self._due is None:
            self._due = self._loop.create_future()
            rest_s = min(self._took_s / JOIN_SHARE, LATEST_S) + self._joined_at - self._loop.time()
            self._loop.call_later(max(0.0, rest_s), self._news)

    def _news(self) -> None:
        began_s = time.perf_counter()
        self._join()
        self._took_s = time.perf_counter() - began_s
        self._joined_at = self._loop.time()
        due, self._due = self._due, None
        if due is not None:
            due.set_result(None)

    def _join(self) -> None:
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
