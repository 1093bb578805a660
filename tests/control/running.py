"""A whole control process on this loop: its own folders, real sockets, real (fake) servers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from fleetproxy.control.main import main
from fleetproxy.core.table import Snapshot
from fleetproxy.link import board
from fleetproxy.link.client import LinkClient
from fleetproxy.link.framing import read_snapshot
from fleetproxy.link.messages import Hello
from fleetproxy.process import Process
from fleetproxy.settings import Settings

ADMIN = {"authorization": "Bearer admin-key-of-the-tests"}


def short_folder() -> Path:
    """A folder whose name leaves room for sockets."""
    return Path(tempfile.mkdtemp(prefix="fp", dir="/tmp"))


def browser(runtime: Path, **headers: str) -> httpx.AsyncClient:
    """A client at control.sock, as a proxy relays for somebody on this machine."""
    transport = httpx.AsyncHTTPTransport(uds=str(runtime / "control.sock"))
    own = {"x-fleet-client": "127.0.0.1", "x-fleet-scheme": "http"}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=own | headers, timeout=20)


class Running:
    """Control as it runs, and what its neighbours would do."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.runtime = process.runtime

    def browser(self, **headers: str) -> httpx.AsyncClient:
        return browser(self.runtime, **headers)

    def snapshot(self) -> Snapshot:
        return read_snapshot(self.runtime / "snapshot") or Snapshot()

    def usable(self) -> list[str]:
        return [routed.backend.name for routed in self.snapshot().table.backends if routed.usable]

    def reload(self, settings: Settings) -> None:
        """What the supervisor does on SIGHUP."""
        (self.runtime / "settings.json").write_bytes(msgspec.json.encode(settings))
        self.process.reread()


class Neighbour:
    """A proxy process or the hub, at the link."""

    def __init__(self, runtime: Path, name: str) -> None:
        self.snapshots: list[Snapshot] = []
        self.rotations = 0
        self.link = LinkClient(runtime / "link.sock", Hello(name, 1, "x"), self.snapshots.append, self._rotate)
        self.task = asyncio.ensure_future(self.link.run())

    def _rotate(self) -> None:
        self.rotations += 1

    @property
    def version(self) -> int:
        return self.snapshots[-1].version if self.snapshots else 0

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def prepare(folder: Path, settings: Settings, boot: str = "boot-1") -> None:
    """What the supervisor makes before it starts control."""
    (folder / "data" / "spool").mkdir(parents=True, exist_ok=True)
    settings = msgspec.structs.replace(settings, data_dir=str(folder / "data"))
    (folder / "settings.json").write_bytes(msgspec.json.encode(settings))
    if not (folder / "boot").exists() or (folder / "boot").read_text() != boot:
        (folder / "boot").write_text(boot)
        board.create(folder / "board", settings.processes)


@asynccontextmanager
async def control(folder: Path, settings: Settings, boot: str = "boot-1") -> AsyncIterator[Running]:
    """Control, from the moment it answers until it has left in an orderly way."""
    prepare(folder, settings, boot)
    process = Process("control", 0, folder)
    running = Running(process)
    task = asyncio.create_task(main(process))
    try:
        await until(lambda: task.done() or answers(folder))
        yield running
    finally:
        process.terminate()
        async with asyncio.timeout(20):
            await task


def answers(folder: Path) -> bool:
    return (folder / "control.sock").exists()


async def until(condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
