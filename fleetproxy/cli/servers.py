"""`fleetproxy servers`"""

from __future__ import annotations

import argparse
from typing import Any

from fleetproxy.cli.fleet import Mistake, add_target, asking
from fleetproxy.cli.options import count, gibibytes, parser
from fleetproxy.cli.output import Cell, Column, add_output, printed, talk
from fleetproxy.cli.wording import size
from fleetproxy.remote import steer
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.models import known_servers
from fleetproxy.settings.servers import BadAddress, parse_url, short_server

_EXAMPLES = """\
  fleetproxy servers
  fleetproxy servers add gpu3=10.0.0.7:11434 --vram 24
  fleetproxy servers add vllm=openai+http://10.0.0.6:8000 --max-concurrent 32
  fleetproxy servers disable gpu3
  fleetproxy servers remove gpu3"""

_SAYS = """\
Servers of a running fleetproxy. What is added here is kept in its data folder; servers of the
configuration file can be disabled and enabled here, and changed there. A disabled server is
polled and shown, but given nothing; `fleetproxy drain` lets it finish first."""

COLUMNS = (
    Column("NAME", "name"),
    Column("KIND", "kind"),
    Column("STATE", "state"),
    Column("URL", "url"),
    Column("VERSION", "version"),
    Column("MODELS", "models", right=True),
    Column("LOADED", "loaded", right=True),
    Column("VRAM", "vram_total_bytes", right=True),
    Column("FROM", "origin", wide=True),
    Column("LIMIT", "max_concurrent", right=True, wide=True),
    Column("LAST ERROR", "last_error", wide=True),
)


def run(words: list[str]) -> int:
    options = parser("servers", examples=_EXAMPLES, says=_SAYS)
    options.add_argument(
        "what",
        nargs="?",
        default="list",
        choices=("list", "add", "remove", "enable", "disable"),
        help="what to do (list)",
    )
    options.add_argument("server", nargs="?", help="its name; add: NAME=URL, openai+http://... for vLLM and the like")
    options.add_argument("--vram", type=gibibytes, metavar="GIB", help="add: its video memory")
    options.add_argument("--max-concurrent", type=count, metavar="N", help="add: requests it gets at once")
    options.add_argument(
        "--batch", type=count, metavar="N", help="add: inputs of one embeddings request it gets at once"
    )
    options.add_argument("--api-key-file", metavar="FILE", help="add: file with the token to send to it")
    add_output(options)
    add_target(options)
    asked = options.parse_args(words)

    def work(fleet: Fleet) -> None:
        if asked.what == "list":
            _list(fleet, asked)
        elif not asked.server:
            raise Mistake(f"{asked.what} which? name a server")
        elif asked.what == "add":
            made = steer.add(fleet, _entry(asked))
            talk(f"server {made.get('name')} added, number {made.get('id')}")
        else:
            _change(fleet, asked.what, asked.server)

    return asking("servers", asked, work)


def _change(fleet: Fleet, what: str, name: str) -> None:
    found = steer.server_named(fleet, name)
    if what == "remove":
        steer.remove(fleet, found)
        talk(f"server {found.name} removed; what runs there may end")
    else:
        steer.enable(fleet, found, what == "enable")
        talk(f"server {found.name} {what}d")


def _entry(asked: argparse.Namespace) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = dict(short_server(asked.server))
        parse_url(entry["url"], entry["kind"])
    except BadAddress as error:
        raise Mistake(str(error)) from None
    wishes = {
        "vramGb": asked.vram,
        "maxConcurrent": asked.max_concurrent,
        "embeddingBatchSize": asked.batch,
        "apiKey": _secret(asked.api_key_file),
    }
    return entry | {name: value for name, value in wishes.items() if value is not None}


def _secret(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123  (also /dev/stdin)
            return file.readline().strip()
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror}") from None


def _list(fleet: Fleet, asked: argparse.Namespace) -> None:
    servers = known_servers(fleet)
    printed(COLUMNS, [_row(server) for server in servers], [_value(server) for server in servers], asked)


def _state(server: dict[str, Any]) -> Cell:
    if not server["isOnline"]:
        return Cell("✗ offline", "bad")
    for field, cell in (
        ("isLeaving", Cell("◐ leaving", "warn")),
        ("isDisabled", Cell("◌ disabled", "warn")),
        ("isDraining", Cell("◐ draining", "warn")),
    ):
        if server[field]:
            return cell
    return Cell("● online", "good")


def _value(server: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": server["id"],
        "name": server["name"],
        "kind": "ollama" if server["backendType"] == "ollama" else "openai",
        "state": _state(server).text.partition(" ")[2],
        "url": server["url"],
        "version": server["version"],
        "models": len(server["availableModels"] or ()),
        "loaded": len(server["loadedModels"] or ()),
        "vram_used_bytes": server["totalVramUsed"],
        "vram_total_bytes": server["vramTotalBytes"],
        "origin": server["origin"],
        "max_concurrent": server["maxConcurrent"],
        "in_flight": server["inFlight"],
        "waiting": server["waiting"],
        "last_error": server["lastError"],
    }


def _row(server: dict[str, Any]) -> tuple[str | Cell, ...]:
    value = _value(server)
    vram = size(value["vram_total_bytes"])
    return (
        value["name"],
        value["kind"],
        _state(server),
        value["url"],
        value["version"] or "-",
        str(value["models"]),
        str(value["loaded"]),
        vram,
        value["origin"],
        str(value["max_concurrent"] or "-"),
        value["last_error"] or "-",
    )
