"""What the verbs print: tables, JSON, CSV; colour where there is somebody to see it."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TextIO

import msgspec

Style = Literal["", "good", "warn", "bad", "dim", "bold"]

_CODES: dict[str, str] = {"good": "32", "warn": "33", "bad": "31", "dim": "2", "bold": "1"}
#: What could move the cursor or worse: names come from servers we do not know.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
#: The same of texts with lines.
_STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: Beginnings that a spreadsheet would run.
_FORMULA = ("=", "+", "-", "@")


class Cell(msgspec.Struct, frozen=True):
    """A text with its meaning."""

    text: str
    style: Style = ""


class Column(msgspec.Struct, frozen=True):
    """One column: its head, and whether it shows only with `-o wide`."""

    head: str
    #: Its name in JSON and CSV.
    key: str
    right: bool = False
    wide: bool = False


def add_output(options: argparse.ArgumentParser, *, names: bool = True) -> None:
    """`-o table|wide|json|csv|name` and `--json`."""
    forms = ["table", "wide", "json", "csv", *(["name"] if names else [])]
    options.add_argument("-o", "--output", choices=forms, default="table", help="how to print it (table)")
    options.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")
    options.add_argument("--no-color", action="store_true", help="no colours; NO_COLOR and TERM=dumb say so too")


def coloured(stream: TextIO, *, off: bool = False) -> bool:
    """Whether to write colours to it."""
    if off or os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def painted(cell: Cell, *, colour: bool) -> str:
    code = _CODES.get(cell.style)
    return f"\x1b[{code}m{cell.text}\x1b[0m" if colour and code else cell.text


def printed(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Cell]],
    values: Sequence[Mapping[str, Any]],
    asked: argparse.Namespace,
) -> None:
    """Print rows the way `asked` wants. `values` are the same rows as data, for JSON and CSV."""
    match asked.output:
        case "json":
            print_json(values)
        case "csv":
            _print_csv(columns, values)
        case "name":
            sys.stdout.writelines(f"{clean(_text(row[0]))}\n" for row in rows)
        case _:
            colour = coloured(sys.stdout, off=asked.no_color)
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
            sys.stdout.write(table(columns, rows, wide=asked.output == "wide", colour=colour, width=width))


def print_json(value: Any) -> None:
    """Indented for people, on one line for programs."""
    text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.write(f"{text}\n")


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Cell]],
    *,
    wide: bool = False,
    colour: bool = False,
    width: int = 0,
) -> str:
    """Aligned columns with heads, three spaces between, no line longer than `width` (0: any)."""
    shown = [place for place, column in enumerate(columns) if wide or not column.wide]
    heads = [Cell(columns[place].head, "bold") for place in shown]
    cells = [heads, *([_cell(row[place]) for place in shown] for row in rows)]
    widths = [max(columns_of(line[at].text) for line in cells) for at in range(len(shown))]
    lines = []
    for line in cells:
        parts, used = [], 0
        for at, cell in enumerate(line):
            room = width - used if width else 0
            if width and room <= 1:
                break
            text = cut(cell.text, room) if width else cell.text
            pad = " " * max(0, widths[at] - columns_of(text))
            last = at == len(line) - 1
            paint = painted(Cell(text, cell.style), colour=colour)
            parts.append(pad + paint if columns[shown[at]].right else paint + ("" if last else pad))
            used += widths[at] + 3
        lines.append("   ".join(parts).rstrip() + "\n")
    return "".join(lines)


def cut(text: str, width: int) -> str:
    """At most so many columns; what does not fit ends in "…"."""
    if columns_of(text) <= width:
        return text
    kept = ""
    for letter in text:
        if columns_of(kept + letter) > width - 1:
            break
        kept += letter
    return f"{kept}…"


def columns_of(text: str) -> int:
    """How wide a text is on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def clean(text: str) -> str:
    """A text from elsewhere, safe to show."""
    return _CONTROL.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The same of what an error says, which may have lines."""
    return clean(" ".join(text.split()))


def clean_lines(text: str) -> str:
    """The same of a text that has lines; as it is where no terminal could be steered by it."""
    return _STEERING.sub("\ufffd", text) if sys.stdout.isatty() else text


def talk(text: str) -> None:
    """Something for people: not data."""
    sys.stderr.write(f"{text}\n")


def _cell(value: str | Cell) -> Cell:
    return Cell(clean(value.text), value.style) if isinstance(value, Cell) else Cell(clean(value))


def _text(value: str | Cell) -> str:
    return value.text if isinstance(value, Cell) else value


def _print_csv(columns: Sequence[Column], values: Sequence[Mapping[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    for value in values:
        writer.writerow([_plain(value.get(column.key)) for column in columns])


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value
