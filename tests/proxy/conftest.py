"""A data plane in this process: the real app on the real server, a routing table by hand, no control, no hub."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from fleetproxy.core.backend import Backend
from fleetproxy.core.names import canonical
from fleetproxy.core.record import AuditRecord
from fleetproxy.core.table import (
    RESIDENT,
    Access,
    Limits,
    Principal,
    Route,
    RoutedBackend,
    RoutingTable,
    Snapshot,
)
from fleetproxy.link import board as load_board
from fleetproxy.link.spool import Spool
from fleetproxy.listen import Listener, serve
from fleetproxy.proxy.app import build
from fleetproxy.proxy.passage import Passage
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.recorder import Recorder
from fleetproxy.proxy.waiting import Waiting
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.transport.hub import HubClient
from fleetproxy.transport.pool import Http1Transport, tls_context


class Running:
    """A data plane under test."""

    def __init__(self, plane: Plane, port: int, folder: Path) -> None:
        self.plane = plane
        self.port = port
        self._folder = folder

    def records(self) -> list[AuditRecord]:
        """Every row written so far, in order."""
        lines: list[bytes] = []
        for path in sorted((self._folder / "spool").glob("requests.*")):
            lines += path.read_bytes().splitlines()
        return sorted(
            (msgspec.json.decode(line, type=AuditRecord) for line in lines), key=lambda record: record.sequence
        )

    async def settled(self) -> None:
        """Wait until no exchange is under way."""
        async with asyncio.timeout(5):
            while self.plane.live:
                await asyncio.sleep(0.005)


Start = Callable[..., "AsyncIterator[Running]"]


def snapshot_of(
    upstreams: Sequence[FaultUpstream],
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    principals: dict[bytes, Principal] | None = None,
    aliases: dict[str, str] | None = None,
    max_concurrent: int | None = None,
) -> Snapshot:
    """All upstreams online, their models resident, in the order given."""
    routed = tuple(
        RoutedBackend(
            backend=Backend(
                name=f"s{index}",
                id=index + 1,
                column=index,
                kind=upstream.kind,
                host=upstream.host,
                port=upstream.port,
                max_concurrent=max_concurrent,
            ),
            usable=True,
            online=True,
        )
        for index, upstream in enumerate(upstreams)
    )
    models: dict[str, tuple[Route, ...]] = {}
    for index, upstream in enumerate(upstreams):
        for model in upstream.models:
            models[canonical(model)] = (*models.get(canonical(model), ()), Route(index, RESIDENT, model))
    return Snapshot(
        version=1,
        table=RoutingTable(
            backends=routed,
            models=models,
            aliases={canonical(alias): models[canonical(name)] for alias, name in (aliases or {}).items()},
            pins={entry.backend.name: index for index, entry in enumerate(routed)},
        ),
        principals=principals or {},
        access=access or Access(),
        limits=limits or Limits(),
        bodies={"/api/tags": b'{"models":[]}'},
    )


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Snapshot], object]:
    """`async with start(snapshot) as running:` - a data plane with that snapshot."""

    @asynccontextmanager
    async def started(snapshot: Snapshot) -> AsyncIterator[Running]:
        loop = asyncio.get_running_loop()
        load_board.create(tmp_path / "board", 1)
        board = load_board.Board(tmp_path / "board", row=1)
        spool = Spool(tmp_path / "spool", "requests", "boot", "proxy-0")
        http1 = Http1Transport(loop, tls_context)
        hub = HubClient(tmp_path / "hub.sock", "proxy-0")
        plane = Plane(
            name="proxy-0",
            snapshot=Snapshot(),
            board=board,
            recorder=Recorder(spool, "proxy-0", loop.time),
            transports={"http1": http1},
            instance="test",
            waiting=Waiting(board, hub),
            hub_connected=lambda: True,
            clock=loop.time,
            rng=random.Random(1),
        )
        plane.publish(snapshot)
        listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = listening.getsockname()[1]
        stop = asyncio.Event()
        app = build(plane, Passage(plane, tmp_path / "control.sock"))
        sweeping = asyncio.ensure_future(plane.sweep())
        serving = asyncio.ensure_future(serve(app, Listener(port=port, fd=listening.fileno()), stop))
        try:
            async with asyncio.timeout(10):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except OSError:
                        await asyncio.sleep(0.01)
                    else:
                        writer.close()
                        break
            yield Running(plane, port, tmp_path)
            await asyncio.sleep(0)
            assert all(cell == 0 for cell in board.cells), "a slot is still counted"
        finally:
            stop.set()
            await serving
            sweeping.cancel()
            http1.close()
            spool.rotate()
            board.close()
            listening.close()

    return started
