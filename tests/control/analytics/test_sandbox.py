from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.analytics import sandbox
from fleetproxy.control.analytics.answers import Answer
from fleetproxy.control.analytics.database import harden
from fleetproxy.errors import BadQuery
from tests.control.analytics.analytics_kit import line, load, opened, put, record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    ingest, connection = opened(folder)
    put(folder / "spool", [line(record(n, model="phi:latest" if n % 3 else "llama3:8b")) for n in range(30)])
    load(ingest, connection)
    connection.close()
    (folder / "spool" / "canary.ndjson").write_text('{"a":1}\n')
    (folder / "canary.csv").write_text("a\n1\n")
    return folder


@pytest.fixture(scope="module")
def connection(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    _, connection = opened(folder)
    yield connection
    connection.close()


@pytest.fixture
def cursor(connection: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    cursor = connection.cursor()
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    yield cursor
    cursor.close()


def ask(cursor: duckdb.DuckDBPyConnection, sql: str, rows: int = 100) -> Answer:
    return sandbox.answer(cursor, sql, rows)


ANSWERED: list[tuple[str, list[list[Any]] | None]] = [
    ("select 1", [[1]]),
    ("SELECT 1;", [[1]]),
    ("select 1; -- and no more", [[1]]),
    ("-- first\nselect 1 /* then */ --x\n;  ", [[1]]),
    ("select ';' as a -- ;", [[";"]]),
    ("values (1), (2)", [[1], [2]]),
    ("from range(3)", [[0], [1], [2]]),
    ("with a as (select 1 x) select x + 1 from a", [[2]]),
    ("select count(*) from requests", [[30]]),
    ("select count(*) from main.requests", [[30]]),
    ("table attempts limit 0", []),
    ("select model, count(*) from requests group by all order by 2 desc", [["phi:latest", 20], ["llama3:8b", 10]]),
    ("select unnest(range(3))", [[0], [1], [2]]),
    ("select * from range(5) order by 1 desc limit 2", [[4], [3]]),
    ("select 1 as a, 2 as a, 3 as b", [[1, 2, 3]]),
    ("select repeat('ab', 3)", [["ababab"]]),
    ("describe requests", None),
    ("show tables", None),
    ("summarize requests", None),
    ("explain select * from requests", None),
    ("EXPLAIN ANALYZE select count(*) from requests;", None),
    ("explain (format json) select 1", None),
    ("explain (analyze, format json) select 1", None),
    ("/* why */ explain -- so\n select 1", None),
    ("select count(*) from requests where started_at < now()", None),
    ("select * from generate_series(timestamp '2026-01-01', timestamp '2026-01-02', interval 12 hour)", None),
    ("select * from information_schema.tables", None),
    ("from v_hourly_model", None),
    ("select replace(replace(model, 'llama', 'll'), ':', ' of ') from requests limit 1", None),
    ("select regexp_replace(path, '[0-9]+', '{id}', 'g'), replace(model, ':', source) from requests limit 1", None),
    ("select printf('%05d', 3), format('{:>20}|{}', 'x', 1), length(repeat('x', 10000))", None),
    ("select repeat('ab', 3), lpad(repeat('x', 3), 5, '-')", [["ababab", "--xxx"]]),
    ("select ';' as x", [[";"]]),
    ("select 'it''s;' as x; -- so;", [["it's;"]]),
    ("select $$;$$", [[";"]]),
    ('select 1 as "a;b"', [[1]]),
    ("select 1 -- a; b", [[1]]),
    ("select 1 -- it's; 'so", [[1]]),
    ("/* ; */ select 1", [[1]]),
    ("select 1 /* ; ' */;", [[1]]),
    ("explain select ';'", None),
    ("select ';' where 'a;b' <> ';';", [[";"]]),
    ("select columns('.*_ms') from requests limit 1", None),
    ("select labels->>'backend' from metric_samples", []),
    ("select user, count(*) from requests group by user", [[None, 30]]),
]


@pytest.mark.parametrize(("sql", "rows"), ANSWERED)
def test_is_answered(cursor: duckdb.DuckDBPyConnection, sql: str, rows: list[list[Any]] | None) -> None:
    found = ask(cursor, sql)
    if rows is not None:
        assert found.rows == rows
    orjson.dumps(found.rows)


STATEMENTS = [
    "", ";", "-- nothing", "select 1; select 2", "select 1; drop table requests", "selec 1", "select",
    "delete from requests", "insert into meta values ('a', 'b')", "update meta set value = 'x'", "truncate requests",
    "drop table requests", "create table x (a int)", "create temp table x (a int)", "create view v as select 1",
    "create macro m(a) as a", "create type t as enum ('a')", "create sequence s", "create schema s",
    "create index i on meta(key)",
    "alter table requests add column x int", "comment on table requests is 'x'", "attach ':memory:' as x",
    "attach '{folder}/x.db'", "detach analytics", "use memory", "copy requests to '{folder}/x.csv'",
    "copy (select 1) to '{spool}/x.csv'", "copy requests from '{folder}/canary.csv'", "export database '{folder}/x'",
    "import database '{folder}/x'", "install httpfs", "load httpfs", "load '/tmp/x.duckdb_extension'",
    "update extensions", "set memory_limit = '100GB'", "set enable_external_access = true", "reset memory_limit",
    "set variable x = 1", "pragma enable_profiling", "pragma memory_limit = '1GB'", "pragma import_database('x')",
    "call pragma_version()", "call checkpoint()", "checkpoint", "force checkpoint", "vacuum", "analyze", "begin",
    "begin transaction read write", "commit", "rollback", "prepare p as select 1", "execute p", "deallocate p",
    "create secret (type s3)", "explain delete from requests", "explain analyze delete from requests",
    "explain analyze copy (select 1) to '{spool}/x.csv'", "explain analyze insert into meta values ('a', 'b')",
    "explain (analyze) delete from requests", "explain explain select 1", "explain select 1; select 2",
    "explain (format json, whatever) select 1", "pivot requests on model using count(*)", "select $1", "select ?",
    "merge into meta using meta m on true when matched then delete",
]  # fmt: skip

REACHING_OUT = [
    "select * from read_csv('{folder}/canary.csv')", "select * from read_csv_auto('{folder}/canary.csv')",
    "select * from read_json('{spool}/canary.ndjson')", "select * from read_ndjson_auto('{spool}/canary.ndjson')",
    "select * from read_text('/etc/passwd')", "select * from read_text('{spool}/../canary.csv')",
    "select * from read_blob('{folder}/analytics.duckdb')", "select * from read_parquet('x')",
    "select * from parquet_scan('x')", "select * from parquet_metadata('x')",
    "select * from sniff_csv('{folder}/canary.csv')",
    "select * from glob('/*')", "select * from '{folder}/canary.csv'", "select * from \"{spool}/canary.ndjson\"",
    "from '{spool}/canary.ndjson'", "select * from 'canary.csv'", "select * from 'https://example.invalid/x.csv'",
    "select * from 's3://x/y.parquet'", "select * from read_duckdb('{folder}/analytics.duckdb')",
    "select (select content from read_text('/etc/passwd'))",
    "select * from requests where source in (select content from read_text('/etc/passwd'))",
    "with x as (from read_text('/etc/passwd')) from x",
    "select * from requests, lateral (select * from read_text('/etc/passwd'))",
    "select exists(from glob('/*'))", "select case when true then (select count(*) from glob('/*')) end",
    "select 1 order by (select count(*) from glob('/*'))", "select 1 union all select count(*) from glob('/*')",
    "select * from query('select * from glob(''/*'')')", "select * from query_table('{folder}/canary.csv')",
    "select * from json_execute_serialized_sql(json_serialize_sql('select 1'))",
    "select * from checkpoint()", "select * from force_checkpoint()", "select * from enable_logging()",
    "select * from enable_profiling()", "select * from truncate_duckdb_logs()", "select * from duckdb_secrets()",
    "select * from which_secret('s3://x', 's3')", "select * from duckdb_logs()", "select * from duckdb_extensions()",
    "select * from arrow_scan(0::pointer, 0::pointer, 0::pointer)", "select * from pandas_scan(0::pointer)",
    "select * from python_map_function(0)", "select * from seq_scan('requests')", "summarize '{folder}/canary.csv'",
    "describe select * from read_text('/etc/passwd')", "select getenv('HOME')", "select nextval('requests_id')",
    "select write_log('x')", "select sleep_ms(100000)", "select SLEEP_MS(100000)", "select main.sleep_ms(1)",
    "select system.main.sleep_ms(1)", 'select "sleep_ms"(1)', "select * from system.main.glob('/*')",
    "select * from requests as r, folder", "select * from cursor", "select * from sys", "select * from connection",
]  # fmt: skip

TOO_BIG = [
    "select repeat('x', 2000000000)", "select range(1000000000)", "select list_sum(range(2000000000))",
    "select length(repeat('x', 10 * 1000000))", "select lpad('x', 2000000000, 'y')",
    "select rpad('x', id, 'y') from requests",
    "select generate_series(1, 1000000000)", "select list_resize([1], 1000000000)", "select bitstring('1', 1000000000)",
    "select Repeat('x', 2000000000)", "select repeat('x', 2000000000::int)", "select repeat('x', -1)",
    "select unnest(generate_series(1, id)) from requests", "explain analyze select repeat('x', 2000000000)",
    "select length(repeat(repeat('x', 10000), 10000))",
    "select length(replace(replace(repeat('x', 10000), 'x', 'yyyyyyyyyyy'), 'y', 'zzzzzzzzzzz'))",
    "select replace(replace(repeat('x', 100), 'x', repeat('y', 100)), 'y', model) from requests",
    "select repeat(s, 10000) from (select repeat('x', 10000) as s)",
    "with a as (select repeat('x', 10000) as s), b as (select repeat(s, 10000) as s from a) select * from b",
    "select (select repeat(s, 10000) from (select repeat('x', 10000) as s))",
    "select regexp_replace(repeat('x', 10000), 'x', repeat('y', 500), 'g')", "select printf('%2000000000d', 1)",
    "select printf('%*d', 2000000000, 1)", "select format('{:>2000000000}', 'x')", "select format('{:>{}}', 'x', 9)",
    "select format(model, 1) from requests",
    "select array_resize([1], 100001)", "select [repeat('x', 10001) for x in [1]]",
]  # fmt: skip


@pytest.mark.parametrize("sql", [*STATEMENTS, *REACHING_OUT, *TOO_BIG])
def test_is_refused_and_changes_nothing(cursor: duckdb.DuckDBPyConnection, folder: Path, sql: str) -> None:
    before = {path: path.stat().st_size for path in folder.rglob("*")}
    with pytest.raises(BadQuery) as caught:
        ask(cursor, sql.replace("{folder}", str(folder)).replace("{spool}", str(folder / "spool")))
    assert str(caught.value)
    assert {path: path.stat().st_size for path in folder.rglob("*")} == before
    cursor.execute("ROLLBACK")
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    assert ask(cursor, "select count(*) from requests").rows == [[30]]


@pytest.mark.parametrize("sql", [sql for sql in (*STATEMENTS, *REACHING_OUT) if "'" in sql])
def test_the_closed_instance_alone_reaches_no_file_either(folder: Path, tmp_path: Path, sql: str) -> None:
    """The wall behind the first one: whatever statement came through, it finds no file but the spool's."""
    connection = duckdb.connect(str(tmp_path / "own.duckdb"))
    harden(connection, folder / "spool")
    sql = sql.replace("{spool}/canary", "{folder}/canary").replace("{spool}/x", "{folder}/x").replace("explain ", "")
    try:
        found = connection.execute(sql.replace("{folder}", str(folder))).fetchall()
        assert "root:" not in str(found)
        assert "canary" not in str(found)
    except duckdb.Error:
        pass
    finally:
        connection.close()
    assert sorted(path.name for path in folder.iterdir()) == ["analytics.duckdb", "canary.csv", "spool"]


def test_results_are_cut_at_the_row_limit_and_say_so(cursor: duckdb.DuckDBPyConnection) -> None:
    assert ask(cursor, "from range(10)", rows=10).truncated is None
    found = ask(cursor, "from range(11)", rows=10)
    assert (len(found.rows), found.truncated) == (10, "rows")
    assert len(ask(cursor, "from range(1000000000000)", rows=700).rows) == 700


def test_results_are_cut_at_the_byte_limit_and_say_so(
    cursor: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "RESULT_BYTES", 100_000)
    found = ask(cursor, "select repeat('x', 100) from range(100000)", rows=100_000)
    assert found.truncated == "bytes"
    assert 0 < len(found.rows) * 100 < 100_000


def test_too_long_and_too_deep_texts_are_refused(cursor: duckdb.DuckDBPyConnection) -> None:
    for sql in (
        "select 1 --" + "x" * sandbox.SQL_CHARACTERS,
        "select " + "+".join("1" * 40_000),
        "select " + "(" * 40_000 + "1" + ")" * 40_000,
        "select " + "[" * 40_000,
        "select " + "not " * 20_000 + "true",
        "select " + "(select " * 3_000 + "1" + ")" * 3_000,
    ):
        with pytest.raises(BadQuery):
            ask(cursor, sql)


def test_an_endless_query_ends_with_an_interrupt(cursor: duckdb.DuckDBPyConnection) -> None:
    for sql in (
        "select count(*) from range(1000000000000)",
        "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t",
        "select * from range(100000000) order by random()",
        "explain analyze select count(*) from range(1000000000000)",
    ):
        timer = threading.Timer(0.1, cursor.interrupt)
        timer.start()
        with pytest.raises(duckdb.InterruptException):
            ask(cursor, sql)
        timer.join()
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN TRANSACTION READ ONLY")


def test_a_query_that_needs_too_much_memory_says_so(tmp_path: Path) -> None:
    _, connection = opened(tmp_path)
    cursor = connection.cursor()
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    with pytest.raises(BadQuery, match=r"analytics\.memory_bytes|temp"):
        ask(cursor, "select list(a.range::VARCHAR || b.range) from range(100000) a, range(1000) b")
    connection.close()


def test_every_type_becomes_json(cursor: duckdb.DuckDBPyConnection) -> None:
    found = ask(
        cursor,
        """select 1::TINYINT, 9007199254740993, 170141183460469231731687303715884105727::HUGEINT, 1.5::DECIMAL(4,2),
        'nan'::DOUBLE, 'inf'::FLOAT, true, NULL, DATE '2026-02-03', TIME '01:02:03', TIMESTAMP '2026-02-03 04:05:06.5',
        TIMESTAMPTZ '2026-02-03 04:05:06+00', [TIMESTAMPTZ '2026-02-03 04:05:06+00'], INTERVAL 3 DAY,
        'ab'::BLOB, '101'::BIT, {'a': [1, NULL], 'b': DATE '2026-01-01'}, map {'k': 1.5::DECIMAL(4,2)},
        UUID '00000000-0000-0000-0000-000000000001', TIMETZ '01:02:03+02', 'x'::ENUM('x', 'y'), TIMESTAMP 'infinity',
        DATE '290000-01-01', '{"j": 1}'::JSON, union_value(n := 1), TIMESTAMP_NS '2026-02-03 04:05:06.123456789'""",
    )
    assert found.rows == [
        [
            1, "9007199254740993", "170141183460469231731687303715884105727", 1.5, None, None, True, None, "2026-02-03",
            "01:02:03", "2026-02-03T04:05:06.500000Z", "2026-02-03 04:05:06+00", "['2026-02-03 04:05:06+00']",
            "3 days", "ab", "101", {"a": [1, None], "b": "2026-01-01"}, {"k": 1.5},
            "00000000-0000-0000-0000-000000000001", "01:02:03+02", "x", "9999-12-31T23:59:59.999999Z", "290000-01-01",
            '{"j": 1}', 1, "2026-02-03T04:05:06.123456Z",
        ]
    ]  # fmt: skip
    orjson.dumps(found.rows)


@given(st.text(max_size=80))
def test_no_text_gives_anything_but_an_answer_or_a_refusal(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    cursor = connection.cursor()
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        sandbox.answer(cursor, text, 10)
    except BadQuery:
        pass
    finally:
        cursor.close()


_words = st.sampled_from([
    "select", "*", "from", "requests", "where", "(", ")", ",", "1", "'a'", '"b"', ";", "--", "/*", "*/", "union", "all",
    "explain", "analyze", "copy", "to", "with", "as", "delete", "glob", "read_text", "range", "attach", "$$", "\\",
    "\n", "\x00", "%", "é",
])  # fmt: skip


@given(st.lists(_words, max_size=20).map(" ".join))
def test_no_words_of_sql_do_either(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    test_no_text_gives_anything_but_an_answer_or_a_refusal.hypothesis.inner_test(connection, text)  # type: ignore[attr-defined]
