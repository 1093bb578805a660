"""What a query gave, and its ways onto paper: JSON, CSV, a table for a terminal. No database needed to read this."""

from __future__ import annotations

import csv
import io
import unicodedata
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import msgspec

#: Characters of a cell shown on a terminal.
CELL_CHARACTERS = 64
#: A spreadsheet would take a cell beginning with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Answer(msgspec.Struct, frozen=True):
    columns: tuple[str, ...]
    #: DuckDB's type of each column.
    types: tuple[str, ...]
    #: JSON values, one list per row.
    rows: list[list[Any]]
    #: There was more than "rows" or "bytes" allow; None: this is all.
    truncated: str | None = None

    def objects(self) -> list[dict[str, Any]]:
        """Rows as objects; of columns with one name the later ones get a number: `n`, `n_2`."""
        names = unique(self.columns)
        return [dict(zip(names, row, strict=True)) for row in self.rows]


def unique(names: tuple[str, ...]) -> list[str]:
    """The names, each once: a further `n` becomes `n_2`."""
    taken = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate in seen or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name}_{number}"
        seen.add(candidate)
        result.append(candidate)
    return result


def json_value(value: Any) -> Any:
    """A value of DuckDB's as JSON can hold it. Instants are UTC, and say so."""
    match value:
        case None | bool() | str():
            return value
        case int():
            # Beyond 2^53 JavaScript would round it.
            return value if -(2**53) <= value <= 2**53 else str(value)
        case float():
            return value if value - value == 0 else None  # neither NaN nor infinite
        case Decimal():
            return float(value)
        case datetime():
            return f"{value.isoformat()}Z" if value.tzinfo is None else value.isoformat()
        case date():
            return value.isoformat()
        case list() | tuple():
            return [json_value(item) for item in value]
        case dict():
            return {str(key): json_value(item) for key, item in value.items()}
        case bytes():
            return value.hex()
        case _:
            return str(value)


def as_csv(answer: Answer) -> str:
    """Comma-separated, with a header. Text that a spreadsheet would run as a formula gets a `'` in front."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([_harmless(name) for name in answer.columns])
    writer.writerows([[_harmless(cell) for cell in row] for row in answer.rows])
    return out.getvalue()


def as_table(answer: Answer, cell_characters: int = CELL_CHARACTERS) -> str:
    """Columns side by side, numbers to the right. Control characters are escaped: a model's name steers no terminal."""
    cells = [[_cell(value, cell_characters) for value in row] for row in answer.rows]
    heads = [_cell(name, cell_characters) for name in answer.columns]
    widths = [max(map(_width, column)) for column in zip(heads, *cells, strict=True)]
    numeric = [
        bool(answer.rows) and all(isinstance(row[n], int | float | None) for row in answer.rows)
        for n in range(len(heads))
    ]
    lines = [_line(heads, widths, numeric), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, numeric) for row in cells]
    return "".join(f"{line}\n" for line in lines)


def _line(cells: list[str], widths: list[int], numeric: list[bool]) -> str:
    padded = []
    for cell, width, right in zip(cells, widths, numeric, strict=True):
        space = " " * (width - _width(cell))
        padded.append(space + cell if right else cell + space)
    return "  ".join(padded).rstrip()


def _cell(value: Any, most: int) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list):
        value = msgspec.json.encode(value).decode()
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _harmless(value: Any) -> Any:
    if isinstance(value, dict | list):
        value = msgspec.json.encode(value).decode()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
