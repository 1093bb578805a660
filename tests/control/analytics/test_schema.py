from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetproxy.control.analytics import rows, schema
from fleetproxy.control.analytics.dictionary import page
from fleetproxy.core.record import Attempt, AuditRecord
from tests.control.analytics.analytics_kit import NOON_US, line, load, opened, put, record

ROWS: dict[str, type[msgspec.Struct]] = {"requests": AuditRecord, **{table: row for row, table in rows.TABLES.items()}}


@pytest.mark.parametrize("table", ROWS)
def test_every_field_of_a_row_is_a_column_and_every_column_a_field(table: str) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(ROWS[table])} - {"attempts"}
    assert {column.key for column in schema.SPOOLED[table].columns if column.key} == fields


def test_every_field_of_an_attempt_is_a_column() -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(Attempt)}
    assert {column.name for column in schema.ATTEMPTS.columns} == fields | {"request_id", "started_at", "n"}


def test_everything_is_documented_and_named_once() -> None:
    names = [table.name for table in schema.TABLES] + [view.name for view in schema.VIEWS]
    assert len(names) == len(set(names))
    for table in schema.TABLES:
        assert table.doc.endswith(".")
        assert len({column.name for column in table.columns}) == len(table.columns)
        assert all(column.doc.strip() for column in table.columns)


def test_a_changed_schema_has_a_new_version() -> None:
    shape = [(t.name, t.sequence, [(c.name, c.type) for c in t.columns]) for t in schema.TABLES]
    views = [(view.name, view.sql) for view in schema.VIEWS]
    digest = hashlib.sha256(repr((shape, views)).encode()).hexdigest()[:16]
    assert {schema.SCHEMA_VERSION: digest} == {3: "e46f5b518dc90e95"}, (
        "raise SCHEMA_VERSION, then note the new digest here"
    )


def test_the_dictionary_names_every_table_column_and_view() -> None:
    text = page()
    for table in schema.TABLES:
        assert f"## `{table.name}`" in text
        for column in table.columns:
            assert f"| `{column.name}` | {column.type.partition(' DEFAULT')[0]}" in text
    for view in schema.VIEWS:
        assert f"`{view.name}`" in text


def test_comments_are_in_the_file_itself(tmp_path: Path) -> None:
    _, connection = opened(tmp_path)
    found = connection.execute("SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'requests'")
    assert dict(found.fetchall()) == {column.name: column.doc for column in schema.REQUESTS.columns}
    connection.close()


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_ms = st.floats(0, 1e9, allow_nan=False)
_count = st.integers(0, 2**62)


def _maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


attempts = st.builds(
    Attempt,
    backend=_text,
    status=_maybe(st.integers(100, 599)),
    error=_maybe(_text),
    started_ms=_ms,
    connect_ms=_maybe(_ms),
    first_byte_ms=_maybe(_ms),
    total_ms=_ms,
)
records = st.builds(
    AuditRecord,
    request_id=_text,
    started_at_us=st.integers(0, 4_102_444_800_000_000),
    process=_text,
    sequence=_count,
    source=_text,
    user=_maybe(_text),
    user_id=_maybe(_count),
    key_prefix=_maybe(_text),
    key_unknown=st.booleans(),
    remote_ip=_maybe(_text),
    user_agent=_maybe(_text),
    family=_text,
    dialect=_text,
    endpoint=_text,
    method=_text,
    path=_text,
    model=_maybe(_text),
    model_served=_maybe(_text),
    backend=_maybe(_text),
    server_id=_maybe(_count),
    route_reason=_maybe(_text),
    status=_maybe(st.integers(0, 999)),
    outcome=st.sampled_from(["ok", "refused", "backend_error", "truncated", "client_gone", "aborted"]),
    error=_maybe(_text),
    retries=st.integers(0, 1000),
    streamed=st.booleans(),
    queue_ms=_ms,
    ttft_ms=_maybe(_ms),
    overhead_ms=_maybe(_ms),
    total_ms=_ms,
    bytes_in=_count,
    bytes_out=_count,
    chunks_out=_count,
    tokens_in=_maybe(_count),
    tokens_out=_maybe(_count),
    load_ms=_maybe(_ms),
    prompt_eval_ms=_maybe(_ms),
    eval_ms=_maybe(_ms),
    attempts=st.lists(attempts, max_size=3).map(tuple),
)


