"""Rows as files: Parquet, CSV or one JSON object per line, written by DuckDB. A file appears whole or not at all.

In CSV and JSON lines instants are ISO 8601 in UTC, and in CSV text that a spreadsheet would run as a formula gets a `'`
in front. Parquet has the store's own types.
"""

# ruff: noqa: S608  (SQL here is made of our own tables' names; values are bound)

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from fleetproxy.control.analytics import schema
from fleetproxy.control.analytics.database import quote


class Format(msgspec.Struct, frozen=True):
    suffix: str
    media_type: str
    #: How DuckDB is told to write it, and to read it.
    options: str
    reader: str


FORMATS: dict[str, Format] = {
    "parquet": Format(
        "parquet", "application/vnd.apache.parquet", "FORMAT parquet, COMPRESSION zstd", "read_parquet({})"
    ),
    "csv": Format("csv", "text/csv", "FORMAT csv, HEADER true", "read_csv({}, header = true, all_varchar = true)"),
    "ndjson": Format("ndjson", "application/x-ndjson", "FORMAT json", "read_ndjson({})"),
}
#: Tables with rows of a time.
TABLES: dict[str, schema.Table] = {
    table.name: table for table in schema.TABLES if table.time and table is not schema.SEGMENTS
}


class Span(msgspec.Struct, frozen=True):
    """Rows of a table, of [since, until)."""

    table: str
    since: datetime
    until: datetime


class Written(msgspec.Struct, frozen=True):
    rows: int
    files: int


def write_rows(cursor: duckdb.DuckDBPyConnection, span: Span, form: str, target: Path) -> int:
    """Write rows to a file in the order of time; how many. Raises duckdb.Error, OSError."""
    table = TABLES[span.table]
    wanted = ", ".join(_shown(f'"{column.name}"', column.type, column.name, form) for column in table.columns)
    time = f"{table.name}.{table.time}"
    return write(
        cursor,
        f"SELECT {wanted} FROM {table.name} WHERE {time} >= $since AND {time} < $until ORDER BY {time}",
        {"since": _naive(span.since), "until": _naive(span.until)},
        form,
        target,
    )


def write(cursor: duckdb.DuckDBPyConnection, sql: str, values: dict[str, Any], form: str, target: Path) -> int:
    """Write rows; the file is there, with its last byte on the disk, or it is not."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        row = cursor.execute(f"COPY ({sql}) TO {quote(str(unfinished))} ({FORMATS[form].options})", values).fetchone()
        unfinished.chmod(0o600)
        _sync(unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return row[0] if row else 0


def write_days(cursor: duckdb.DuckDBPyConnection, spans: Iterable[Span], form: str, folder: Path) -> Written:
    """A file for each table and day, `<folder>/<table>/date=2026-11-21/<table>.parquet`, whole days only.

    Days that were written before are written anew, with what has come since; but a day that retention has begun to
    forget stays as it was written when it was whole.
    """
    rows = files = 0
    for span in spans:
        found = cursor.execute(f"SELECT min({TABLES[span.table].time}) FROM {span.table}").fetchone()
        if not found or found[0] is None:
            continue
        oldest = found[0].date()
        day = max(span.since.astimezone(UTC).date(), oldest)
        while day <= span.until.astimezone(UTC).date():
            target = folder / span.table / f"date={day}" / f"{span.table}.{FORMATS[form].suffix}"
            whole = Span(span.table, _midnight(day), _midnight(day + timedelta(days=1)))
            if not (day == oldest and target.exists() and _count(cursor, whole) < _count_written(cursor, target, form)):
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                count = write_rows(cursor, whole, form, target)
                if count:
                    rows += count
                    files += 1
                else:
                    target.unlink()
                    target.parent.rmdir()
            day += timedelta(days=1)
    return Written(rows, files)


def tidy(folder: Path) -> None:
    """Remove what an earlier life left half written."""
    for pattern in (".*", "*.unfinished", "*/*/*.unfinished"):
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)


def _shown(column: str, kind: str, name: str, form: str) -> str:
    kind = kind.partition(" DEFAULT")[0]
    if form == "parquet":
        return column
    if kind == "TIMESTAMP":
        return f"strftime({column}, '%Y-%m-%dT%H:%M:%S.%fZ') AS \"{name}\""
    if form == "csv" and (kind.startswith("MAP") or kind.endswith("[]") or kind == "JSON"):
        column = f"to_json({column})::VARCHAR"
        kind = "VARCHAR"
    if form == "csv" and kind == "VARCHAR":
        formula = f"regexp_matches({column}, '^[=+\\-@\\t\\r]')"
        return f"CASE WHEN {formula} THEN '''' || {column} ELSE {column} END AS \"{name}\""
    return f'{column} AS "{name}"'


def _count(cursor: duckdb.DuckDBPyConnection, span: Span) -> int:
    time = TABLES[span.table].time
    found = cursor.execute(
        f"SELECT count(*) FROM {span.table} WHERE {time} >= ? AND {time} < ?", [_naive(span.since), _naive(span.until)]
    ).fetchone()
    return found[0] if found else 0


def _count_written(cursor: duckdb.DuckDBPyConnection, path: Path, form: str) -> int:
    try:
        found = cursor.execute(f"SELECT count(*) FROM {FORMATS[form].reader.format(quote(str(path)))}").fetchone()
    except duckdb.Error:
        return 0  # what cannot be read is no copy worth keeping
    return found[0] if found else 0


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
