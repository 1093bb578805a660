"""The line end to end inside one loop: hub sockets, two proxy processes' clients, one real board."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from fleetproxy.core.backend import Backend
from fleetproxy.core.table import Limits, RoutedBackend, RoutingTable, Snapshot
from fleetproxy.errors import NoBackend, QueueFull, QueueTimeout
from fleetproxy.hub.main import Hub
from fleetproxy.link import board as load_board
from fleetproxy.link.board import Board
from fleetproxy.process import Process
from fleetproxy.proxy.waiting import Waiting
from fleetproxy.settings import Settings
from fleetproxy.transport.hub import HubClient
from fleetproxy.wire import frames, payloads


def snapshot(*slots: int | None, queue_size: int = 512, usable: bool = True) -> Snapshot:
    """One server per number, on columns 0, 1, ..., with that many slots."""
    backends = tuple(
        RoutedBackend(
            backend=Backend(name=f"s{column}", id=column, column=column, max_concurrent=limit),
            usable=usable,
            online=usable,
        )
        for column, limit in enumerate(slots)
    )
    return Snapshot(version=1, table=RoutingTable(backends=backends), limits=Limits(queue_size=queue_size))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


class House:
    """A hub and its board; `proxy(n)` is a connected proxy process."""

    def __init__(self, folder: Path, processes: int = 2) -> None:
        self.path = folder / "hub.sock"
        self.board_path = folder / "board"
        load_board.create(self.board_path, processes)
        self.board = Board(self.board_path, row=0)
        self.stack = AsyncExitStack()

    async def open(self, first: Snapshot) -> None:
        (self.path.parent / "boot").write_text("b007")
        (self.path.parent / "settings.json").write_bytes(msgspec.json.encode(Settings()))
        self.hub = Hub(Process("hub", 0, self.path.parent), self.board)
        self.line, self.proxies = self.hub.waiting, self.hub.proxies
        self.server = await self.proxies.listen(self.path)
        self.line.publish(first)

    async def close(self) -> None:
        """As if the hub had died: sockets closed, its row cleared."""
        self.server.close()
        self.path.unlink()
        self.proxies.close()
        self.line.close()
        await self.proxies.all_gone()

    async def proxy(self, index: int) -> Proxy:
        proxy = Proxy(Board(self.board_path, row=1 + index), HubClient(self.path, f"proxy-{index}"))
        await self.stack.enter_async_context(running(proxy.hub.run()))
        self.stack.callback(proxy.board.close)
        await until(lambda: proxy.hub.connected)
        return proxy


class Proxy:
    def __init__(self, board: Board, hub: HubClient) -> None:
        self.board = board
        self.hub = hub
        self.waiting = Waiting(board, hub)
        self.places: list[int] = []

    async def wait(self, *columns: int, principal: str = "p", timeout_s: float = 20.0) -> int:
        return await self.waiting.wait(columns, principal, timeout_s, self.places.append)

    def queue(self, *columns: int, **options: object) -> asyncio.Task[int]:
        return asyncio.ensure_future(self.wait(*columns, **options))  # type: ignore[arg-type]

    def release(self, column: int) -> None:
        self.board.add(column, -1)
        self.waiting.freed(column)


@asynccontextmanager
async def running(coroutine: object) -> AsyncIterator[None]:
    task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.open(snapshot(1, 2))
    yield house
    await house.stack.aclose()
    house.server.close()
    house.proxies.close()
    await house.proxies.all_gone()
    assert len(house.line) == 0
    assert not any(house.board.cells[:64]), "the hub's row is zero when nobody waits"
    house.line.close()
    house.board.close()


async def test_a_free_slot_is_granted_at_once_and_counted_when_wait_returns(house: House) -> None:
    proxy = await house.proxy(0)
    assert await proxy.wait(0) == 0
    assert proxy.board.load(0) == 1


async def test_a_released_slot_goes_to_the_waiter_of_another_process_without_any_sweep(house: House) -> None:
    one, two = await house.proxy(0), await house.proxy(1)
    assert await one.wait(0) == 0
    waiter = two.queue(0)
    await until(lambda: len(house.line) == 1)
    one.release(0)
    assert await waiter == 0
    assert house.board.load(0) == 1
    two.release(0)
    await until(lambda: house.board.waiting(0) == 0)


async def test_a_release_that_nobody_waits_for_sends_nothing(house: House) -> None:
    proxy = await house.proxy(0)
    column = await proxy.wait(0)
    await until(lambda: house.board.waiting(0) == 0)
    proxy.release(column)
    assert house.line.counts["granted"] == 1


async def test_preferred_columns_come_first(house: House) -> None:
    proxy = await house.proxy(0)
    assert [await proxy.wait(1, 0) for _ in range(3)] == [1, 1, 0]


async def test_a_storm_with_cancellations_never_over_grants_and_loses_no_slot(house: House) -> None:
    proxies = [await house.proxy(0), await house.proxy(1)]
    rng = random.Random(7)
    highest = 0
    served = 0

    async def client(number: int) -> None:
        nonlocal highest, served
        proxy = proxies[number % 2]
        column = await proxy.wait(0, 1, principal=f"p{number % 5}")
        highest = max(highest, house.board.load(0) - 1, house.board.load(1) - 2)
        try:
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        finally:
            proxy.release(column)
        served += 1

    tasks = [asyncio.ensure_future(client(number)) for number in range(300)]
    for _ in range(60):
        await asyncio.sleep(0)
        rng.choice(tasks).cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert highest <= 0
    assert served == sum(outcome is None for outcome in outcomes) >= 240
    await until(lambda: len(house.line) == 0)
    assert (house.board.load(0), house.board.load(1)) == (0, 0)
    await until(lambda: house.board.waiting(0) == house.board.waiting(1) == 0)


async def test_principals_take_turns_across_processes(house: House) -> None:
    one, two = await house.proxy(0), await house.proxy(1)
    column = await one.wait(0)
    order: list[str] = []

    async def client(proxy: Proxy, principal: str) -> None:
        got = await proxy.wait(0, principal=principal)
        order.append(principal)
        proxy.release(got)

    tasks = []
    for principal in ("greedy", "greedy", "greedy"):
        tasks.append(asyncio.ensure_future(client(one, principal)))
        await until(lambda: house.board.waiting(0) == len(tasks))
    tasks.append(asyncio.ensure_future(client(two, "modest")))
    await until(lambda: len(house.line) == 4)
    one.release(column)
    await asyncio.gather(*tasks)
    assert order == ["greedy", "modest", "greedy", "greedy"]


async def test_places_are_told_at_once_and_when_they_change(house: House) -> None:
    one, two = await house.proxy(0), await house.proxy(1)
    column = await one.wait(0)
    first, second = one.queue(0), None
    await until(lambda: one.places == [1])
    second = two.queue(0, principal="q")
    await until(lambda: two.places == [2])
    one.release(column)
    assert await first == 0
    house.line.sweep()
    await until(lambda: two.places == [2, 1])
    house.line.sweep()
    one.release(0)
    assert await second == 0
    assert one.places == [1]


async def test_a_cancelled_waiter_leaves_the_line_at_once(house: House) -> None:
    proxy = await house.proxy(0)
    await proxy.wait(0)
    waiter = proxy.queue(0)
    await until(lambda: len(house.line) == 1)
    waiter.cancel()
    await until(lambda: house.board.waiting(0) == 0)
    assert len(house.line) == 0
    assert len(proxy.waiting) == 0


async def test_a_grant_that_meets_a_leave_on_the_way_is_given_to_the_next(house: House) -> None:
    one, two = await house.proxy(0), await house.proxy(1)
    column = await one.wait(0)
    leaver, next_one = two.queue(0), None
    await until(lambda: len(house.line) == 1)
    next_one = one.queue(0)
    await until(lambda: len(house.line) == 2)
    # The hub grants in this very turn of the loop; the leaver is cancelled before the frame can reach it.
    one.board.add(column, -1)
    house.line.sweep()
    leaver.cancel()
    assert await next_one == 0
    assert house.board.load(0) == 1
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_a_full_line_says_so_with_a_time_to_come_back(house: House) -> None:
    house.line.publish(snapshot(1, queue_size=1))
    proxy = await house.proxy(0)
    await proxy.wait(0)
    waiter = proxy.queue(0)
    await until(lambda: len(house.line) == 1)
    with pytest.raises(QueueFull) as refused:
        await proxy.wait(0)
    assert 1.0 <= (refused.value.retry_after_s or 0) <= 60.0
    proxy.release(0)
    await waiter


async def test_no_waiting_at_all_when_the_queue_is_off(house: House) -> None:
    house.line.publish(snapshot(1, queue_size=0))
    proxy = await house.proxy(0)
    with pytest.raises(QueueFull):
        await proxy.wait(0)


async def test_who_waits_too_long_is_told_by_the_hub(house: House) -> None:
    proxy = await house.proxy(0)
    await proxy.wait(0)
    with pytest.raises(QueueTimeout):
        await proxy.wait(0, timeout_s=0.02)
    assert house.line.counts["queue_timeout"] == 1
    assert house.board.waiting(0) == 0


async def test_a_lost_proxy_takes_its_waiters_out(house: House) -> None:
    one = await house.proxy(0)
    two = await house.proxy(1)
    await one.wait(0)
    lost, kept = two.queue(0), one.queue(0)
    await until(lambda: len(house.line) == 2)
    (connection,) = [c for c in house.proxies._by_connection if c.name == "proxy-1"]
    connection.abort()
    await until(lambda: house.line.counts["left"] == 1)
    one.release(0)
    assert await kept == 0
    one.release(0)
    assert await lost == 0  # it came back by itself and joined again


async def test_waiters_join_again_when_the_hub_comes_back(house: House) -> None:
    proxy = await house.proxy(0)
    await proxy.wait(0)
    waiters = [proxy.queue(0, principal="a"), proxy.queue(0, principal="b")]
    await until(lambda: len(house.line) == 2)
    await house.close()
    await until(lambda: not proxy.hub.connected)
    await house.open(snapshot(1, 2))
    await until(lambda: len(house.line) == 2)
    proxy.release(0)
    assert await waiters[0] == 0
    proxy.release(0)
    assert await waiters[1] == 0
    assert house.board.load(0) == 1


async def test_without_a_hub_the_wait_ends_at_its_own_limit(house: House) -> None:
    proxy = await house.proxy(0)
    await house.close()
    await until(lambda: not proxy.hub.connected)
    with pytest.raises(QueueTimeout):
        await proxy.wait(0, timeout_s=0.05)
    await house.open(snapshot(1))
    await until(lambda: len(house.proxies) == 1)


async def test_waiters_of_a_server_that_vanished_are_sent_away(house: House) -> None:
    proxy = await house.proxy(0)
    await proxy.wait(0)
    waiter, other = proxy.queue(0), proxy.queue(0, 1)
    await other
    await until(lambda: len(house.line) == 1)
    house.line.publish(snapshot(1, 2, usable=False))
    house.line.sweep()
    assert len(house.line) == 1  # the tables of two processes may differ for a moment
    house.line.sweep()
    with pytest.raises(NoBackend):
        await waiter


async def test_more_slots_are_given_out_as_soon_as_they_are_published(house: House) -> None:
    proxy = await house.proxy(0)
    await proxy.wait(0)
    waiters = [proxy.queue(0) for _ in range(3)]
    await until(lambda: len(house.line) == 3)
    house.line.publish(snapshot(None))
    assert await asyncio.gather(*waiters) == [0, 0, 0]


async def test_a_slot_of_a_process_that_died_is_given_out_by_the_sweep(house: House) -> None:
    one, two = await house.proxy(0), await house.proxy(1)
    await one.wait(0)
    waiter = two.queue(0)
    await until(lambda: len(house.line) == 1)
    house.board.clear_row(1)  # the supervisor, for the dead process
    house.line.sweep()
    assert await waiter == 0


async def test_a_worker_that_grows_serves_the_line_and_one_that_goes_sends_it_away(house: House) -> None:
    proxy = await house.proxy(0)
    house.line.set_worker(40, 1)
    assert await proxy.wait(40) == 40
    waiters = [proxy.queue(40), proxy.queue(40)]
    await until(lambda: len(house.line) == 2)
    house.line.set_worker(40, 2)
    assert await waiters[0] == 40
    house.line.set_worker(40, None)
    house.line.sweep()
    house.line.sweep()
    with pytest.raises(NoBackend):
        await waiters[1]


def frame(kind: int, payload: payloads.Payload) -> bytes:
    return frames.encode(kind, 0, payloads.encode(payload))


HELLO = frame(frames.REGISTER, payloads.Register("proxy-9"))
WAIT = frame(frames.WAIT, payloads.Wait(1, "p", (0,), 1000))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        os.urandom(4096),
        WAIT,
        frames.encode(frames.REGISTER, 0, b"\x90"),
        HELLO + frames.encode(frames.WAIT, 0, b"\xc1" * 40),
        HELLO + frame(frames.TAKEN, payloads.Taken(77)),
        HELLO + WAIT + WAIT,
        HELLO + frames.encode(frames.GRANT, 0, payloads.encode(payloads.Grant(1, 0))),
        HELLO + HELLO,
        frames.HEADER.pack(frames.WAIT << 24 | 0xFFFFFF, 0),
    ],
    ids=["http", "noise", "no-register", "bad-register", "bad-wait", "taken", "twice", "grant", "again", "oversize"],
)
async def test_a_connection_that_breaks_the_rules_is_cut_off_and_nobody_else_notices(house: House, sent: bytes) -> None:
    proxy = await house.proxy(0)
    await proxy.wait(0)
    waiter = proxy.queue(0)
    await until(lambda: len(house.line) == 1)
    reader, writer = await asyncio.open_unix_connection(house.path)
    writer.write(sent)
    with suppress(ConnectionError):
        async with asyncio.timeout(5):
            while await reader.read(65536):
                pass
    writer.close()
    await until(lambda: len(house.proxies) == 1)
    proxy.release(0)
    assert await waiter == 0


async def test_leaves_and_frees_that_make_no_difference_are_taken_in_peace(house: House) -> None:
    proxy = await house.proxy(0)
    for kind, payload in (
        (frames.LEAVE, payloads.Leave(99)),
        (frames.FREED, payloads.Freed(0)),
        (frames.FREED, payloads.Freed(4095)),
    ):
        proxy.hub.send(frame(kind, payload))
    assert await proxy.wait(0) == 0
    assert proxy.hub.connections == 1
