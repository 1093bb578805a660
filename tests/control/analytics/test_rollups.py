"""Roll-ups tell the same as the rows, whatever comes late, whoever dies, whatever has been forgotten."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetproxy.control.analytics import database, plan, queries, rollups
from fleetproxy.control.analytics.facts import Asked, distinct, measure, measure_over_time, ranked
from fleetproxy.control.analytics.ingest import Ingest
from fleetproxy.control.analytics.measures import COUNTS, DIMENSIONS, HISTOGRAMS
from fleetproxy.control.analytics.plan import Plan, plan_of
from fleetproxy.control.analytics.queries import Window
from fleetproxy.control.analytics.retention import Retention
from fleetproxy.control.analytics.rollups import HOUR_US, Rollups
from fleetproxy.core.histogram import ERROR
from fleetproxy.core.record import AuditRecord
from tests.control.analytics.analytics_kit import NOON_US, SETTINGS, line, load, opened, put, record, rows, running

#: Long after everything: every hour is over, and every mark old.
LATER_US = NOON_US + 30 * 24 * HOUR_US
DAY_US = 24 * HOUR_US


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roll-ups are used whenever an hour is in them."""
    monkeypatch.setattr(plan, "RAW_ROWS", -1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Ingest, duckdb.DuckDBPyConnection]]:
    ingest, connection = opened(tmp_path)
    rollups.bring_up_to_date(connection, NOON_US)
    yield ingest, connection
    connection.close()


def made(number: int, rng: random.Random, at_us: int) -> AuditRecord:
    """A request such as there are many."""
    status = rng.choice([200, 200, 200, 404, 503, None])
    return record(
        number,
        started_at_us=at_us,
        model=rng.choice(["llama3:8b", "phi:latest", None]),
        backend=rng.choice(["gpu1", "gpu2", None]),
        source=rng.choice(["anna", "10.0.0.9", "bob"]),
        user=rng.choice(["anna", None]),
        status=status,
        outcome=rng.choice(["ok", "client_gone"]) if status in (200, None) else "refused",
        route_reason=rng.choice(["model_loaded", "least_loaded", None]),
        retries=rng.choice([0, 0, 2]),
        streamed=rng.random() < 0.7,
        queue_ms=rng.choice([0.0, 40.0, 900.0]),
        ttft_ms=rng.choice([None, rng.uniform(1, 5000)]),
        total_ms=rng.uniform(0.1, 60_000),
        tokens_out=rng.choice([None, 0, 1, 300]),
        eval_ms=rng.choice([None, 900.0]),
    )


def of_hours(count: int, hours: int, seed: int = 1) -> list[AuditRecord]:
    rng = random.Random(seed)
    return [made(n, rng, NOON_US + rng.randrange(hours * HOUR_US)) for n in range(count)]


def roll_all(connection: duckdb.DuckDBPyConnection, now_us: int = LATER_US) -> int:
    rolling = Rollups()
    while rolling.step(connection, now_us):
        pass
    return rolling.rolled


def spool(folder: Path, ingest: Ingest, connection: duckdb.DuckDBPyConnection, given: list[AuditRecord]) -> None:
    put(folder / "spool", map(line, given), boot=f"b{ingest.batch}")
    load(ingest, connection)


