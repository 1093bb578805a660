"""`fleetproxy worker llm|asr|mcp|metrics|drain|undrain`"""

from __future__ import annotations

import os
import shlex
import sys

from fleetproxy.cli import BAD_CONFIG, USAGE, worker_drain, worker_metrics
from fleetproxy.cli.options import parser
from fleetproxy.worker.options import BadOption, Family, resolve, variables

_EXAMPLES = """\
  fleetproxy worker llm --server-url wss://fleet.example --client-key "$KEY"
  fleetproxy worker llm --server-url ws://10.0.0.9:11434 --base-url http://127.0.0.1:8000/v1
  fleetproxy worker asr --server-url wss://fleet.example --base-url http://127.0.0.1:5002/v1
  fleetproxy worker mcp --server-url wss://fleet.example --provider-url http://127.0.0.1:7777/mcp
  fleetproxy worker mcp --server-url wss://fleet.example --client-id git -- uvx mcp-server-git
  fleetproxy worker metrics                      (this machine's metrics; --help has its options)
  fleetproxy worker drain --status-addr 127.0.0.1:4555"""

_SAYS = """\
Put a backend behind a NAT into a fleet: dial in to a fleetproxy (or an nfrx server), and
serve what it sends from the backend beside this worker. SIGTERM finishes what runs, then
leaves; a second one leaves at once. Options beat the environment, which beats --config."""

_FAMILIES: dict[str, Family] = {"llm": "llm", "asr": "asr", "mcp": "mcp"}


def run(words: list[str]) -> int:
    if words and words[0] == "metrics":
        return worker_metrics.run(words[1:])
    if words and words[0] in {"drain", "undrain"}:
        return worker_drain.run(words[1:], words[0])
    if not words or words[0] not in _FAMILIES:
        if words and words[0] in {"-h", "--help"}:
            words = ["llm", "--help"]
        else:
            sys.stderr.write("fleetproxy worker: wants llm, asr, mcp, metrics or drain; see `worker --help`\n")
            return USAGE
    family = _FAMILIES[words[0]]
    command: list[str] = []
    if family == "mcp" and "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    options = parser(f"worker {family}", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--config", metavar="FILE", help="TOML file with these options [CONFIG_FILE]")
    for variable in variables(family):
        names = ", ".join(variable.environment)
        flags = (variable.flag, "-r") if variable.field == "reconnect" else (variable.flag,)
        if variable.field == "reconnect":
            options.add_argument(
                *flags, dest=variable.field, nargs="?", const="true", metavar="BOOL", help=f"{variable.doc} [{names}]"
            )
        else:
            options.add_argument(
                *flags, dest=variable.field, metavar=variable.metavar, help=f"{variable.doc} [{names}]"
            )
    asked = {field: value for field, value in vars(options.parse_args(words[1:])).items() if value is not None}
    if command:
        asked["command"] = shlex.join(command)
    try:
        resolved = resolve(family, asked, os.environ)
    except BadOption as error:
        sys.stderr.write(f"fleetproxy worker: {error}\n")
        return BAD_CONFIG
    from fleetproxy.worker.main import run as work  # noqa: PLC0415  (help needs none of it)

    return work(resolved)
