"""`fleetproxy status`"""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from fleetproxy.cli import FINDINGS, OK
from fleetproxy.cli.backends import COLUMNS, row, state
from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import add_output, coloured, painted, printed
from fleetproxy.cli.wording import short_span
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.state import View, look

_EXAMPLES = """\
  fleetproxy status
  fleetproxy status -o wide
  fleetproxy status --json
  fleetproxy status --url https://fleet.example --key "$KEY" """.rstrip()

_SAYS = """\
How a running fleetproxy and its fleet are, at one glance. Exit code 7 when nobody can be
served. DONE, FAILED and MEAN are counted since it started; so is LEFT (-o wide): callers who
did not stay to the end."""


def run(words: list[str]) -> int:
    options = parser("status", examples=_EXAMPLES, says=_SAYS)
    add_output(options)
    add_target(options)
    asked = options.parse_args(words)
    return asking("status", asked, lambda fleet: _work(fleet, asked))


def _work(fleet: Fleet, asked: argparse.Namespace) -> int:
    view = look(fleet, time.time())
    columns = [column for column in COLUMNS if not column.key.endswith("_per_s")]
    places = [COLUMNS.index(column) for column in columns]
    if asked.output == "json":
        from fleetproxy.cli.output import print_json  # noqa: PLC0415  (the one form that is no table)

        print_json({"url": fleet.target.url, **msgspec.to_builtins(view)})
    else:
        if asked.output in ("table", "wide"):
            _head(fleet, view, asked)
        rows = [[row(backend)[place] for place in places] for backend in view.backends]
        if not rows and asked.output in ("table", "wide"):
            print("no server and no worker yet; `fleetproxy servers add NAME=URL` adds one")
            return FINDINGS
        printed(columns, rows, [msgspec.structs.asdict(backend) for backend in view.backends], asked)
    return OK if view.state == "ready" else FINDINGS


def _head(fleet: Fleet, view: View, asked: argparse.Namespace) -> None:
    colour = coloured(sys.stdout, off=asked.no_color)
    online = sum(server.status != "offline" for server in view.servers)
    print(f"fleetproxy {view.version} at {fleet.target.url}: {painted(state(view), colour=colour)}")
    print(
        f"up {short_span(view.uptime_s)}   servers {online}/{len(view.servers)} online   workers {len(view.workers)}   "
        f"in flight {view.in_flight}   in line {view.waiting}/{view.line_size}   "
        f"processes {', '.join(view.processes)}\n"
    )