def close(found: Any, wanted: Any) -> bool:
    """Percentiles within what the buckets allow."""
    if isinstance(found, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return found is wanted is None or abs(found / wanted - 1) <= ERROR + 1e-6


@pytest.mark.parametrize("exact", [False, True])
def test_asked_over_time_is_asked_twice(
    exact: bool, tmp_path: Path, store: tuple[Ingest, duckdb.DuckDBPyConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, connection = store
    spool(tmp_path, ingest, connection, of_hours(400, 5))
    roll_all(connection)
    if not exact:
        monkeypatch.setattr(plan, "RAW_ROWS", -1)
    asked = plan_of(connection, NOON_US + HOUR_US // 2, NOON_US + 4 * HOUR_US + 1000)
    assert asked.exact is exact
    shares = dict.fromkeys(HISTOGRAMS, (0.0, 0.5, 0.95))
    for dimension, top, others in (("all", None, False), ("model", ["phi:latest"], True), ("user", None, False)):
        question = Asked(plan=asked, dimension=dimension)
        options: dict[str, Any] = {"top": top, "others": others}
        found = measure_over_time(connection, question, tuple(COUNTS), shares, bucket_us=HOUR_US, **options)
        for told, bucket_us in zip(found, (HOUR_US, 0), strict=True):
            wanted = measure(connection, question, tuple(COUNTS), shares, bucket_us=bucket_us, **options)
            assert told.keys() == wanted.keys()
            for place, facts in told.items():
                assert facts == {
                    name: pytest.approx(value) if value is not None else None for name, value in wanted[place].items()
                }


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_hours_and_rows_tell_the_same(
    dimension: str, tmp_path: Path, store: tuple[Ingest, duckdb.DuckDBPyConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, connection = store
    spool(tmp_path, ingest, connection, of_hours(600, 6))
    # The fourth hour is not added up yet.
    connection.execute("DELETE FROM rollup_pending WHERE hour = make_timestamp(?)", [NOON_US + 3 * HOUR_US])
    roll_all(connection)
    connection.execute("INSERT INTO rollup_pending SELECT make_timestamp(?), now()", [NOON_US + 3 * HOUR_US])
    since, until = NOON_US + HOUR_US // 2, NOON_US + 5 * HOUR_US + 1000
    exact = plan_of(connection, since, until)
    assert exact.exact
    monkeypatch.setattr(plan, "RAW_ROWS", -1)
    mixed = plan_of(connection, since, until)
    assert mixed.rolled == (NOON_US + HOUR_US, NOON_US + 5 * HOUR_US)
    assert len(mixed.pending_us) == 1
    assert len(mixed.raw) == 3

    shares = dict.fromkeys(HISTOGRAMS, (0.0, 0.5, 0.95, 1.0))
    for top, others, bucket_us in ((None, False, 0), (None, False, HOUR_US), (["phi:latest", "gpu1", None], True, 0)):
        answers = [
            measure(
                connection,
                Asked(plan=one, dimension=dimension),
                tuple(COUNTS),
                shares,
                bucket_us=bucket_us,
                top=top,
                others=others,
            )
            for one in (exact, mixed)
        ]
        assert answers[0].keys() == answers[1].keys()
        for key, wanted in answers[0].items():
            found = answers[1][key]
            for name in COUNTS:
                assert found[name] == pytest.approx(wanted[name]), (key, name)
            for name in HISTOGRAMS:
                assert close(found[name], wanted[name]), (key, name, found[name], wanted[name])
    asked = [Asked(plan=one, dimension=dimension) for one in (exact, mixed)]
    assert ranked(connection, asked[0], 5) == ranked(connection, asked[1], 5)
    assert distinct(connection, asked[0]) == distinct(connection, asked[1])


def counted(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Requests of each dimension, by hours and rows together."""
    whole = plan_of(connection, 0, LATER_US + HOUR_US)
    found = {name: measure(connection, Asked(plan=whole, dimension=name), ["requests"], {}) for name in DIMENSIONS}
    return {name: sum(one["requests"] for one in facts.values()) for name, facts in found.items()}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("load"), st.integers(0, 71), st.integers(1, 4)),
        st.tuples(st.just("roll"), st.integers(1, 5)),
        st.tuples(st.just("forget"), st.integers(1, 3)),
        st.tuples(st.just("rebuild")),
    ),
    max_size=14,
)


@settings(max_examples=15)
@given(steps)
def test_every_request_counts_once_whatever_comes_late_or_is_forgotten(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    ingest, connection = opened(folder)
    rollups.bring_up_to_date(connection, NOON_US)
    rolling, loaded = Rollups(), 0
    now_us = NOON_US + 3 * DAY_US
    for step in steps:
        match step:
            case ("load", hour, count):
                given_ = [record(loaded + n, started_at_us=NOON_US + hour * HOUR_US + n) for n in range(count)]
                spool(folder, ingest, connection, given_)
                loaded += count
            case ("roll", times):
                for _ in range(times):
                    rolling.step(connection, now_us + DAY_US)
            case ("forget", days):
                retention = Retention(SETTINGS, rolling)
                retention.ask(days)
                while retention.asked:
                    if not retention.step(connection, now_us, 0.0):
                        rolling.step(connection, now_us)
            case ("rebuild",):
                rollups.rebuild(connection, NOON_US)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "RAW_ROWS", -1)
            assert counted(connection) == dict.fromkeys(DIMENSIONS, loaded)
    connection.close()


@pytest.mark.usefixtures("few")
def test_what_comes_while_an_hour_is_added_up_is_added_up_later(
    tmp_path: Path, store: tuple[Ingest, duckdb.DuckDBPyConnection]
) -> None:
    ingest, connection = store
    stop = threading.Event()

    def roll() -> None:
        cursor = connection.cursor()
        while not stop.is_set():
            roll_all(cursor)
        cursor.close()

    rolling = threading.Thread(target=roll)
    rolling.start()
    for batch in range(25):
        spool(tmp_path, ingest, connection, [record(batch * 40 + n) for n in range(40)])
    stop.set()
    rolling.join()
    assert counted(connection) == dict.fromkeys(DIMENSIONS, 1000)
    roll_all(connection)
    assert connection.execute("SELECT count(*) FROM rollup_pending").fetchone() == (0,)
    found = connection.execute("SELECT sum(requests) FROM requests_hourly WHERE dimension = 'all'").fetchone()
    assert found == (1000,)


def test_an_hour_is_added_up_when_it_is_over_and_nothing_came_late_for_a_while(
    tmp_path: Path, store: tuple[Ingest, duckdb.DuckDBPyConnection]
) -> None:
    _, connection = store
    minute = 60_000_000
    over = NOON_US + HOUR_US

    def step(now_us: int, *, hurry_us: int = 0) -> int:
        rolling = Rollups()
        rolling.hurry_before_us = hurry_us
        rolling.step(connection, now_us)
        return rolling.rolled

    rollups.mark(connection, [NOON_US], over - 10)
    assert step(over - 1) == 0
    assert step(over + minute) == 0
    assert step(over + 2 * minute) == 1
    assert step(over + 2 * minute) == 0
    # A late row: done again when no more have come for two minutes...
    rollups.mark(connection, [NOON_US], over + 10 * minute)
    assert step(over + 11 * minute) == 0
    assert step(over + 12 * minute) == 1
    # ...or when they keep coming for twenty.
    for late in range(20, 41):
        rollups.mark(connection, [NOON_US], over + late * minute)
    assert step(over + 39 * minute) == 0
    assert step(over + 40 * minute) == 1
    # What is to be forgotten is not waited for.
    rollups.mark(connection, [NOON_US], over + 50 * minute)
    assert step(over + 50 * minute) == 0
    assert step(over + 50 * minute, hurry_us=over) == 1


@pytest.mark.usefixtures("few")
def test_rare_names_are_added_up_in_one_row(
    tmp_path: Path, store: tuple[Ingest, duckdb.DuckDBPyConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "NAMES", 3)
    ingest, connection = store
    sources = [f"s{n}" for n in range(8) for _ in range(10 - n)]
    spool(tmp_path, ingest, connection, [record(n, source=source) for n, source in enumerate(sources)])
    roll_all(connection)
    stored = connection.execute(
        "SELECT value, folded, requests FROM requests_hourly WHERE dimension = 'source' ORDER BY requests"
    ).fetchall()
    assert stored == [("s2", 0, 8), ("s1", 0, 9), ("s0", 0, 10), (None, 5, 25)]
    asked = Asked(plan=plan_of(connection, NOON_US, NOON_US + HOUR_US), dimension="source")
    assert ranked(connection, asked, 10, named=False) == [("s0", None), ("s1", None), ("s2", None)]
    assert distinct(connection, asked) == 8
    facts = measure(connection, asked, ["requests"], {"total_ms": (0.5,)}, top=["s0", None], others=True)
    assert {key[1:]: one["requests"] for key, one in facts.items()} == {("s0", False): 10, (None, True): 42}


@pytest.mark.usefixtures("few")
def test_a_backend_that_lies_about_its_tokens_does_not_stop_the_sum(
    tmp_path: Path, store: tuple[Ingest, duckdb.DuckDBPyConnection]
) -> None:
    ingest, connection = store
    lies = [record(n, tokens_out=2**62, tokens_in=2**62, total_ms=1e308, ttft_ms=-5.0) for n in range(8)]
    spool(tmp_path, ingest, connection, lies)
    assert roll_all(connection) == 1
    shown = queries.analytics(connection, Window(24, NOON_US + 2 * HOUR_US))
    assert shown["summary"]["totalRequests"] == 8
    assert shown["summary"]["tokensOut"] == 10**18


@pytest.mark.usefixtures("few")
async def test_long_times_are_told_when_the_rows_have_gone(tmp_path: Path) -> None:
    now = [NOON_US + 3 * HOUR_US]
    settings_ = msgspec.structs.replace(SETTINGS, retention_days=7)
    async with running(tmp_path, settings_, wall_us=lambda: now[0]) as store:
        put(tmp_path / "spool", map(line, of_hours(200, 2)))
        await store.flush()

        async def shown(hours: int) -> dict[str, Any]:
            return await store.read(lambda cursor: queries.analytics(cursor, Window(hours, now[0])))

        before = await shown(24)
        assert before["summary"]["totalRequests"] == 200
        now[0] += 10 * DAY_US
        store.retention._due_s = 0.0
        async with asyncio.timeout(20):
            while store.retention.deleted < 200:
                await asyncio.sleep(0.02)
        assert await rows(store, "SELECT count(*) FROM requests") == [(0,)]
        after = await shown(24 * 12)
        assert after["percentileError"] == round(ERROR, 3)
        for name in ("totalRequests", "errorCount", "uniqueModels", "tokensOut", "retriedCount", "bytesOut"):
            assert after["summary"][name] == before["summary"][name], name
        for name in ("modelDistribution", "serverDistribution"):
            assert [one["count"] for one in after[name]] == [one["count"] for one in before[name]]
        for name in ("errorBreakdown", "routingReasons", "outcomes"):
            assert after[name] == before[name]


async def test_a_file_of_before_the_rollups_gets_them(tmp_path: Path) -> None:
    _, connection = opened(tmp_path)
    for n in range(5):
        connection.execute(
            "INSERT INTO requests (request_id, started_at) VALUES ('r', make_timestamp(?))", [NOON_US + n * HOUR_US]
        )
    connection.execute("DROP TABLE requests_hourly")
    connection.execute("DROP TABLE rollup_pending")
    database.set_meta(connection, "schema_version", "1")
    connection.close()
    async with running(tmp_path, wall_us=lambda: LATER_US) as store:
        async with asyncio.timeout(20):
            while store.rollups.rolled < 5:
                await asyncio.sleep(0.02)
        assert await rows(store, "SELECT count(*), sum(requests) FROM requests_hourly WHERE dimension = 'all'") == [
            (5, 5)
        ]


@given(st.integers(0, 5 * HOUR_US), st.integers(0, 5 * HOUR_US), st.sets(st.integers(0, 4)), st.integers(0, 5))
@settings(max_examples=60)
def test_a_plan_has_each_moment_once(
    planned: duckdb.DuckDBPyConnection, start: int, length: int, pending: set[int], forgotten: int
) -> None:
    planned.execute("DELETE FROM rollup_pending")
    since, until = NOON_US + start, NOON_US + start + length
    kept_us = NOON_US + forgotten * HOUR_US
    for hour in pending:
        if hour >= forgotten:
            rollups.mark(planned, [NOON_US + hour * HOUR_US], NOON_US)
    database.set_meta(planned, "raw_since_us", str(kept_us))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "RAW_ROWS", -1)
        found = plan_of(planned, since, until)
    covered = _stretches(found)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(covered))
    # Missing are at most the broken hours at both ends, and those only where rows have gone.
    missing = (until - since) - sum(end - start for start, end in covered)
    assert missing == 0 or (since < kept_us and missing < 2 * HOUR_US)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    _, connection = opened(tmp_path_factory.mktemp("plan"))
    yield connection
    connection.close()


def _stretches(found: Plan) -> list[tuple[int, int]]:
    hours = []
    if found.rolled is not None:
        first, last = found.rolled
        hours = [(hour, hour + HOUR_US) for hour in range(first, last, HOUR_US) if hour not in found.pending_us]
    return sorted([*hours, *found.raw])
