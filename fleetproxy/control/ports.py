"""What the operational half of control needs from its neighbours: the live fleet, the records, a way to call servers.

The poller, the publisher and the analytics implement these; nothing here is theirs to import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.core.residency import Sighting


class FleetPort(Protocol):
    """The fleet as the poller sees it now."""

    def backends(self) -> Sequence[tuple[Backend, BackendState]]:
        """Every server of the fleet, in the order of their ids, with what the last poll saw."""

    async def apply(self) -> None:
        """Take in changed servers, switches and keys: look at the state again, publish, poll what is new."""


class Reply(Protocol):
    """One whole answer of a server."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...


class Caller(Protocol):
    """Small requests to servers: `transport.httpx_client.HttpxClient`. Failures are BackendErrors."""

    async def send(
        self, backend: Backend, method: str, path: str, timeout_s: float, *, json: bytes | None = None
    ) -> Reply: ...


class RecordsPort(Protocol):
    """Questions to the analytics store: `control.analytics.history.History`. Rows carry the API's own field names;
    instants are aware datetimes. Raises StoreUnavailable."""

    async def model_events(self, since: datetime, limit: int) -> Sequence[Mapping[str, Any]]:
        """Newest first: id serverId serverName modelName eventType modelSize vramSize parameterSize quantization
        occurredAt."""

    async def server_events(self, since: datetime, limit: int) -> Sequence[Mapping[str, Any]]:
        """Newest first: id serverId serverName eventType detail occurredAt."""

    async def system_metrics(self, server_id: int, since: datetime) -> Sequence[Mapping[str, Any]]:
        """Oldest first, one row per minute: cpuTempC gpuTempC memUsedMb memTotalMb swapUsedMb loadAvg1 uptimeSeconds
        polledAt and more."""

    async def sightings(self, since: datetime) -> Sequence[Sighting]:
        """Models loaded and unloaded since then, and what was the last of each before."""

    async def request_counts(self, since: datetime) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """by_server (serverId modelName count), by_source (source modelName count), by_model (modelName count
        avgDurationMs busiestMinuteCount)."""

    async def missing_models(self, since: datetime) -> Sequence[tuple[str, str, int]]:
        """Models asked for that nobody has: (model, who asked last, times)."""
