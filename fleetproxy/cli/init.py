"""`fleetproxy init`"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

from fleetproxy.cli import FAILED, OK, USAGE
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import talk
from fleetproxy.settings.load import FILE_NAME
from fleetproxy.settings.servers import BadAddress, parse_url, short_server
from fleetproxy.settings.starter import Answers, starter

_EXAMPLES = """\
  fleetproxy init
  fleetproxy init --yes --server gpu1=10.0.0.5:11434
  fleetproxy init --yes --reach network --write /etc/fleetproxy/fleetproxy.toml"""

_SAYS = """\
Ask three questions and write a small configuration file with remarks: which servers, who may
reach it, and whether workers dial in. With --yes nothing is asked, options and defaults hold."""


def run(words: list[str]) -> int:
    options = parser("init", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--yes", action="store_true", help="ask nothing")
    options.add_argument("--server", metavar="NAME=URL", action="append", default=[], help="a server; may be repeated")
    options.add_argument("--reach", choices=("local", "network"), default=None, help="who may reach it (local)")
    options.add_argument("--workers", action="store_true", default=None, help="workers dial in")
    options.add_argument("--write", metavar="FILE", type=Path, default=Path(FILE_NAME), help=f"where to ({FILE_NAME})")
    options.add_argument("--force", action="store_true", help="replace a file that is there")
    asked = options.parse_args(words)
    if os.path.exists(asked.write) and not asked.force:  # noqa: PTH110  (Path.exists raises where it may not look)
        talk(f"fleetproxy init: {asked.write} is there already; --force replaces it")
        return FAILED
    if not asked.yes and not sys.stdin.isatty():
        talk("fleetproxy init: no terminal to ask at; say --yes, and the rest with options")
        return USAGE
    try:
        answers = _answers(asked)
    except BadAddress as error:
        talk(f"fleetproxy init: {error}")
        return USAGE
    except EOFError:
        talk("\nfleetproxy init: nothing was written")
        return FAILED
    try:
        asked.write.parent.mkdir(parents=True, exist_ok=True)
        if asked.force:
            asked.write.unlink(missing_ok=True)
        with os.fdopen(os.open(asked.write, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(starter(answers))
    except OSError as error:
        talk(f"fleetproxy init: {asked.write} cannot be written: {error.strerror}")
        return FAILED
    talk(f"{asked.write} is written. Next:\n  fleetproxy config check\n  fleetproxy serve")
    if answers.api_key:
        talk(f"Callers show the key in auth.api_key:\n  export FLEETPROXY_KEY={answers.api_key}")
    return OK


def _answers(asked: argparse.Namespace) -> Answers:
    """Raises BadAddress, EOFError."""
    servers, reach, workers = list(asked.server), asked.reach, asked.workers
    if not asked.yes:
        if not servers:
            talk("Your servers, one a line, such as gpu1=10.0.0.5:11434 or vllm=openai+http://10.0.0.6:8000;")
            talk("an empty line when that is all.")
            while line := input("server: ").strip():
                servers.append(line)
        if reach is None:
            reach = "network" if _yes("May other machines reach it?") else "local"
        if workers is None:
            workers = _yes("Will workers dial in from elsewhere?")
    entries = [short_server(text) for text in servers]
    for entry in entries:
        parse_url(entry["url"], entry["kind"])
    closed = reach == "network"
    return Answers(
        servers=tuple((entry["name"], entry["url"], entry["kind"]) for entry in entries),
        network=closed,
        api_key=secrets.token_hex(32) if closed else "",
        client_key=secrets.token_hex(32) if workers else "",
    )


def _yes(question: str) -> bool:
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
