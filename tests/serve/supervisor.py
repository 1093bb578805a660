"""A real supervisor over the children of `child.py`: supervisor.py <settings as JSON> [<settings to reread>]."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fleetproxy import log
from fleetproxy.children import Child
from fleetproxy.folders import FolderError
from fleetproxy.ports import PortTaken
from fleetproxy.serve import StartFailed, Supervisor
from fleetproxy.settings import Settings


def command(child: Child, runtime: Path) -> Sequence[str]:
    words = [sys.executable, str(Path(__file__).with_name("child.py")), child.kind, str(child.index), str(runtime)]
    return [*words, str(child.listener.fileno())] if child.listener else words


def main() -> int:
    os.umask(0)  # the worst a caller may leave us
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    log.setup(settings, "serve")

    def reread() -> Settings:
        return msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Settings)

    try:
        asyncio.run(Supervisor(settings, reread, command).run())
    except (StartFailed, FolderError, PortTaken) as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
