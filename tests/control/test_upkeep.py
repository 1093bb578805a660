from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fleetproxy.control.analytics import export, rollups, schema
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


async def test_rows_are_written_to_a_file_for_each_day(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    put(connection, 0, 1, 1.2, 2, 30)
    folder = tmp_path / "exports"
    keeper = StoreUpkeep(Shelves(connection), lambda: NOW)
    since = NOW - timedelta(days=7)
    assert await keeper.export(["requests", "job_runs"], since, "parquet", folder) == (4, 3)
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert written == [f"requests/date=2026-{day}/requests.parquet" for day in ("10-30", "10-31", "11-01")]
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in written)
    everywhere = f"read_parquet('{folder}/requests/*/*.parquet', hive_partitioning = true)"
    with duckdb.connect() as reader:
        rows = reader.execute(f"SELECT date::VARCHAR, started_at, model FROM {everywhere} ORDER BY 2").fetchall()
        columns = [row[0] for row in reader.execute(f"DESCRIBE SELECT * FROM {everywhere}").fetchall()]
    assert [row[0] for row in rows] == ["2026-10-30", "2026-10-31", "2026-10-31", "2026-11-01"]
    assert all(row[1].date().isoformat() == row[0] and row[2] == "phi 🦙" for row in rows)
    assert columns == [*(column.name for column in schema.REQUESTS.columns), "date"]
    # What has come since is in the next one, and nothing twice.
    put(connection, 0.1)
    assert await keeper.export(["requests"], since, "parquet", folder) == (5, 3)
    assert len(list(folder.rglob("*.*"))) == 3


@pytest.mark.parametrize("form", export.FORMATS)
async def test_a_day_that_is_being_forgotten_stays_as_it_was_written(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, form: str
) -> None:
    put(connection, 0, 2, 2.1)
    first = await StoreUpkeep(Shelves(connection), lambda: NOW).export(
        ["requests"], NOW - timedelta(days=7), form, tmp_path / "exports"
    )
    assert first == (3, 2)
    put(connection, 2.2)  # the oldest day, too, is written anew while it grows
    folder = tmp_path / "exports"
    keeper = StoreUpkeep(Shelves(connection), lambda: NOW)
    assert await keeper.export(["requests"], NOW - timedelta(days=7), form, folder) == (4, 2)
    connection.execute("DELETE FROM requests WHERE started_at < ?", [(NOW - timedelta(days=2.05)).replace(tzinfo=None)])
    assert await keeper.export(["requests"], NOW - timedelta(days=7), form, folder) == (1, 1)
    with duckdb.connect() as reader:
        everything = export.FORMATS[form].reader.format(f"'{folder}/*/*/*.*'")
        assert reader.execute(f"SELECT count(*) FROM {everything}").fetchone() == (4,)


def span(table: str, days: float) -> export.Span:
    return export.Span(table, NOW - timedelta(days=days), NOW)


HOSTILE = ["=1+1", "+x", "-x", "@x", "\tx", "plain", 'quo"te,', "line\nfeed", "🦙", None]


@pytest.mark.parametrize("form", export.FORMATS)
def test_every_table_can_be_written_in_every_format(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, form: str
) -> None:
    """X-13: text that a spreadsheet would run is made harmless in CSV, and there alone."""
    at = (NOW - timedelta(hours=1)).replace(tzinfo=None)
    for number, text in enumerate(HOSTILE):
        connection.execute(
            "INSERT INTO requests (request_id, started_at, model) VALUES (?, ?, ?)", [f"{number}", at, text]
        )
    connection.execute("INSERT INTO metric_samples VALUES (?, 'm', '{\"a\": 1}', 1.5)", [at])
    connection.execute("INSERT INTO system_metrics (polled_at, recent_boots) VALUES (?, ['a', '=b'])", [at])
    rollups.mark(connection, [NOW_US - rollups.HOUR_US], 0)
    rollups.Rollups().step(connection, NOW_US + rollups.HOUR_US)
    folder = tmp_path / "exports"
    folder.mkdir()
    for table in export.TABLES:
        target = folder / f"{table}.{form}"
        rows = export.write_rows(connection, span(table, 1), form, target)
        assert rows == {"requests": 10, "metric_samples": 1, "system_metrics": 1, "requests_hourly": 18}.get(table, 0)
        assert not list(folder.glob("*.unfinished"))
    target = folder / f"requests.{form}"
    if form == "csv":
        shown = [row["model"] or None for row in csv.DictReader(io.StringIO(target.read_text()))]
        assert shown == [f"'{text}" if text and text[0] in "=+-@\t" else text for text in HOSTILE]
        samples = next(csv.DictReader(io.StringIO((folder / "metric_samples.csv").read_text())))
        assert samples == {
            "sampled_at": "2026-11-01T11:00:00.000000Z",
            "name": "m",
            "labels": '{"a":1}',
            "value": "1.5",
        }
    elif form == "ndjson":
        lines = [json.loads(line) for line in target.read_text().splitlines()]
        assert [line["model"] for line in lines] == HOSTILE
        assert lines[0]["started_at"] == "2026-11-01T11:00:00.000000Z"
    else:
        with duckdb.connect() as reader:
            assert [row[0] for row in reader.execute(f"SELECT model FROM '{target}'").fetchall()] == HOSTILE
            kinds = {row[0]: row[1] for row in reader.execute(f"DESCRIBE FROM '{target}'").fetchall()}
        assert kinds == {column.name: column.type.partition(" DEFAULT")[0] for column in schema.REQUESTS.columns}


def test_files_are_written_nowhere_else(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.parquet"
    with pytest.raises(duckdb.PermissionException):
        export.write_rows(connection, span("requests", 1), "parquet", target)
    assert list(tmp_path.glob("elsewhere*")) == []


async def test_a_failed_export_leaves_no_file(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    put(connection, 0)
    connection.execute("ALTER TABLE requests DROP COLUMN model")
    with pytest.raises(duckdb.Error):
        await StoreUpkeep(Shelves(connection), lambda: NOW).export(["requests"], NOW, "parquet", tmp_path / "exports")
    assert not [path for path in (tmp_path / "exports").rglob("*") if path.is_file()]


async def test_forgetting_waits_until_it_is_done(connection: duckdb.DuckDBPyConnection) -> None:
    import asyncio

    shelves = Shelves(connection)
    put(connection, 1, 60)
    forgetting = asyncio.create_task(StoreUpkeep(shelves, lambda: NOW).forget(NOW - timedelta(days=30)))
    await asyncio.sleep(0)
    assert not forgetting.done()
    sweep(shelves.retention, connection, 0.0)
    assert await forgetting == 1
