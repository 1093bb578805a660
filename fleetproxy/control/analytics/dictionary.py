"""What the store's tables and views are: as a reference page (`docs/generate.py` writes it), and for the SQL page."""

from __future__ import annotations

from typing import Any

import msgspec

from fleetproxy.control.analytics import schema

_HEAD = """\
# Tables of the request history

`fleetproxy query "select …"` and `POST /api/query` answer one `SELECT` or `EXPLAIN` over these tables, in DuckDB's SQL.
Times are UTC. Units are in the names. `NULL` means not known, or does not apply. Inside a major version columns are
added, never renamed.
"""


class Field(msgspec.Struct, frozen=True):
    name: str
    type: str
    doc: str | None


class Relation(msgspec.Struct, frozen=True):
    """A table or a view, as the SQL page shows it."""

    name: str
    #: "table" or "view".
    kind: str
    doc: str
    #: About so many; None of a view.
    rows: int | None
    columns: list[Field]


_COLUMNS = """SELECT table_name, column_name, data_type, comment FROM duckdb_columns()
WHERE schema_name = 'main' AND NOT internal ORDER BY table_name, column_index"""
_SIZES = "SELECT table_name, estimated_size FROM duckdb_tables() WHERE schema_name = 'main'"


def relations(cursor: Any) -> list[Relation]:
    """Every table and view, as the file has them: ours by our names, with what our words say of them."""
    columns: dict[str, list[Field]] = {}
    for table, name, kind, comment in cursor.execute(_COLUMNS).fetchall():
        columns.setdefault(table, []).append(Field(name, kind, comment))
    sizes = dict(cursor.execute(_SIZES).fetchall())
    return [
        *(Relation(t.name, "table", t.doc, sizes.get(t.name, 0), columns.get(t.name, [])) for t in schema.TABLES),
        *(Relation(view.name, "view", view.doc, None, columns.get(view.name, [])) for view in schema.VIEWS),
    ]


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    for table in schema.TABLES:
        parts.append(f"\n## `{table.name}`\n\n{table.doc}\n\n| column | type | meaning |\n| --- | --- | --- |\n")
        for column in table.columns:
            # Defaults are our own business.
            parts.append(f"| `{column.name}` | {column.type.partition(' DEFAULT')[0]} | {_cell(column.doc)} |\n")
    parts.append("\n## Views\n\n| view | what it tells |\n| --- | --- |\n")
    parts.extend(f"| `{view.name}` | {_cell(view.doc)} |\n" for view in schema.VIEWS)
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
