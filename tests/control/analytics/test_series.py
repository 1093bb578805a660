from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fleetproxy.control.analytics import plan, rollups, series
from fleetproxy.control.analytics.rollups import HOUR_US, Rollups
from fleetproxy.control.analytics.series import METRICS, Question, Series, ask, metrics_of, table
from fleetproxy.core.histogram import ERROR
from fleetproxy.core.record import AuditRecord
from fleetproxy.errors import BadRequest
from tests.control.analytics.analytics_kit import NOON_US, line, load, opened, put, record

MINUTE_US = 60_000_000
DAY_US = 24 * HOUR_US


def made(count: int = 400, hours: int = 20) -> list[AuditRecord]:
    """Traffic of some hours, nothing in the fifth."""
    rng = random.Random(7)
    found = []
    for n in range(count):
        hour = rng.choice([hour for hour in range(hours) if hour != 5])
        status = rng.choice([200, 200, 200, 500])
        found.append(
            record(
                n,
                started_at_us=NOON_US + hour * HOUR_US + rng.randrange(HOUR_US),
                model=rng.choice(["a", "a", "a", "b", "b", "c", "d", None]),
                backend=(backend := rng.choice(["gpu1", "gpu2"])),
                server_id=int(backend[-1]),
                status=status,
                outcome="ok" if status == 200 else "backend_error",
                retries=rng.choice([0, 1]),
                total_ms=rng.uniform(1, 9000),
                queue_ms=rng.choice([0.0, 25.0]),
                tokens_out=rng.choice([None, 7]),
            )
        )
    return found


RECORDS = made()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    folder: Path = tmp_path_factory.mktemp("series")
    ingest, connection = opened(folder)
    put(folder / "spool", map(line, RECORDS))
    load(ingest, connection)
    rolling = Rollups()
    while rolling.step(connection, NOON_US + 2 * DAY_US):
        pass
    yield connection
    connection.close()


def asked(store: duckdb.DuckDBPyConnection, **values: Any) -> Series:
    return ask(store, Question(**{"since_us": NOON_US, "until_us": NOON_US + 24 * HOUR_US, **values}))


@pytest.mark.parametrize("rolled", [False, True], ids=["rows", "hours"])
@pytest.mark.parametrize("group_by", [group for group in series.GROUPS if group != "none"])
@pytest.mark.parametrize("top", [2, 50])
def test_every_request_is_in_one_series_and_one_bucket(
    store: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, group_by: str, top: int, rolled: bool
) -> None:
    if rolled:
        monkeypatch.setattr(plan, "RAW_ROWS", -1)
    found = asked(
        store, group_by=group_by, bucket_s=3600, top=top, metrics=("requests", "errors", "retries", "tokensOut")
    )
    assert found.exact is not rolled
    assert len(found.times) == 24
    sums: Counter[str] = Counter()
    for one in found.series:
        for name in found.metrics:
            assert len(one.values[name]) == 24
            assert sum(value or 0 for value in one.values[name]) == one.total[name]
            sums[name] += int(one.total[name] or 0)
    assert sums == {
        "requests": len(RECORDS),
        "errors": sum(row.status == 500 for row in RECORDS),
        "retries": sum(row.retries for row in RECORDS),
        "tokensOut": sum(row.tokens_out or 0 for row in RECORDS),
    }
    counts = [one.total["requests"] or 0 for one in found.series if not one.other]
    assert counts == sorted(counts, reverse=True)
    keys = [one.key for one in found.series if not one.other]
    assert len(keys) == len(set(keys)) == min(top, found.groups)
    assert [one.other for one in found.series] == [False] * len(keys) + [True] * (found.groups > top)


