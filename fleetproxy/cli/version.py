"""`fleetproxy version`"""

from __future__ import annotations

import platform

from fleetproxy import __version__
from fleetproxy.cli import OK
from fleetproxy.cli.options import parser

_EXAMPLES = """\
  fleetproxy version
  fleetproxy --version"""


def run(words: list[str]) -> int:
    parser("version", examples=_EXAMPLES, says="Print the version, and that of Python.").parse_args(words)
    print(f"fleetproxy {__version__} (Python {platform.python_version()})")
    return OK
