"""`fleetproxy serve`"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import msgspec

from fleetproxy import folders, log, ports
from fleetproxy.serve import StartFailed, Supervisor
from fleetproxy.settings import Server, Settings


def run(words: list[str], **overrides: Any) -> int:
    parser = argparse.ArgumentParser(prog="fleetproxy serve")
    parser.add_argument("--server", action="append", default=[])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data-dir")
    parser.add_argument("--open", action="store_true")
    flags = parser.parse_args(words)
    servers = tuple(Server(name=word.partition("=")[0], url=word.partition("=")[2]) for word in flags.server)
    settings = Settings(
        host=flags.host,
        port=flags.port,
        processes=flags.processes,
        data_dir=flags.data_dir,
        open=flags.open,
        servers=servers,
    )
    log.setup(settings, "serve")
    try:
        asyncio.run(Supervisor(msgspec.structs.replace(settings, **overrides)).run())
    except (StartFailed, folders.FolderError, ports.PortTaken) as error:
        print(f"fleetproxy: {error}", file=sys.stderr)
        return 1
    return 0
