"""`fleetproxy pull`"""

from __future__ import annotations

import argparse
import sys
import time

from fleetproxy.cli.fleet import Mistake, add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import talk
from fleetproxy.cli.progress import Progress
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.models import known_servers
from fleetproxy.remote.pull import SILENCE_S, pull

_EXAMPLES = """\
  fleetproxy pull llama3.2:3b
  fleetproxy pull llama3.2:3b --server gpu1 --server gpu2
  fleetproxy pull llama3.2:3b --all"""

_SAYS = """\
Pull a model to a server of the fleet: to the one named, to all Ollama servers, or (without
either) to the one the fleet chooses. What is there already is quickly done; a pull that
was broken off goes on where it was."""


def run(words: list[str]) -> int:
    options = parser("pull", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("model", help="the model")
    where = options.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="NAME", action="append", help="pull it here; may be repeated")
    where.add_argument("--all", action="store_true", help="pull it on every Ollama server that is online")
    options.add_argument("--insecure", action="store_true", help="let the server pull over plain HTTP")
    options.add_argument("--json", action="store_true", help="print the server's own progress lines")
    add_target(options, timeout_s=SILENCE_S)
    asked = options.parse_args(words)
    return asking("pull", asked, lambda fleet: _work(fleet, asked))


def _work(fleet: Fleet, asked: argparse.Namespace) -> None:
    servers: list[str | None] = asked.server or [None]
    if asked.all:
        servers = [
            server["name"]
            for server in known_servers(fleet)
            if server["isOnline"] and server["backendType"] == "ollama" and not server["isDisabled"]
        ]
        if not servers:
            raise Mistake("no Ollama server is online; see `fleetproxy servers`", 1)
    for server in servers:
        progress = Progress(time.monotonic, prefix=f"{server}: " if server else "")
        try:
            for step in pull(fleet, asked.model, server=server, insecure=asked.insecure):
                if asked.json:
                    sys.stdout.write(step.line + "\n")
                    sys.stdout.flush()
                else:
                    progress.step(step.status, step.done_bytes, step.total_bytes)
                where = step.server
        finally:
            progress.close()
        if not asked.json:
            talk(f"{asked.model} is on {where or server or 'a server of the fleet'}")
