"""The link between control and the processes: whole snapshots, acknowledgements, rotations, reconnects."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from fleetproxy.core.table import Access, Snapshot
from fleetproxy.link import client as client_module
from fleetproxy.link.client import MAX_PENDING, LinkClient
from fleetproxy.link.framing import LinkError, encode, read, read_snapshot, write_snapshot
from fleetproxy.link.messages import Acknowledge, Count, Hello, Message, Observe, Publish, Rotate
from fleetproxy.link.server import LinkServer


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


class Process:
    """A process with a link client, as the data plane uses it."""

    def __init__(self, path: Path, name: str = "proxy-0", pid: int | None = None, boot: str = "boot") -> None:
        self.snapshots: list[Snapshot] = []
        self.rotations = 0
        self.refuse = False
        self.waits: list[float] = []
        hello = Hello(name, os.getpid() if pid is None else pid, boot)
        self.client = LinkClient(
            path, hello, self._take, self._rotate, rng=random.Random(1), clock=lambda: 0.0, sleep=self._sleep
        )

    def _take(self, snapshot: Snapshot) -> None:
        if self.refuse:
            raise ValueError("this snapshot cannot be used")
        self.snapshots.append(snapshot)

    def _rotate(self) -> None:
        self.rotations += 1

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0.001)

    @property
    def version(self) -> int:
        return self.snapshots[-1].version if self.snapshots else -1


@asynccontextmanager
async def serving(
    path: Path,
    on_message: Callable[[str, Message], None] = lambda _name, _message: None,
    expected: tuple[str, ...] = (),
) -> AsyncIterator[LinkServer]:
    server, stop = LinkServer(path, on_message, expected), asyncio.Event()
    task = asyncio.create_task(server.run(stop))
    await until(path.exists)
    try:
        yield server
    finally:
        stop.set()
        await task


@asynccontextmanager
async def running(*processes: Process) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(process.client.run()) for process in processes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def raw(path: Path, first: Message | bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A connection that speaks for itself."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(first if isinstance(first, bytes) else encode(first))
    try:
        yield reader
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "link.sock"


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
async def nothing_leaks() -> AsyncIterator[None]:
    """After every story: no task left behind, no exception that nobody looked at."""
    strays: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: strays.append(context))
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - {asyncio.current_task()} <= before
    assert strays == []


async def test_a_process_gets_the_newest_snapshot_on_connecting_and_acknowledges_it(path: Path) -> None:
    process = Process(path)
    async with serving(path) as server:
        server.publish(Snapshot(version=1))
        server.publish(Snapshot(version=2))
        async with running(process):
            await until(lambda: server.acknowledged(2) and bool(server.processes()))
            assert [snapshot.version for snapshot in process.snapshots] == [2]
            assert not server.acknowledged(3)


async def test_snapshots_arrive_as_they_were_sent(path: Path) -> None:
    snapshot = Snapshot(
        version=7,
        boot="b",
        access=Access(proxy_required=True, hosts=frozenset({"a"})),
        bodies={"/api/tags": b'{"models":[]}'},
    )
    process = Process(path)
    async with serving(path) as server, running(process):
        server.publish(snapshot)
        await until(lambda: process.version == 7)
        assert process.snapshots == [snapshot]


async def test_a_version_counts_as_acknowledged_only_when_every_process_uses_it(path: Path) -> None:
    first, second = Process(path, "proxy-0"), Process(path, "proxy-1")
    second.refuse = True
    async with serving(path) as server, running(first, second):
        server.publish(Snapshot(version=1))
        await until(lambda: first.version == 1 and len(server.processes()) == 2)
        assert not server.acknowledged(1)
        second.refuse = False
        server.publish(Snapshot(version=2))
        await until(lambda: server.acknowledged(2))
        assert second.version == 2


async def test_an_expected_process_that_never_came_holds_acknowledgement_back(path: Path) -> None:
    process = Process(path)
    async with serving(path, expected=("proxy-0", "hub")) as server, running(process):
        server.publish(Snapshot(version=1))
        await until(lambda: process.version == 1)
        assert not server.acknowledged(1)
        async with running(Process(path, "hub")):
            await until(lambda: server.acknowledged(1))


async def test_a_process_without_connection_holds_acknowledgement_back_while_its_pid_lives(path: Path) -> None:
    async with serving(path) as server:
        server.publish(Snapshot(version=1))
        alive, dead = Process(path, "proxy-0"), Process(path, "proxy-1", pid=2**22 + 1)
        async with running(alive, dead):
            await until(lambda: len(server.processes()) == 2 and server.acknowledged(1))
        await until(lambda: not server.processes())
        server.publish(Snapshot(version=2))
        assert not server.acknowledged(2)
        async with running(alive):
            await until(lambda: server.acknowledged(2))


async def test_messages_reach_control_with_the_name_of_their_process(path: Path) -> None:
    seen: list[tuple[str, Message]] = []
    process = Process(path, "proxy-3")
    async with serving(path, lambda name, message: seen.append((name, message))), running(process):
        assert process.client.send(Observe("alpha", "connect_failed"))
        assert process.client.send(Count({"a": 1}, {"b": 0.5}))
        await until(lambda: len(seen) == 3)
    assert seen[0] == ("proxy-3", Hello("proxy-3", os.getpid(), "boot"))
    assert seen[1:] == [("proxy-3", Observe("alpha", "connect_failed")), ("proxy-3", Count({"a": 1}, {"b": 0.5}))]


async def test_a_receiver_that_raises_costs_one_message_not_the_connection(path: Path) -> None:
    seen: list[Message] = []

    def receive(_name: str, message: Message) -> None:
        if message == Observe("bad", "connect_failed"):
            raise ValueError("no")
        seen.append(message)

    process = Process(path)
    async with serving(path, receive) as server, running(process):
        process.client.send(Observe("bad", "connect_failed"))
        process.client.send(Observe("good", "connect_failed"))
        await until(lambda: Observe("good", "connect_failed") in seen)
        assert server.counts.failed == 1
        assert process.client.connections == 1


async def test_rotation_waits_for_every_process_and_tells_when_one_did_not_answer(path: Path) -> None:
    first, second = Process(path, "proxy-0"), Process(path, "proxy-1")
    async with serving(path) as server:
        assert await server.rotate_all()
        async with running(first, second):
            await until(lambda: len(server.processes()) == 2)
            assert await server.rotate_all()
            assert (first.rotations, second.rotations) == (1, 1)
            assert all(await asyncio.gather(*(server.rotate_all() for _ in range(100))))
            assert first.rotations < 102
            async with raw(path, Hello("mute", os.getpid(), "boot")):
                await until(lambda: len(server.processes()) == 3)
                assert not await server.rotate_all(timeout_s=0.02)


async def test_a_rotation_does_not_wait_for_a_process_that_left(path: Path) -> None:
    async with serving(path) as server:
        async with raw(path, Hello("proxy-0", os.getpid(), "boot")):
            await until(lambda: len(server.processes()) == 1)
            rotation = asyncio.create_task(server.rotate_all(timeout_s=5.0))
            await asyncio.sleep(0)
        assert await rotation


async def test_a_client_comes_back_by_itself_and_waits_longer_each_time(path: Path) -> None:
    process = Process(path)
    async with running(process):
        await until(lambda: len(process.waits) >= 8)
        async with serving(path) as server:
            server.publish(Snapshot(version=1))
            await until(lambda: process.version == 1)
        async with serving(path) as server:
            server.publish(Snapshot(version=2))
            await until(lambda: process.version == 2)
    assert process.client.connections == 2
    bounds = [min(client_module.BACKOFF_S * 2**n, client_module.BACKOFF_MAX_S) for n in range(8)]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(process.waits, bounds, strict=False))


async def test_after_a_connection_that_lasted_the_waits_are_short_again(path: Path) -> None:
    process = Process(path)
    times = iter(range(0, 10**6, 100))
    process.client._clock = lambda: float(next(times))
    async with running(process):
        await until(lambda: len(process.waits) >= 4)
    assert all(wait <= client_module.BACKOFF_S for wait in process.waits)


async def test_a_segment_that_cannot_be_closed_does_not_hold_the_others_up(path: Path) -> None:
    process = Process(path)

    def fail() -> None:
        raise OSError("no space left on device")

    process.client._on_rotate = fail
    async with serving(path) as server, running(process):
        await until(lambda: len(server.processes()) == 1)
        assert await server.rotate_all()


async def test_messages_too_large_for_the_link_are_dropped_and_the_rest_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetproxy.link.framing.MAX_MESSAGE_BYTES", 1000)
    seen: list[Message] = []
    process = Process(path)
    async with serving(path, lambda _name, message: seen.append(message)) as server, running(process):
        process.client.send(Observe("x" * 2000, "connect_failed"))
        process.client.send(Observe("a", "connect_failed"))
        await until(lambda: Observe("a", "connect_failed") in seen)
        assert process.client.dropped == 1
        with pytest.raises(LinkError, match="over the link's"):
            server.publish(Snapshot(version=1, bodies={"/api/tags": b"x" * 2000}))


async def test_control_hears_when_a_process_leaves(path: Path) -> None:
    left: list[str] = []
    async with serving(path) as server:
        server.on_leave = left.append
        async with running(Process(path, "proxy-7")):
            await until(lambda: len(server.processes()) == 1)
        await until(lambda: left == ["proxy-7"])


async def test_the_same_snapshot_is_not_used_twice_after_a_reconnect(path: Path) -> None:
    process = Process(path)
    async with running(process):
        for _ in range(2):
            async with serving(path) as server:
                server.publish(Snapshot(version=5, boot="boot"))
                await until(lambda server=server: bool(server.processes()) and server.acknowledged(5))
    assert [snapshot.version for snapshot in process.snapshots] == [5]


async def test_sending_never_blocks_keeps_the_newest_of_a_subject_and_counts_what_it_drops(path: Path) -> None:
    process = Process(path)
    for value in range(1000):
        assert process.client.send(Count({"a": value}, {}))
        assert process.client.send(Observe("alpha", "connect_failed"))
    for number in range(MAX_PENDING - 2):
        assert process.client.send(Observe(f"server-{number}", "connect_failed"))
    assert process.client.dropped == 0
    assert not process.client.send(Observe("one too many", "connect_failed"))
    assert process.client.send(Count({"a": 1000}, {}))
    assert process.client.dropped == 1
    seen: list[Message] = []
    async with serving(path, lambda _name, message: seen.append(message)), running(process):
        await until(lambda: len(seen) == MAX_PENDING + 1)
    assert seen[1] == Count({"a": 1000}, {})


async def test_a_process_that_does_not_read_is_dropped_and_costs_the_others_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, cleanup: ExitStack
) -> None:
    monkeypatch.setattr("fleetproxy.link.server.SEND_TIMEOUT_S", 0.02)
    big = {"/api/tags": b"x" * 4_000_000}
    process = Process(path, "proxy-1")
    async with serving(path) as server:
        deaf = cleanup.enter_context(socket.socket(socket.AF_UNIX))
        deaf.connect(str(path))
        deaf.sendall(encode(Hello("proxy-0", os.getpid(), "boot")))
        await until(lambda: len(server.processes()) == 1)
        async with running(process):
            server.publish(Snapshot(version=1, bodies=big))
            await until(lambda: process.version == 1)
            await until(lambda: server.counts.slow >= 1)
            await until(lambda: [hello.process for hello in server.processes()] == ["proxy-1"])
            server.publish(Snapshot(version=2))
            await until(lambda: process.version == 2)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x05hello",
        encode(Acknowledge(1)),
        b"\x00\x00\x00\x08" + b"\x91" * 8,
        encode(Hello("x", 1, "b")) * 2,
    ],
    ids=["oversize", "bad msgpack", "not a message", "no hello first", "nested", "two hellos"],
)
async def test_garbage_ends_its_connection_and_nothing_else(path: Path, garbage: bytes) -> None:
    process = Process(path)
    async with serving(path) as server, running(process):
        async with raw(path, garbage) as reader:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(1)
        await until(lambda: server.counts.broken == 1)
        server.publish(Snapshot(version=1))
        await until(lambda: process.version == 1)


async def test_a_client_survives_garbage_from_the_other_side(path: Path) -> None:
    process = Process(path)

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x00\x02{}")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(answer, path)
    async with running(process):
        await until(lambda: process.client.connections >= 2)
        server.close()
        async with serving(path) as real:
            real.publish(Snapshot(version=3))
            await until(lambda: process.version == 3)


async def test_a_newcomer_takes_the_place_of_the_process_it_replaces(path: Path) -> None:
    async with serving(path) as server, raw(path, Hello("proxy-0", 1, "boot")) as old:
        await until(lambda: len(server.processes()) == 1)
        new = Process(path, "proxy-0")
        async with running(new):
            assert await old.read() == b""
            assert [hello.pid for hello in server.processes()] == [os.getpid()]
            server.publish(Snapshot(version=1))
            await until(lambda: server.acknowledged(1) and new.version == 1)


async def test_connections_beyond_the_cap_are_refused_and_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.link.server.MAX_CONNECTIONS", 2)
    async with serving(path) as server, raw(path, b""), raw(path, b""), raw(path, b"") as third:
        await until(lambda: server.counts.refused == 1)
        assert await third.read() == b""


async def test_a_connection_that_never_says_hello_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.link.server.HELLO_TIMEOUT_S", 0.01)
    async with serving(path) as server:
        async with raw(path, b"") as reader:
            assert await reader.read() == b""
        assert server.counts.broken == 1


async def test_the_socket_is_for_its_owner_alone_and_a_stale_one_is_replaced(path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    path.chmod(0o644)
    process = Process(path)
    async with serving(path) as server, running(process):
        await until(lambda: len(server.processes()) == 1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.mark.parametrize(("boot", "starts"), [("this", True), ("other", False), (None, False)])
async def test_a_process_without_control_starts_from_the_snapshot_of_this_start_alone(
    path: Path, boot: str | None, starts: bool
) -> None:
    write_snapshot(path.with_name("snapshot"), Snapshot(version=9, boot="this"))
    if boot is not None:
        path.with_name("boot").write_text(boot)
    process = Process(path)
    async with running(process):
        await until(lambda: len(process.waits) > 1)
    assert bool(process.snapshots) is starts


def test_a_snapshot_file_is_whole_private_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    assert read_snapshot(path) is None
    snapshot = Snapshot(version=3, boot="b", bodies={"/api/ps": b"{}"})
    write_snapshot(path, snapshot)
    write_snapshot(path, snapshot)
    assert read_snapshot(path) == snapshot
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["snapshot"]
    whole = path.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"\xc1" * 10, b"\x91" * 100_000):
        path.write_bytes(torn)
        assert read_snapshot(path) is None


async def test_frames_keep_their_borders_under_any_chunking() -> None:
    messages: list[Message] = [Hello("p", 1, "b"), Publish(Snapshot(version=1)), Rotate(4), Count({"x": 1}, {})]
    wire = b"".join(encode(message) for message in messages)
    for size in (1, 3, len(wire)):
        reader = asyncio.StreamReader()
        for start in range(0, len(wire), size):
            reader.feed_data(wire[start : start + size])
        reader.feed_eof()
        assert [await read(reader) for _ in messages] == messages
        with pytest.raises(EOFError):
            await read(reader)
