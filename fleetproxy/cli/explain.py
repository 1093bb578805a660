"""`fleetproxy explain`"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fleetproxy.cli import FINDINGS, OK
from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import Cell, Column, Style, add_output, clean, coloured, painted, print_json, printed
from fleetproxy.cli.wording import size
from fleetproxy.remote.call import Fleet, query

_EXAMPLES = """\
  fleetproxy explain --model llama3.2:3b
  fleetproxy explain --model llama3.2:3b --path /v1/chat/completions
  fleetproxy explain --model llama3.2:3b --pin gpu2 --json"""

_SAYS = """\
Which server a request for a model would go to now, which come after it, and why not the
others. Nothing is sent to any server. Exit code 7 when nobody could serve it."""

COLUMNS = (
    Column("PLACE", "place", right=True),
    Column("SERVER", "server"),
    Column("VERDICT", "verdict"),
    Column("MODEL", "tier"),
    Column("BUSY", "in_flight", right=True),
    Column("LINE", "waiting", right=True),
    Column("FREE VRAM", "free_vram_bytes", right=True),
    Column("WHY", "words"),
)
_STYLES: dict[str, Style] = {
    "chosen": "good",
    "next": "good",
    "waited_for": "warn",
    "full": "warn",
    "not_preferred": "",
}


def run(words: list[str]) -> int:
    options = parser("explain", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--model", required=True, help="the model")
    options.add_argument("--path", help="the path it would be asked at (/api/chat)")
    options.add_argument("--pin", metavar="NAME", help="as if pinned to this server")
    add_output(options, names=False)
    add_target(options)
    asked = options.parse_args(words)
    return asking("explain", asked, lambda fleet: _work(fleet, asked))


def _work(fleet: Fleet, asked: argparse.Namespace) -> int:
    wish = query({"model": asked.model, "path": asked.path, "pin": asked.pin})
    found = fleet.control("GET", f"/api/models/explain{wish}")
    code = FINDINGS if found["outcome"] == "refuse" else OK
    if asked.output == "json":
        print_json(found)
        return code
    rows = found["considered"]
    if asked.output != "csv":
        styles: dict[str, Style] = {"candidates": "good", "wait": "warn", "refuse": "bad"}
        head = Cell(clean(found["words"] or found["reason"]), styles.get(found["outcome"], ""))
        said = painted(head, colour=coloured(sys.stdout, off=asked.no_color))
        print(f"{clean(found['model'])} at {clean(found['path'])}: {said}")
        if found["message"] and found["message"] != found["words"]:
            print(clean(found["message"]))
        print()
    printed(COLUMNS, [_row(row) for row in rows], [{**row, "server": row["serverName"], "in_flight": row["inFlight"],
            "free_vram_bytes": row["freeVramBytes"]} for row in rows], asked)  # fmt: skip
    return code


def _row(row: dict[str, Any]) -> tuple[str | Cell, ...]:
    return (
        str(row["place"] or "-"),
        row["serverName"],
        Cell(row["verdict"].replace("_", " "), _STYLES.get(row["verdict"], "bad")),
        row["tier"].replace("_", " "),
        f"{row['inFlight']}/{row['slots']}" if row["slots"] else str(row["inFlight"]),
        str(row["waiting"] or "-"),
        size(row["freeVramBytes"]),
        row["words"],
    )
