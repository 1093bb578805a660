"""`fleetproxy show`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import clean, clean_lines, print_json
from fleetproxy.core.names import canonical
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.models import holders, in_memory, listed, show

_EXAMPLES = """\
  fleetproxy show llama3.2:3b
  fleetproxy show llama3.2:3b --modelfile
  fleetproxy show llama3.2:3b --json"""

_SAYS = "What a model is, what it can do, and which servers have it."

_PARTS = ("license", "modelfile", "parameters", "system", "template")
_LICENSE_LINES = 2


def run(words: list[str]) -> int:
    options = parser("show", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("model", help="the model")
    only = options.add_mutually_exclusive_group()
    for part in _PARTS:
        only.add_argument(f"--{part}", action="store_const", const=part, dest="part", help=f"print only its {part}")
    only.add_argument("--json", action="store_true", help="print what the server answers, as JSON")
    options.add_argument("-v", "--verbose", action="store_true", help="all of its metadata")
    options.add_argument("--server", metavar="NAME", help="ask this server")
    add_target(options)
    asked = options.parse_args(words)

    def work(fleet: Fleet) -> None:
        found = show(fleet, asked.model, verbose=asked.verbose, server=asked.server)
        if asked.json:
            print_json(found)
        elif asked.part:
            print(clean_lines(str(found.get(asked.part) or "").rstrip()))
        else:
            _print(fleet, asked, found)

    return asking("show", asked, work)


def _print(fleet: Fleet, asked: argparse.Namespace, found: Mapping[str, Any]) -> None:
    on_disk = holders(listed(fleet), asked.model)
    loaded = {copy.server for copy in in_memory(fleet) if canonical(copy.name) == canonical(asked.model)}
    servers = [(name, "loaded" if name in loaded else "on disk") for name in on_disk]
    sections = [
        ("Model", list(_facts(found))),
        ("Capabilities", [(str(word), "") for word in found.get("capabilities") or ()]),
        ("Parameters", [_pair(line) for line in str(found.get("parameters") or "").splitlines() if line.strip()]),
        ("System", [(line, "") for line in str(found.get("system") or "").splitlines()[:_LICENSE_LINES]]),
        ("License", [(line, "") for line in str(found.get("license") or "").splitlines()[:_LICENSE_LINES]]),
        ("Servers", servers),
    ]
    if asked.verbose:
        info = found.get("model_info") or {}
        sections.insert(1, ("Metadata", [(key, str(value)) for key, value in sorted(info.items())]))
    for head, lines in sections:
        if not lines:
            continue
        width = max(len(clean(name)) for name, _ in lines)
        sys.stdout.write(f"  {head}\n")
        for name, value in lines:
            sys.stdout.write(f"    {clean(name):<{width}}    {clean(value)}".rstrip() + "\n")
        sys.stdout.write("\n")


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    info, details = found.get("model_info") or {}, found.get("details") or {}
    architecture = str(info.get("general.architecture") or details.get("family") or "")
    facts = {
        "architecture": architecture,
        "parameters": details.get("parameter_size"),
        "context length": info.get(f"{architecture}.context_length") or info.get("context_length"),
        "embedding length": info.get(f"{architecture}.embedding_length"),
        "quantization": details.get("quantization_level"),
    }
    return ((name, str(value)) for name, value in facts.items() if value)


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.strip().partition(" ")
    return name, value.strip()
