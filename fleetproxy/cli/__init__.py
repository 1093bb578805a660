"""The command line. Words only: each command is a module of this package, imported when it is asked for."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    from fleetproxy.cli.serve import run  # noqa: PLC0415

    words = sys.argv[1:] if arguments is None else arguments
    return run(words[1:] if words[:1] == ["serve"] else words)
