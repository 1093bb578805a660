"""The questions of the dashboard against a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest

from fleetproxy.control.analytics import schema
from fleetproxy.control.analytics.history import History
from fleetproxy.core.residency import Sighting

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Reader:
    def __init__(self) -> None:
        self.connection = duckdb.connect()
        for table in (schema.MODEL_EVENTS, schema.SERVER_EVENTS, schema.SYSTEM_METRICS, schema.REQUESTS):
            columns = []
            for column in table.columns:
                kind = column.type
                if table.sequence and column.name == "id":
                    self.connection.execute(f"CREATE SEQUENCE {table.sequence}")
                columns.append(f'"{column.name}" {kind}')
            self.connection.execute(f"CREATE TABLE {table.name} ({', '.join(columns)})")

    async def read(self, work: Callable[[Any], Any], *, timeout_s: float | None = None) -> Any:
        return work(self.connection.cursor())

    def put(self, table: str, **values: object) -> None:
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" for _ in values)
        plain = [value.replace(tzinfo=None) if isinstance(value, datetime) else value for value in values.values()]
        self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", plain)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.connection.close()


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


async def test_model_events_are_newest_first_and_bounded(reader: Reader) -> None:
    for hours in (1, 30, 2, 3):
        reader.put(
            "model_events", occurred_at=ago(hours=hours), server_id=1, server="gpu1", model=f"m{hours}", event="loaded"
        )
    rows = await History(reader).model_events(ago(hours=24), 2)
    assert [(row["modelName"], row["occurredAt"], row["modelSize"]) for row in rows] == [
        ("m1", ago(hours=1), 0),
        ("m2", ago(hours=2), 0),
    ]
    assert set(rows[0]) == {
        "id", "serverId", "serverName", "modelName", "eventType", "modelSize", "vramSize", "parameterSize",
        "quantization", "occurredAt",
    }  # fmt: skip


async def test_server_events(reader: Reader) -> None:
    reader.put("server_events", occurred_at=ago(hours=1), server_id=2, server="gpu2", event="reboot", detail="why")
    (row,) = await History(reader).server_events(ago(hours=24), 100)
    assert {key: row[key] for key in ("serverId", "serverName", "eventType", "detail", "occurredAt")} == {
        "serverId": 2, "serverName": "gpu2", "eventType": "reboot", "detail": "why", "occurredAt": ago(hours=1),
    }  # fmt: skip


async def test_metrics_are_one_row_a_minute_oldest_first(reader: Reader) -> None:
    for second in range(0, 300, 10):
        reader.put("system_metrics", polled_at=ago(seconds=300 - second), server_id=1, server="gpu1", cpu_temp_c=second)
    reader.put("system_metrics", polled_at=ago(seconds=5), server_id=2, server="gpu2", cpu_temp_c=1)
    rows = await History(reader).system_metrics(1, ago(hours=1))
    assert [row["cpuTempC"] for row in rows] == [0, 60, 120, 180, 240]
    assert rows[0]["polledAt"] == ago(seconds=300)
    assert await History(reader).system_metrics(3, ago(hours=1)) == []


async def test_sightings_are_those_of_the_window_and_the_last_before(reader: Reader) -> None:
    for number, (hours, kind, model) in enumerate(
        [
            (50, "loaded", "phi"),
            (40, "unloaded", "phi"),
            (30, "loaded", "phi"),
            (30, "unloaded", "old"),
            (2, "unloaded", "phi"),
        ]
    ):
        reader.put(
            "model_events", id=number, occurred_at=ago(hours=hours), server_id=1, server="gpu1", model=model, event=kind
        )
    assert await History(reader).sightings(ago(hours=24)) == [
        Sighting(ago(hours=30), 1, "gpu1", "phi", "loaded"),
        Sighting(ago(hours=30), 1, "gpu1", "old", "unloaded"),
        Sighting(ago(hours=2), 1, "gpu1", "phi", "unloaded"),
    ]


async def test_requests_are_counted_by_server_source_and_model(reader: Reader) -> None:
    for minute, source, server in [(1, "ann", 1), (1, "ann", 1), (1, "bob", 2), (5, "ann", 1), (2000, "ann", 1)]:
        reader.put(
            "requests",
            request_id="r",
            started_at=ago(minutes=minute),
            source=source,
            server_id=server,
            model="phi",
            model_served="phi:latest",
            total_ms=1000.0 * server,
        )
    counts = await History(reader).request_counts(ago(hours=24))
    assert sorted((row["serverId"], row["modelName"], row["count"]) for row in counts["by_server"]) == [
        (1, "phi:latest", 3),
        (2, "phi:latest", 1),
    ]
    assert sorted((row["source"], row["count"]) for row in counts["by_source"]) == [("ann", 3), ("bob", 1)]
    assert [(row["count"], row["avgDurationMs"], row["busiestMinuteCount"]) for row in counts["by_model"]] == [
        (4, 1250.0, 3)
    ]


async def test_missing_models_are_those_asked_for_since(reader: Reader) -> None:
    for minutes, model, error in [
        (1, "a", "model_not_found"),
        (2, "a", "model_not_found"),
        (1, "b", None),
        (90, "c", "model_not_found"),
    ]:
        reader.put("requests", request_id="r", started_at=ago(minutes=minutes), source="ann", model=model, error=error)
    assert list(await History(reader).missing_models(ago(hours=1))) == [("a", "ann", 2)]
