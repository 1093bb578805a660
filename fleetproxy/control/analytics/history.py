"""What happened to servers and models, asked by the dashboard: events, machine metrics, counts for placement advice.

Implements `control.ports.RecordsPort`. Instants come back aware, in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from fleetproxy.core.residency import Sighting

T = TypeVar("T")


class Reader(Protocol):
    """`control.analytics.store.Store`."""

    async def read(self, work: Callable[[Any], T], *, timeout_s: float | None = None) -> T: ...


_MODEL_EVENTS = """
    SELECT id, server_id AS serverId, server AS serverName, model AS modelName, event AS eventType,
        coalesce(size_bytes, 0) AS modelSize, coalesce(vram_bytes, 0) AS vramSize,
        parameter_size AS parameterSize, quantization, occurred_at AS occurredAt
    FROM model_events WHERE occurred_at >= ? ORDER BY occurred_at DESC, id DESC LIMIT ?
"""
_SERVER_EVENTS = """
    SELECT id, server_id AS serverId, server AS serverName, event AS eventType, detail, occurred_at AS occurredAt
    FROM server_events WHERE occurred_at >= ? ORDER BY occurred_at DESC, id DESC LIMIT ?
"""
#: The first row of each minute; at most MAX_POINTS of them, the newest.
_SYSTEM_METRICS = """
    SELECT * FROM (
        SELECT cpu_temp_c AS cpuTempC, gpu_temp_c AS gpuTempC, cpu_percent AS cpuPercent, gpu_percent AS gpuPercent,
            mem_used_mb AS memUsedMb, mem_total_mb AS memTotalMb, swap_used_mb AS swapUsedMb, load_avg_1 AS loadAvg1,
            disk_total_gb AS diskTotalGb, disk_used_gb AS diskUsedGb, uptime_s AS uptimeSeconds, polled_at AS polledAt
        FROM system_metrics WHERE server_id = ? AND polled_at >= ?
        QUALIFY row_number() OVER (PARTITION BY date_trunc('minute', polled_at) ORDER BY polled_at) = 1
        ORDER BY polled_at DESC LIMIT ?
    ) ORDER BY polledAt
"""
MAX_POINTS = 50_000
#: Every event of the window, and for each model the last one before it: was it loaded when the window began?
_SIGHTINGS = """
    SELECT occurred_at, server_id, server, model, event, coalesce(size_bytes, 0), coalesce(vram_bytes, 0),
        parameter_size, quantization
    FROM (
        SELECT * FROM model_events WHERE occurred_at >= $since
        UNION ALL
        SELECT * FROM model_events WHERE occurred_at < $since
        QUALIFY row_number() OVER (PARTITION BY server_id, model ORDER BY occurred_at DESC, id DESC) = 1
    ) WHERE event IN ('loaded', 'unloaded') AND model IS NOT NULL ORDER BY occurred_at, id
"""
#: Each over the requests since then. Three plain passes are several times quicker than one over every minute's groups.
_COUNTS = {
    "by_server": """
        SELECT server_id AS serverId, coalesce(model_served, model) AS modelName, count(*) AS count
        FROM requests WHERE started_at >= ? AND coalesce(model_served, model) IS NOT NULL GROUP BY ALL
    """,
    "by_source": """
        SELECT source, coalesce(model_served, model) AS modelName, count(*) AS count
        FROM requests WHERE started_at >= ? AND coalesce(model_served, model) IS NOT NULL GROUP BY ALL
    """,
    "by_model": """
        SELECT modelName, sum(n)::BIGINT AS count, sum(total_ms) / sum(n) AS avgDurationMs,
            max(n)::BIGINT AS busiestMinuteCount
        FROM (
            SELECT coalesce(model_served, model) AS modelName, count(*) AS n, sum(total_ms) AS total_ms
            FROM requests WHERE started_at >= ? AND coalesce(model_served, model) IS NOT NULL
            GROUP BY modelName, epoch_us(started_at) // 60000000
        ) GROUP BY modelName
    """,
}
_MISSING = """
    SELECT model, coalesce(max_by(source, started_at), ''), count(*) FROM requests
    WHERE started_at >= ? AND error = 'model_not_found' AND model IS NOT NULL GROUP BY model ORDER BY 3 DESC LIMIT 20
"""


class History:
    """Questions about the past. Each raises StoreUnavailable or QueryTimeout when the store cannot answer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def model_events(self, since: datetime, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._rows(_MODEL_EVENTS, [_naive(since), limit])

    async def server_events(self, since: datetime, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._rows(_SERVER_EVENTS, [_naive(since), limit])

    async def system_metrics(self, server_id: int, since: datetime) -> Sequence[Mapping[str, Any]]:
        return await self._rows(_SYSTEM_METRICS, [server_id, _naive(since), MAX_POINTS])

    async def sightings(self, since: datetime) -> list[Sighting]:
        def work(cursor: Any) -> list[Sighting]:
            rows = cursor.execute(_SIGHTINGS, {"since": _naive(since)}).fetchall()
            return [Sighting(at.replace(tzinfo=UTC), *rest) for at, *rest in rows]

        return await self._reader.read(work)

    async def request_counts(self, since: datetime) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        def work(cursor: Any) -> Mapping[str, Sequence[Mapping[str, Any]]]:
            return {name: _mappings(cursor.execute(question, [_naive(since)])) for name, question in _COUNTS.items()}

        return await self._reader.read(work)

    async def missing_models(self, since: datetime) -> Sequence[tuple[str, str, int]]:
        def work(cursor: Any) -> Sequence[tuple[str, str, int]]:
            rows: Sequence[tuple[str, str, int]] = cursor.execute(_MISSING, [_naive(since)]).fetchall()
            return rows

        return await self._reader.read(work)

    async def _rows(self, sql: str, parameters: list[Any]) -> Sequence[Mapping[str, Any]]:
        def work(cursor: Any) -> Sequence[Mapping[str, Any]]:
            return _mappings(cursor.execute(sql, parameters))

        return await self._reader.read(work)


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


def _mappings(cursor: Any) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [
        {
            name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
            for name, value in zip(names, row, strict=True)
        }
        for row in cursor.fetchall()
    ]
