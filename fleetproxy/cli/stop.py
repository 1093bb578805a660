"""`fleetproxy stop`"""

from __future__ import annotations

import argparse

from fleetproxy.cli import NOT_FOUND
from fleetproxy.cli.fleet import Mistake, add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import talk
from fleetproxy.core.names import canonical
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.models import in_memory, look_again, unload

_EXAMPLES = """\
  fleetproxy stop llama3.2:3b
  fleetproxy stop llama3.2:3b --server gpu1"""

_SAYS = """\
Let a model go from servers' memory: from all that hold it, or the one named. It stays on
disk; the next request loads it again."""


def run(words: list[str]) -> int:
    options = parser("stop", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("model", help="the model")
    options.add_argument("--server", metavar="NAME", action="append", help="only here; may be repeated")
    add_target(options)
    asked = options.parse_args(words)
    return asking("stop", asked, lambda fleet: _work(fleet, asked))


def _work(fleet: Fleet, asked: argparse.Namespace) -> None:
    servers = _holding(fleet, asked)
    if not servers and look_again(fleet):  # loaded a moment ago
        servers = _holding(fleet, asked)
    if not servers:
        where = f"on {', '.join(asked.server)}" if asked.server else "on any server"
        raise Mistake(f"{asked.model!r} is not loaded {where}; see `fleetproxy ps`", NOT_FOUND)
    for server in servers:
        unload(fleet, asked.model, server or None)
        talk(f"{asked.model} let go{f' by {server}' if server else ''}")


def _holding(fleet: Fleet, asked: argparse.Namespace) -> list[str]:
    holding = [copy.server for copy in in_memory(fleet) if canonical(copy.name) == canonical(asked.model)]
    return [name for name in holding if name in asked.server] if asked.server else holding
