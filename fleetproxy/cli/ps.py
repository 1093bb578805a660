"""`fleetproxy ps`"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import Column, add_output, printed
from fleetproxy.cli.wording import ago, size
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.models import Copy, in_memory

_EXAMPLES = """\
  fleetproxy ps
  fleetproxy ps -o wide
  fleetproxy ps --json"""

_SAYS = """\
Models in the memory of the fleet's servers, one line for each copy. The columns are
Ollama's, with SERVER added."""

COLUMNS = (
    Column("NAME", "name"),
    Column("ID", "digest"),
    Column("SIZE", "size_bytes"),
    Column("PROCESSOR", "processor"),
    Column("CONTEXT", "context_length"),
    Column("UNTIL", "expires_at"),
    Column("SERVER", "server"),
    Column("VRAM", "vram_bytes", wide=True),
)


def run(words: list[str]) -> int:
    options = parser("ps", examples=_EXAMPLES, says=_SAYS)
    add_output(options)
    add_target(options)
    asked = options.parse_args(words)

    def work(fleet: Fleet) -> None:
        copies = in_memory(fleet)
        now = datetime.now(UTC)
        values = [{**msgspec.structs.asdict(copy), "processor": copy.processor} for copy in copies]
        printed(COLUMNS, [_row(copy, now) for copy in copies], values, asked)

    return asking("ps", asked, work)


def _row(copy: Copy, now: datetime) -> tuple[str, ...]:
    return (
        copy.name,
        copy.digest[:12] or "-",
        size(copy.size_bytes),
        copy.processor or "-",
        str(copy.context_length or "-"),
        ago(copy.expires_at, now),
        copy.server or "-",
        size(copy.vram_bytes),
    )
