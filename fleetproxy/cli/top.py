"""`fleetproxy top`"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence

import msgspec

from fleetproxy.cli.backends import COLUMNS, row, state
from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import Cell, add_output, coloured, cut, painted, print_json, printed, table
from fleetproxy.cli.wording import count, short_span
from fleetproxy.remote.call import CallError, Fleet
from fleetproxy.remote.state import Backend, View, look

_EXAMPLES = """\
  fleetproxy top
  fleetproxy top --interval 5
  fleetproxy top --once --json"""

_SAYS = """\
The fleet, live: who serves how many requests and tokens a second, who waits, who is full.
Keys: q leaves, s sorts by another column, p pauses, space looks now. Where there is no
terminal it prints once, after one interval, so that there are rates."""

#: What s goes through.
_ORDERS = ("fleet", "busy", "line", "tokens", "failed", "name")
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def run(words: list[str]) -> int:
    options = parser("top", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--interval", type=_interval, default=2.0, metavar="S", help="seconds between two looks (2)")
    options.add_argument("--once", action="store_true", help="print once and leave")
    add_output(options, names=False)
    add_target(options)
    asked = options.parse_args(words)
    live = (
        sys.stdout.isatty()
        and sys.stdin.isatty()
        and os.environ.get("TERM") != "dumb"
        and asked.output in ("table", "wide")
        and not asked.once
    )
    return asking("top", asked, lambda fleet: _live(fleet, asked) if live else _once(fleet, asked))


def _once(fleet: Fleet, asked: argparse.Namespace) -> None:
    first = look(fleet, time.monotonic())
    time.sleep(min(asked.interval, 60.0))
    view = look(fleet, time.monotonic(), first)
    if asked.output == "json":
        print_json(view)
        return
    if asked.output != "csv":
        print(_head(fleet, view))
    printed(COLUMNS, [row(one) for one in view.backends], [msgspec.structs.asdict(one) for one in view.backends], asked)


def _live(fleet: Fleet, asked: argparse.Namespace) -> None:
    view: View | None = None
    trouble = ""
    order, paused = 0, False
    with _screen():
        while True:
            if not paused:
                try:
                    view, trouble = look(fleet, time.monotonic(), view), ""
                except CallError as error:
                    if view is None and error.kind not in ("unreachable", "timeout"):
                        raise
                    trouble = str(error)
            _draw(fleet, view, asked, _ORDERS[order], paused=paused, trouble=trouble)
            match _key(asked.interval):
                case "q" | "Q" | "\x04":
                    return
                case "s":
                    order = (order + 1) % len(_ORDERS)
                case "p":
                    paused = not paused
                case _:
                    pass


def _draw(
    fleet: Fleet, view: View | None, asked: argparse.Namespace, order: str, *, paused: bool, trouble: str
) -> None:
    size = shutil.get_terminal_size()
    colour = coloured(sys.stdout, off=asked.no_color)
    lines = []
    if view is not None:
        lines = [painted(state(view), colour=colour) + "  " + cut(_head(fleet, view), size.columns - 14), ""]
        rows = [row(one) for one in _sorted(view.backends, order)]
        lines += table(COLUMNS, rows, wide=asked.output == "wide", colour=colour, width=size.columns).splitlines()
    keys = f"q leave  s sort ({order})  p {'go on' if paused else 'pause'}  space now"
    foot = painted(Cell(cut(trouble or keys, size.columns), "bad" if trouble else "dim"), colour=colour)
    room = max(1, size.lines - 2)
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more"]
    body = "".join(f"{line}\x1b[K\r\n" for line in lines)
    sys.stdout.write(f"\x1b[H{body}\x1b[K\r\n{foot}\x1b[K\x1b[J")
    sys.stdout.flush()


def _head(fleet: Fleet, view: View) -> str:
    rates = [backend for backend in view.backends if backend.requests_per_s is not None]
    requests = sum(backend.requests_per_s or 0.0 for backend in rates)
    tokens = sum(backend.tokens_per_s or 0.0 for backend in rates)
    return (
        f"{fleet.target.url}  up {short_span(view.uptime_s)}  {count(requests)} req/s  {count(tokens)} tok/s  "
        f"in flight {view.in_flight}  in line {view.waiting}/{view.line_size}  workers {len(view.workers)}"
    )


def _sorted(backends: Sequence[Backend], order: str) -> list[Backend]:
    keys = {
        "busy": lambda one: -one.in_flight,
        "line": lambda one: -one.waiting,
        "tokens": lambda one: -(one.tokens_per_s or 0.0),
        "failed": lambda one: -one.failed,
        "name": lambda one: one.name.lower(),
    }
    return sorted(backends, key=keys[order]) if order in keys else list(backends)


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other page, keys as they are pressed; everything as it was afterwards, whatever happens."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write(_ENTER)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _key(within_s: float) -> str:
    """The next key; "" when none is pressed in time."""
    ready, _, _ = select.select([sys.stdin], [], [], within_s)
    if not ready:
        return ""
    pressed = os.read(sys.stdin.fileno(), 16).decode(errors="replace")
    return pressed[:1] or "q"


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"wants seconds from 0.1 to 3600, got {text!r}")
    return value
