"""`fleetproxy list`"""

from __future__ import annotations

from datetime import UTC, datetime

from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import Column, add_output, printed
from fleetproxy.cli.wording import ago, size
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.models import Model, listed

_EXAMPLES = """\
  fleetproxy list
  fleetproxy list llama
  fleetproxy list --json | jq -r '.[].name'
  fleetproxy list --url http://10.0.0.9:11434"""

_SAYS = """\
Models of the whole fleet, newest first, and the servers that have each. The columns are
Ollama's, with SERVER added; the same name with two IDs is two different models."""

COLUMNS = (
    Column("NAME", "name"),
    Column("ID", "digest"),
    Column("SIZE", "size_bytes"),
    Column("MODIFIED", "modified_at"),
    Column("SERVER", "servers"),
    Column("PARAMETERS", "parameters", wide=True),
    Column("QUANTIZATION", "quantization", wide=True),
)


def run(words: list[str]) -> int:
    options = parser("list", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("beginning", nargs="?", default="", help="only models whose names begin so")
    add_output(options)
    add_target(options)
    asked = options.parse_args(words)

    def work(fleet: Fleet) -> None:
        begins = asked.beginning.lower()
        models = [model for model in listed(fleet) if model.name.lower().startswith(begins)]
        now = datetime.now(UTC)
        printed(COLUMNS, [_row(model, now) for model in models], [_value(model) for model in models], asked)

    return asking("list", asked, work)


def _row(model: Model, now: datetime) -> tuple[str, ...]:
    details = model.details
    return (
        model.name,
        model.digest[:12] or "-",
        size(model.size_bytes),
        ago(model.modified_at, now),
        ", ".join(model.servers) or "-",
        str(details.get("parameter_size") or "-"),
        str(details.get("quantization_level") or "-"),
    )


def _value(model: Model) -> dict[str, object]:
    return {
        "name": model.name,
        "digest": model.digest,
        "size_bytes": model.size_bytes,
        "modified_at": model.modified_at or None,
        "servers": model.servers,
        "parameters": model.details.get("parameter_size") or None,
        "quantization": model.details.get("quantization_level") or None,
    }
