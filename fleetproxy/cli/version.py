"""`fleetproxy version`"""

from __future__ import annotations

import platform
import sys

from fleetproxy import __version__


def run(words: list[str]) -> int:
    if words:
        says = "usage: fleetproxy version\n\nPrints the version, and that of Python.\n"
        (sys.stdout if words[0] in {"-h", "--help"} else sys.stderr).write(says)
        return 0 if words[0] in {"-h", "--help"} else 2
    print(f"fleetproxy {__version__} (Python {platform.python_version()})")
    return 0