@settings(max_examples=30)
@given(st.lists(records, min_size=1, max_size=8))
def test_every_value_of_a_record_comes_out_of_its_column(
    tmp_path_factory: pytest.TempPathFactory, given_: list[AuditRecord]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    ingest, connection = opened(folder)
    put(folder / "spool", map(line, given_))
    load(ingest, connection)
    columns = schema.columns_from_spool(schema.REQUESTS)
    names = ", ".join(f"epoch_us({c.name})" if c.type == "TIMESTAMP" else f'"{c.name}"' for c in columns)
    stored = connection.execute(f"SELECT {names} FROM requests ORDER BY id").fetchall()
    assert stored == [tuple(getattr(row, c.key) for c in columns) for row in given_]
    inner = ("backend", "status", "error", "started_ms", "connect_ms", "first_byte_ms", "total_ms")
    tried = connection.execute(f"SELECT request_id, n, {', '.join(inner)} FROM attempts ORDER BY rowid").fetchall()
    assert tried == [
        (row.request_id, n, *(getattr(attempt, name) for name in inner))
        for row in given_
        for n, attempt in enumerate(row.attempts, 1)
    ]
    connection.close()


def test_rows_that_control_writes_come_out_of_their_columns(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    written = [
        rows.ModelEvent(
            occurred_at_us=NOON_US, server_id=3, server="gpu1", model="phi:latest", event="loaded", vram_bytes=7
        ),
        rows.ServerEvent(occurred_at_us=NOON_US, server_id=3, server="gpu1", event="reboot", detail="kernel"),
        rows.SystemMetrics(polled_at_us=NOON_US, server_id=3, server="gpu1", cpu_temp_c=55.5, recent_boots=("a", "b")),
        rows.MetricSample(sampled_at_us=NOON_US, name="x", labels={"backend": 'g"1'}, value=2.5),
        rows.JobRun(started_at_us=NOON_US, job="nightly", planned_at_us=None, result="failed", detail="no server"),
    ]
    for row in written:
        put(tmp_path / "spool", [line(row)], table=rows.TABLES[type(row)])
    load(ingest, connection)
    for row in written:
        table = schema.SPOOLED[rows.TABLES[type(row)]]
        columns = schema.columns_from_spool(table)
        names = ", ".join(f"epoch_us({c.name})" if c.type == "TIMESTAMP" else f'"{c.name}"' for c in columns)
        stored = connection.execute(f"SELECT {names} FROM {table.name}").fetchall()
        assert len(stored) == 1
        for value, column in zip(stored[0], columns, strict=True):
            expected = getattr(row, column.key)
            if isinstance(expected, dict):
                assert msgspec.json.decode(value) == expected
            else:
                assert value == (list(expected) if isinstance(expected, tuple) else expected)
    found = connection.execute("SELECT labels->>'backend' FROM metric_samples").fetchone()
    assert found == ('g"1',)
    connection.close()


def test_long_texts_are_cut(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    put(tmp_path / "spool", [line(record(user_agent="é" * 10_000, error="x" * 1000, model="m" * 5000))])
    load(ingest, connection)
    found = connection.execute("SELECT length(user_agent), length(error), length(model) FROM requests").fetchone()
    assert found == (256, 256, 256)
    connection.close()


def test_every_view_answers(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    put(tmp_path / "spool", [line(record(n, status=500 if n % 2 else 200)) for n in range(4)])
    load(ingest, connection)
    hourly = connection.execute(
        "SELECT model, requests, errors, tokens_out, ttft_p50_ms FROM v_hourly_model"
    ).fetchall()
    assert hourly == [("llama3:8b", 4, 2, 200, 120.0)]
    speed = connection.execute("SELECT backend, tokens_per_second FROM v_hourly_backend").fetchall()
    assert speed == [("gpu1", 50.0)]
    for view in schema.VIEWS:
        connection.execute(f"SELECT * FROM {view.name}").fetchall()
    connection.close()


def test_residency_pairs_loads_with_unloads(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    events = [(0, "loaded"), (10, "unloaded"), (20, "loaded"), (30, "loaded"), (45, "unloaded"), (50, "loaded")]
    put(
        tmp_path / "spool",
        [
            line(
                rows.ModelEvent(occurred_at_us=NOON_US + s * 1_000_000, server_id=1, server="g", model="m", event=event)
            )  # type: ignore[arg-type]
            for s, event in events
        ],
        table="model_events",
    )
    load(ingest, connection)
    stays = connection.execute(
        "SELECT epoch(loaded_at) - ?, epoch(unloaded_at) - ? FROM v_model_residency ORDER BY 1",
        [NOON_US / 1e6, NOON_US / 1e6],
    ).fetchall()
    # A second "loaded" begins the stay anew.
    assert stays == [(0, 10), (30, 45), (50, None)]
    connection.close()
