"""The reference page of the store's tables, made from `schema.py`; `docs/generate.py` writes it."""

from __future__ import annotations

from fleetproxy.control.analytics import schema

_HEAD = """\
# Tables of the request history

`fleetproxy query "select …"` and `POST /api/query` answer one `SELECT` or `EXPLAIN` over these tables, in DuckDB's SQL.
Times are UTC. Units are in the names. `NULL` means not known, or does not apply. Inside a major version columns are
added, never renamed.
"""


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
