"""Requests as a file: what the list shows, with all columns of the table."""

# ruff: noqa: S608  (SQL here is made of our own names; values are bound)

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal

import orjson

from fleetproxy.control.analytics.answers import Answer, as_csv, json_value
from fleetproxy.control.analytics.database import quote
from fleetproxy.control.analytics.queries import NEWEST, Cursor, Window, narrowed, ordered

Kind = Literal["csv", "ndjson", "parquet"]
#: Rows of one file, unless fewer are asked for.
MAX_ROWS = 100_000
MEDIA: dict[Kind, str] = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}


def requests(
    cursor: Cursor,
    window: Window,
    kind: Kind,
    folder: Path,
    *,
    filters: dict[str, str] | None = None,
    limit: int = MAX_ROWS,
    sort: str = NEWEST,
) -> bytes:
    """The file's content. Parquet is written into `folder`, where the database may write, and taken away again."""
    where, values = narrowed(window, filters or {})
    key, direction = ordered(sort)
    asked = (
        f"SELECT * FROM requests WHERE {' AND '.join(where)} ORDER BY {key} {direction}, id {direction} LIMIT {limit}"
    )
    if kind == "parquet":
        return _parquet(cursor, asked, values, folder / f".{secrets.token_hex(8)}.parquet")
    found = cursor.execute(asked, values)
    columns = tuple(column[0] for column in found.description or ())
    rows = [[json_value(value) for value in row] for row in found.fetchall()]
    if kind == "csv":
        return as_csv(Answer(columns, ("",) * len(columns), rows)).encode()
    return b"".join(
        orjson.dumps(dict(zip(columns, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE) for row in rows
    )


def _parquet(cursor: Cursor, asked: str, values: list[object], path: Path) -> bytes:
    try:
        cursor.execute(f"COPY ({asked}) TO {quote(str(path))} (FORMAT parquet, COMPRESSION zstd)", values)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
