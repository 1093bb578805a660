"""`fleetproxy rm`"""

from __future__ import annotations

import argparse

from fleetproxy.cli import NOT_FOUND
from fleetproxy.cli.fleet import Mistake, add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import talk
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.models import holders, listed, remove

_EXAMPLES = """\
  fleetproxy rm phi3:mini
  fleetproxy rm phi3:mini --server gpu2
  fleetproxy rm phi3:mini --all"""

_SAYS = """\
Delete models from servers' disks. A model that several servers have needs --server or
--all, so that nobody loses more than meant."""


def run(words: list[str]) -> int:
    options = parser("rm", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("model", nargs="+", help="the models")
    where = options.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="NAME", action="append", help="delete it here; may be repeated")
    where.add_argument("--all", action="store_true", help="delete it from every server that has it")
    add_target(options)
    asked = options.parse_args(words)
    return asking("rm", asked, lambda fleet: _work(fleet, asked))


def _work(fleet: Fleet, asked: argparse.Namespace) -> None:
    models = listed(fleet)
    places: list[tuple[str, str]] = []
    for model in asked.model:
        having = holders(models, model)
        if not having and not asked.server:
            raise Mistake(f"no server of the fleet has {model!r}; see `fleetproxy list`", NOT_FOUND)
        if len(having) > 1 and not asked.all and not asked.server:
            raise Mistake(f"{model} is on {', '.join(having)}: say --server NAME, or --all")
        places += [(model, server) for server in asked.server or having]
    for model, server in places:
        remove(fleet, model, server)
        talk(f"deleted {model} from {server}")