@pytest.mark.parametrize("rolled", [False, True], ids=["rows", "hours"])
def test_a_gap_is_null_and_a_group_that_did_not_ask_is_zero(
    store: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, rolled: bool
) -> None:
    if rolled:
        monkeypatch.setattr(plan, "RAW_ROWS", -1)
    found = asked(store, group_by="model", bucket_s=3600, metrics=("requests", "durationP95Ms"))
    there = {(row.model, (row.started_at_us - NOON_US) // HOUR_US) for row in RECORDS}
    busy = {hour for _, hour in there}
    assert 5 not in busy
    for one in found.series:
        for hour in range(24):
            requests, p95 = one.values["requests"][hour], one.values["durationP95Ms"][hour]
            assert (requests is None) == (hour not in busy)
            assert (p95 is None) == ((one.key, hour) not in there)
            assert bool(requests) == ((one.key, hour) in there)


@pytest.mark.parametrize("rolled", [False, True], ids=["rows", "hours"])
def test_percentiles_are_those_of_the_rows(
    store: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, rolled: bool
) -> None:
    if rolled:
        monkeypatch.setattr(plan, "RAW_ROWS", -1)
    found = asked(store, group_by="server", bucket_s=21_600, metrics=metrics_of("duration,ttft,itl,queue"))
    times: defaultdict[str, list[float]] = defaultdict(list)
    for row in RECORDS:
        times[row.backend or ""].append(row.total_ms)
    for one in found.series:
        assert one.server_id == int((one.key or "")[-1])
        for name, share in (("durationP50Ms", 0.5), ("durationP95Ms", 0.95), ("durationP99Ms", 0.99)):
            ordered = sorted(times[one.key or ""])
            place = share * (len(ordered) - 1)
            low, high = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
            wanted = low + (place - int(place)) * (high - low)
            assert one.total[name] == pytest.approx(wanted, rel=ERROR if rolled else 1e-4)
        assert one.total["queueP50Ms"] == pytest.approx(25.0, rel=ERROR)
        assert one.total["ttftP99Ms"] == pytest.approx(120.0, rel=ERROR)
        assert one.total["itlP50Ms"] == pytest.approx(1000 / 7, rel=ERROR)
    assert found.percentile_error == (round(ERROR, 3) if rolled else 0)


FILTERS = [
    {"model": "a"}, {"server": "gpu1"}, {"status": "500"}, {"status": "5xx"}, {"outcome": "ok"}, {"dialect": "ollama"},
    {"source": "10.0.0.9"}, {"user": "nobody"}, {"model": "a", "server": "gpu2"}, {"model": "' OR 1=1 --"},
]  # fmt: skip


@pytest.mark.parametrize("rolled", [False, True], ids=["rows", "hours"])
@pytest.mark.parametrize("group_by", ["none", "model", "server"])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_narrow(
    store: duckdb.DuckDBPyConnection,
    monkeypatch: pytest.MonkeyPatch,
    filters: dict[str, str],
    group_by: str,
    rolled: bool,
) -> None:
    if rolled:
        monkeypatch.setattr(plan, "RAW_ROWS", -1)

    def fits(row: AuditRecord) -> bool:
        of = {
            "server": row.backend,
            "status": str(row.status),
            "model": row.model,
            "source": row.source,
            "user": row.user,
        }
        of |= {"outcome": row.outcome, "dialect": row.dialect}
        return all(of[name] == value or (value == "5xx" and row.status == 500) for name, value in filters.items())

    found = asked(store, filters=filters, group_by=group_by, bucket_s=3600, metrics=("requests", "durationP50Ms"))
    wanted = sum(map(fits, RECORDS))
    assert sum(one.total["requests"] or 0 for one in found.series) == wanted
    if group_by == "none":
        assert [(one.key, one.other) for one in found.series] == [(None, False)]
        assert (found.series[0].total["durationP50Ms"] is None) == (wanted == 0)


def test_the_first_and_last_bucket_are_cut_where_asked(store: duckdb.DuckDBPyConnection) -> None:
    since, until = NOON_US + 90 * MINUTE_US + 1, NOON_US + 9 * HOUR_US - 1
    for bucket_s in (60, 300, 900, 3600, 21_600, 86_400):
        found = asked(store, since_us=since, until_us=until, bucket_s=bucket_s)
        assert found.bucket_seconds == bucket_s
        wanted = sum(since <= row.started_at_us < until for row in RECORDS)
        assert found.series[0].total["requests"] == wanted
        assert sum(value or 0 for value in found.series[0].values["requests"]) == wanted
        assert found.times[0] <= found.from_ < found.to


@pytest.mark.parametrize(
    ("hours", "seconds"), [(1, 60), (3, 60), (24, 900), (7 * 24, 3600), (30 * 24, 21_600), (366 * 24, 86_400)]
)
def test_auto_gives_neither_few_nor_many_buckets(
    store: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, hours: int, seconds: int
) -> None:
    assert asked(store, until_us=NOON_US + hours * HOUR_US).bucket_seconds == seconds
    # Many requests: short buckets are left to those who ask for them.
    monkeypatch.setattr(series, "_AUTO_ROWS", 10)
    assert asked(store, until_us=NOON_US + hours * HOUR_US).bucket_seconds == (
        seconds if hours == 1 else max(seconds, 3600)
    )


def test_short_buckets_come_from_rows_however_many_there_are(
    store: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = asked(store, bucket_s=900, group_by="model", metrics=tuple(METRICS))
    monkeypatch.setattr(plan, "RAW_ROWS", -1)
    found = asked(store, bucket_s=900, group_by="model", metrics=tuple(METRICS))
    assert not found.exact
    for one, other in zip(exact.series, found.series, strict=True):
        assert one.key == other.key
        for name in METRICS:
            for mine, theirs in zip(one.values[name], other.values[name], strict=True):
                assert mine == (None if theirs is None else pytest.approx(theirs, rel=ERROR * 1.1)), name


def test_too_many_numbers_are_refused(store: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(BadRequest, match="1500 buckets"):
        asked(store, until_us=NOON_US + 30 * DAY_US, bucket_s=60)
    with pytest.raises(BadRequest, match="300000 numbers"):
        asked(store, bucket_s=60, group_by="source", top=50, metrics=tuple(METRICS))


def test_metrics_are_read_by_name_and_by_family() -> None:
    assert metrics_of("") == ("requests", "errors")
    assert metrics_of(" tokens, requests,tokensIn") == ("tokensIn", "tokensOut", "requests")
    assert metrics_of("all") == tuple(METRICS)
    with pytest.raises(BadRequest, match="Unknown metric 'latency'"):
        metrics_of("requests,latency")


def test_rows_of_the_table_are_the_numbers_of_the_series(store: duckdb.DuckDBPyConnection) -> None:
    found = asked(store, bucket_s=3600, group_by="model", top=2, metrics=("requests", "errors"))
    rows = table(found)
    assert rows.columns == ("time", "model", "requests", "errors")
    assert len(rows.rows) == 24 * 3
    assert rows.rows[0][:2] == ["2026-11-21T12:00:00.000Z", "a"]
    assert {row[1] for row in rows.rows} == {"a", "b", "(other)"}
    assert sum(row[2] or 0 for row in rows.rows) == len(RECORDS)


def test_an_empty_store_has_one_line_of_gaps(tmp_path: Path) -> None:
    _, connection = opened(tmp_path)
    rollups.bring_up_to_date(connection, NOON_US)
    for group_by in ("none", "model"):
        found = asked(connection, bucket_s=3600, group_by=group_by)
        assert [one.values["requests"] for one in found.series] == ([[None] * 24] if group_by == "none" else [])
    connection.close()
