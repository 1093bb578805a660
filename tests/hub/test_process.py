"""The hub as the process it is: started, fed, stopped, killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from fleetproxy.core.backend import Backend
from fleetproxy.core.table import RoutedBackend, RoutingTable, Snapshot
from fleetproxy.link import board as load_board
from fleetproxy.link.board import Board
from fleetproxy.link.messages import Count, Message
from fleetproxy.link.server import LinkServer
from fleetproxy.proxy.waiting import Waiting
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Hub
from fleetproxy.transport.hub import HubClient

ONE_SLOT = Snapshot(
    version=1,
    table=RoutingTable(
        backends=(RoutedBackend(backend=Backend(name="s", id=1, column=3, max_concurrent=1), usable=True, online=True),)
    ),
)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


class Service:
    """A runtime folder with control's end of the link, and hub processes started in it."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.messages: list[Message] = []
        (runtime / "boot").write_text("b007")
        self.configure(Settings())
        load_board.create(runtime / "board", 2)
        self.link = LinkServer(runtime / "link.sock", lambda _, message: self.messages.append(message))
        self.hub: subprocess.Popen[bytes] | None = None

    def configure(self, settings: Settings) -> None:
        (self.runtime / "settings.json").write_bytes(msgspec.json.encode(settings))

    def start(self) -> subprocess.Popen[bytes]:
        self.hub = subprocess.Popen(
            [sys.executable, "-m", "fleetproxy.process", "hub", "0", str(self.runtime)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return self.hub

    async def left(self) -> int:
        assert self.hub is not None
        return await asyncio.to_thread(self.hub.wait, 20)

    def log(self) -> str:
        assert self.hub is not None
        assert self.hub.stderr is not None
        return self.hub.stderr.read().decode()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service, stop = Service(tmp_path), asyncio.Event()
    serving = asyncio.ensure_future(service.link.run(stop))
    service.link.publish(ONE_SLOT)
    yield service
    hub = service.hub
    if hub is not None:
        hub.kill()
        hub.wait()
        for pipe in (hub.stdin, hub.stderr):
            assert pipe is not None
            pipe.close()
    stop.set()
    await serving


async def test_two_processes_share_one_slot_and_the_hub_leaves_clean_when_they_have_gone(service: Service) -> None:
    hub = service.start()
    boards = [Board(service.runtime / "board", row=row) for row in (1, 2)]
    clients = [HubClient(service.runtime / "hub.sock", f"proxy-{index}") for index in range(2)]
    waitings = [Waiting(*pair) for pair in zip(boards, clients, strict=True)]
    connections = [asyncio.ensure_future(client.run()) for client in clients]

    async def exchange(number: int) -> int:
        side = number % 2
        column = await waitings[side].wait((3,), f"p{number % 3}", 20.0, lambda place: None)
        most = boards[side].load(column)
        await asyncio.sleep(0)
        boards[side].add(column, -1)
        waitings[side].freed(column)
        return most

    assert set(await asyncio.gather(*(exchange(number) for number in range(60)))) == {1}
    await until(lambda: any(isinstance(message, Count) for message in service.messages))

    hub.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.05)
    assert hub.poll() is None, "a draining hub serves as long as a proxy process is there"
    for connection in connections:
        connection.cancel()
        with suppress(asyncio.CancelledError):
            await connection
    assert await service.left() == 0
    assert "Traceback" not in service.log()
    assert not (service.runtime / "hub.sock").exists()
    for board in boards:
        assert not any(board.cells[:64])
        board.close()


async def test_a_killed_hub_is_replaced_and_its_waiters_go_on(service: Service) -> None:
    hub = service.start()
    board = Board(service.runtime / "board", row=1)
    client = HubClient(service.runtime / "hub.sock", "proxy-0")
    waiting = Waiting(board, client)
    connection = asyncio.ensure_future(client.run())
    assert await waiting.wait((3,), "p", 20.0, lambda place: None) == 3
    places: list[int] = []
    waiter = asyncio.ensure_future(waiting.wait((3,), "p", 20.0, places.append))
    await until(lambda: places == [1])
    hub.kill()
    await service.left()
    for pipe in (hub.stdin, hub.stderr):
        assert pipe is not None
        pipe.close()
    service.start()
    await until(lambda: places == [1, 1])
    board.add(3, -1)
    waiting.freed(3)
    assert await waiter == 3
    connection.cancel()
    with suppress(asyncio.CancelledError):
        await connection
    board.close()


async def test_past_its_memory_limit_it_leaves_with_one_sentence(service: Service) -> None:
    service.configure(Settings(hub=Hub(memory_bytes=1024)))
    service.start()
    assert await service.left() == 1
    reason = (service.runtime / "hub.failed").read_text()
    assert "hub.memory_bytes" in reason


async def test_it_leaves_when_the_supervisor_is_gone(service: Service) -> None:
    hub = service.start()
    await until((service.runtime / "hub.sock").exists)
    assert hub.stdin is not None
    hub.stdin.close()
    assert await service.left() == 0
