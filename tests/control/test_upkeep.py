from __future__ import annotations

import gzip
import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fleetproxy.control.analytics import schema
from fleetproxy.control.analytics.database import open_store
from fleetproxy.control.analytics.retention import SWEEP_S, Retention
from fleetproxy.control.analytics.upkeep import StoreUpkeep
from fleetproxy.settings import Analytics

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp() * 1e6)


@pytest.fixture
def connection(tmp_path: Path) -> Any:
    (tmp_path / "spool").mkdir()
    opened = open_store(tmp_path / "a.duckdb", tmp_path / "spool", Analytics(), NOW_US)
    yield opened.connection
    opened.connection.close()


def put(connection: duckdb.DuckDBPyConnection, *days_ago: float) -> None:
    for days in days_ago:
        at = (NOW - timedelta(days=days)).replace(tzinfo=None)
        connection.execute("INSERT INTO requests (request_id, started_at, model) VALUES ('r', ?, 'phi 🦙')", [at])


def left(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT count(*) FROM requests").fetchone()
    assert row
    return int(row[0])


def sweep(retention: Retention, connection: duckdb.DuckDBPyConnection, clock_s: float) -> None:
    while retention.step(connection, NOW_US, clock_s):
        pass


def test_a_sweep_that_is_asked_for_goes_deeper_once(connection: duckdb.DuckDBPyConnection) -> None:
    retention = Retention(Analytics(retention_days=90))
    put(connection, 1, 20, 60, 100)
    sweep(retention, connection, 0.0)
    assert left(connection) == 3
    retention.ask(30)
    assert retention.asked
    sweep(retention, connection, 1.0)
    assert not retention.asked
    assert left(connection) == 2
    put(connection, 60)
    sweep(retention, connection, 1.0 + SWEEP_S)
    assert left(connection) == 3


def test_a_sweep_asked_for_during_another_comes_after_it(connection: duckdb.DuckDBPyConnection) -> None:
    retention = Retention(Analytics(retention_days=90))
    put(connection, 1, 60)
    assert retention.step(connection, NOW_US, 0.0)
    retention.ask(30)
    sweep(retention, connection, 0.0)
    sweep(retention, connection, 0.0)
    assert left(connection) == 1
    assert not retention.asked


def test_asking_for_longer_than_the_settings_keeps_no_more(connection: duckdb.DuckDBPyConnection) -> None:
    retention = Retention(Analytics(retention_days=10))
    put(connection, 5, 60)
    retention.ask(3650)
    sweep(retention, connection, 0.0)
    assert left(connection) == 1


class Shelves:
    """A store whose thread is this one."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self.retention = Retention(Analytics())

    async def flush(self) -> None: ...

    async def read(self, work: Callable[[Any], Any], *, timeout_s: float | None = None) -> Any:
        return work(self.connection.cursor())


async def test_requests_are_written_to_a_file_whole(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    put(connection, 1, 2, 30)
    target = tmp_path / "requests.ndjson.gz"
    assert await StoreUpkeep(Shelves(connection), lambda: NOW).export(NOW - timedelta(days=7), target) == 2
    rows = [json.loads(line) for line in gzip.decompress(target.read_bytes()).splitlines()]
    assert [row["started_at"] for row in rows] == ["2026-10-30T12:00:00.000000Z", "2026-10-31T12:00:00.000000Z"]
    assert rows[0]["model"] == "phi 🦙"
    assert set(rows[0]) == {column.name for column in schema.REQUESTS.columns}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.glob("*.unfinished")) == []


async def test_a_failed_export_leaves_no_file(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    connection.execute("DROP TABLE requests CASCADE")
    with pytest.raises(duckdb.Error):
        await StoreUpkeep(Shelves(connection)).export(NOW, tmp_path / "x.gz")
    assert list(tmp_path.glob("x.gz*")) == []


async def test_forgetting_waits_until_it_is_done(connection: duckdb.DuckDBPyConnection) -> None:
    import asyncio

    shelves = Shelves(connection)
    put(connection, 1, 60)
    forgetting = asyncio.create_task(StoreUpkeep(shelves, lambda: NOW).forget(NOW - timedelta(days=30)))
    await asyncio.sleep(0)
    assert not forgetting.done()
    sweep(shelves.retention, connection, 0.0)
    assert await forgetting == 1
