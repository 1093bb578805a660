"""The fleet half of control without its processes: real state, real poller, real spool, servers in memory."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleetproxy.control.analytics.journal import Journal
from fleetproxy.control.columns import Columns
from fleetproxy.control.fleet import LiveFleet
from fleetproxy.control.last_states import LastStates
from fleetproxy.control.poller import Poller
from fleetproxy.control.state import Store, keys, servers
from fleetproxy.control.state.servers import ServerEntry
from fleetproxy.core.table import Principal, Snapshot
from fleetproxy.link import board
from fleetproxy.link.board import Board
from fleetproxy.settings import Poll, Server, Settings
from tests.control.scripted import Said, Servers


class Book:
    """What the operational state keeps for the fleet."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def register_servers(self, names: Iterable[str]) -> dict[str, int]:
        return await self.store.write(servers.register, tuple(names), datetime.now(UTC))

    async def server_entries(self) -> list[ServerEntry]:
        return await self.store.read(servers.entries)

    async def principals(self) -> dict[bytes, Principal]:
        return await self.store.read(keys.principals, datetime.now(UTC))


class World:
    """One life of control over the folders in `folder`."""

    def __init__(self, folder: Path, store: Store, said: Mapping[str, dict[str, Said]], settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.store = store
        self.book = Book(store)
        self.servers = Servers(**said)
        self.now_s = 1_800_000_000.0
        self.changes = 0
        self.journal = Journal(folder / "spool", secrets.token_hex(4))
        self.columns = Columns(folder / "columns", "boot")
        self.board = Board(folder / "board", row=1)
        self.fleet = LiveFleet(
            lambda: self.settings,
            columns=self.columns,
            board=self.board,
            journal=self.journal,
            last_states=LastStates(folder / "servers"),
            machine="box",
            wall=self.wall,
        )
        self.poller = Poller(self.servers, lambda: self.settings.poll, self.fleet.found, rng=random.Random(1))

    def wall(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def changed(self) -> None:
        self.changes += 1

    @property
    def snapshot(self) -> Snapshot:
        return self.fleet.snapshot()

    def usable(self) -> list[str]:
        return [routed.backend.name for routed in self.snapshot.table.backends if routed.usable]

    def configure(self, *servers: Server, **sections: Any) -> None:
        self.settings = Settings(servers=servers, **{"poll": Poll(interval_s=1000.0), **sections})

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What was written down, oldest first."""
        files = sorted((self.folder / "spool").glob(f"{table}.*"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def events(self) -> list[tuple[str, str]]:
        """(model or server, event), in no order between the two tables."""
        rows = self.rows("model_events")
        return [(row["model"], row["event"]) for row in rows] + [
            (row["server"], row["event"]) for row in self.rows("server_events")
        ]


@asynccontextmanager
async def living(
    folder: Path,
    said: Mapping[str, dict[str, Said]],
    *configured: Server,
    first_poll: bool = True,
    **sections: Any,
) -> AsyncIterator[World]:
    """Control begins, every server is polled once; at the end it is gone without a word, as if killed."""
    if not (folder / "board").exists():
        board.create(folder / "board", 1)
    store = await Store.open(folder / "state.db")
    world = World(folder, store, said, Settings())
    world.configure(*configured, **sections)
    try:
        await world.fleet.begin(world.book, world.poller, world.changed)
        if first_poll:
            await world.poller.poll_all()
        yield world
    finally:
        await world.poller.stop()
        await store.close()
        world.board.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
