"""`fleetproxy migrate fleet-manager|nfrx|ollama`"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fleetproxy.cli import BAD_CONFIG, FAILED, OK
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import talk
from fleetproxy.settings.migrate import fleet_manager, nfrx, ollama
from fleetproxy.settings.migrate.result import Migration
from fleetproxy.settings.migrate.sources import BadSource, Sources, read

_EXAMPLES = """\
  fleetproxy migrate fleet-manager .env docker-compose.yml > fleetproxy.toml
  fleetproxy migrate fleet-manager .env dump/ --write fleetproxy.toml --commands then.sh
  fleetproxy migrate nfrx /etc/nfrx/server.yaml --write fleetproxy.toml
  fleetproxy migrate nfrx worker.yaml --agent llm --write worker.toml
  fleetproxy migrate ollama"""

_SAYS = """\
Make a configuration out of that of another program. It is read from the files named (.env,
compose file, YAML; a folder of exported tables: servers, users, scheduled_jobs as .csv or
.json) and from the environment. The configuration goes to standard output or --write; what
has no equivalent, and what is left to do, to standard error. Nothing else is touched.

Exporting the tables of the fleet manager:
  for t in servers users scheduled_jobs; do
    psql "$DATABASE_URL" -c "\\copy $t to dump/$t.csv csv header"; done"""

#: Where nfrx looks by itself.
_NFRX_FILE = Path("/etc/nfrx/server.yaml")


def run(words: list[str]) -> int:
    options = parser("migrate", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("program", choices=("fleet-manager", "nfrx", "ollama"), help="where you come from")
    options.add_argument("source", nargs="*", type=Path, help="its files; none: only the environment")
    options.add_argument("--agent", choices=("llm", "asr", "mcp"), help="nfrx: it is an agent's configuration")
    options.add_argument("--write", metavar="FILE", type=Path, help="write the configuration here (mode 600)")
    options.add_argument("--commands", metavar="FILE", type=Path, help="write what is left to do here, as a script")
    options.add_argument("--force", action="store_true", help="replace files that are there")
    asked = options.parse_args(words)
    paths: list[Path] = asked.source
    there = os.path.exists(_NFRX_FILE)  # noqa: PTH110  (Path.exists raises where it may not look)
    if asked.program == "nfrx" and not paths and not asked.agent and there:
        paths = [_NFRX_FILE]
    try:
        sources = read(paths, os.environ)
    except BadSource as error:
        talk(f"fleetproxy migrate: {error}")
        return BAD_CONFIG
    if asked.program == "nfrx" and not asked.agent and nfrx.looks_like_agent(sources):
        talk("fleetproxy migrate: this is an agent's configuration; say --agent llm, asr or mcp")
        return BAD_CONFIG
    made = _made(asked.program, asked.agent, sources)
    try:
        _put(asked.write, made.toml, force=asked.force)
        if asked.commands:
            _put(asked.commands, _script(made.commands), force=asked.force)
    except FileExistsError as error:
        talk(f"fleetproxy migrate: {error.filename} is there already; --force replaces it")
        return FAILED
    except OSError as error:
        talk(f"fleetproxy migrate: {error.filename} cannot be written: {error.strerror}")
        return FAILED
    for note in made.notes:
        talk(f"note: {note}")
    if made.commands and not asked.commands:
        talk("left to do (--commands FILE writes them):")
        for command in made.commands:
            talk(f"  {command}")
    return OK


def _script(commands: Sequence[str]) -> str:
    lines = ["#!/bin/sh", "set -e"]
    if any("$FLEETPROXY_KEY" in command for command in commands):
        lines += [
            ': "${FLEETPROXY_URL:=http://127.0.0.1:11434}"',
            ': "${FLEETPROXY_KEY:?set it to a key of an administrator; '
            'fleetproxy keys add NAME --scope manage makes one}"',
        ]
    return "\n".join([*lines, *commands]) + "\n"


def _made(program: str, agent: nfrx.Agent | None, sources: Sources) -> Migration:
    match program:
        case "fleet-manager":
            return fleet_manager.migrate(sources)
        case "nfrx":
            return nfrx.migrate_agent(sources, agent) if agent else nfrx.migrate(sources)
        case _:
            return ollama.migrate(sources)


def _put(path: Path | None, text: str, *, force: bool) -> None:
    """To a file only we can read, or to standard output. Raises OSError."""
    if path is None:
        sys.stdout.write(text)
        return
    if force:
        path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
