from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from fleetproxy.core.worker import Worker
from fleetproxy.transport import hub as transport_hub
from fleetproxy.transport.framed import MAX_UNSENT_BYTES, FramedConnection
from fleetproxy.transport.hub import HubClient
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import Frame


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


class FakeHub:
    """The other end: keeps what it got, says what it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.got: list[Frame] = []
        self.connections: list[FramedConnection] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        def accept() -> FramedConnection:
            connection = FramedConnection(lambda _, frame: self.got.append(frame), self.connections.remove)
            self.connections.append(connection)
            return connection

        server = await asyncio.get_running_loop().create_unix_server(accept, str(self.path))
        try:
            yield
        finally:
            server.close()
            for connection in tuple(self.connections):
                connection.abort()
            await until(lambda: not self.connections)
            self.path.unlink()


@asynccontextmanager
async def connected(client: HubClient) -> AsyncIterator[None]:
    task = asyncio.ensure_future(client.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def fake(tmp_path: Path) -> FakeHub:
    return FakeHub(tmp_path / "hub.sock")


async def test_it_registers_first_and_hands_each_kind_to_its_handler(fake: FakeHub) -> None:
    client, got, states = HubClient(fake.path, "proxy-3"), [], []
    client.on(frames.GRANT, got.append)
    client.watch(states.append)
    async with fake.listening(), connected(client):
        await until(lambda: len(fake.got) == 1)
        assert fake.got[0].kind == frames.REGISTER
        assert payloads.decode(fake.got[0].payload, payloads.Register).process == "proxy-3"
        fake.connections[0].send(frames.encode(frames.GRANT, 0, b"abc"))
        await until(lambda: got == [b"abc"])
        assert client.send(frames.encode(frames.PING))
        await until(lambda: len(fake.got) == 2)
    assert states == [True, False]


async def test_it_comes_back_for_ever_with_growing_waits_drawn_from_its_own_dice(fake: FakeHub) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        await asyncio.sleep(0)

    client = HubClient(fake.path, "proxy-0", rng=random.Random(1), sleep=nap)
    async with connected(client):
        await until(lambda: len(naps) > 20)
        assert not client.connected
        assert not client.send(b"")
        async with fake.listening():
            await until(lambda: client.connected)
            fake.connections[0].abort()
            await until(lambda: client.connections == 2)
    most = [min(transport_hub.BACKOFF_S * 2**n, transport_hub.BACKOFF_MAX_S) for n in range(len(naps))]
    assert all(limit / 2 <= nap_s <= limit for nap_s, limit in zip(naps, most, strict=True))
    assert len(set(naps)) == len(naps)


async def test_frames_nobody_asked_for_end_the_connection(fake: FakeHub) -> None:
    client = HubClient(fake.path, "proxy-0")
    async with fake.listening(), connected(client):
        await until(lambda: client.connected)
        fake.connections[0].send(frames.encode(frames.FREED))
        await until(lambda: client.connections == 2)


def _worker(worker_id: str) -> Worker:
    return Worker(id=worker_id, name=worker_id, family="mcp", column=2048, protocol="nfrx")


async def test_settled_is_past_all_news_that_were_on_their_way(fake: FakeHub) -> None:
    client = HubClient(fake.path, "proxy-0")
    async with fake.listening(), connected(client):
        await until(lambda: client.connected)
        settling = asyncio.ensure_future(client.settled())
        await until(lambda: len(fake.got) == 2)
        ping = fake.got[1]
        assert ping.kind == frames.PING
        presence = frames.encode(frames.PRESENCE, 0, payloads.encode(payloads.Presence(worker=_worker("w"))))
        fake.connections[0].send(frames.encode(frames.PONG, 0, bytes(8)))  # the answer to some other question
        await asyncio.sleep(0.02)
        assert not settling.done()
        fake.connections[0].send(presence + frames.encode(frames.PONG, 0, ping.payload))
        await settling
        assert ("mcp", "w") in client.workers


async def test_settled_waits_for_a_hub_that_comes_back_and_asks_it_again(fake: FakeHub) -> None:
    client = HubClient(fake.path, "proxy-0")
    settling = asyncio.ensure_future(client.settled())
    await asyncio.sleep(0)
    async with fake.listening(), connected(client):
        await until(lambda: len(fake.got) == 2)
        assert [frame.kind for frame in fake.got] == [frames.REGISTER, frames.PING]
        assert not settling.done()
        fake.connections[0].send(frames.encode(frames.PONG, 0, fake.got[1].payload))
        await settling


async def test_settled_does_not_wait_for_a_hub_that_has_been_away_for_long(fake: FakeHub) -> None:
    now = [0.0]
    client = HubClient(fake.path, "proxy-0", clock=lambda: now[0])
    now[0] = transport_hub.ABSENCE_S + 0.1
    async with asyncio.timeout(transport_hub.SETTLE_S / 2):
        await client.settled()


async def test_settled_ends_without_an_answer(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_hub, "SETTLE_S", 0.05)
    client = HubClient(fake.path, "proxy-0")
    async with fake.listening(), connected(client):
        await until(lambda: client.connected)
        async with asyncio.timeout(5):
            await asyncio.gather(*(client.settled() for _ in range(3)))
        await until(lambda: len(fake.got) == 4)


async def test_a_handler_that_fails_costs_the_connection_not_the_client(
    fake: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    client = HubClient(fake.path, "proxy-0")

    def fail(payload: bytes) -> None:
        raise LookupError(payload)

    client.on(frames.GRANT, fail)
    async with fake.listening(), connected(client):
        await until(lambda: client.connected)
        fake.connections[0].send(frames.encode(frames.GRANT))
        await until(lambda: client.connections == 2)
    assert "could not be handled" in caplog.text


async def test_a_peer_that_does_not_read_is_cut_off_not_buffered_for_ever(tmp_path: Path) -> None:
    path, lost = tmp_path / "hub.sock", []
    held: list[asyncio.StreamWriter] = []

    async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        held.append(writer)

    server = await asyncio.start_unix_server(deaf, path)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(lambda: FramedConnection(lambda *_: None, lost.append), str(path))
    piece = bytes(4 * 1024 * 1024)
    sent = 0
    while connection.send_data(b"", piece):
        sent += len(piece)
        assert sent <= MAX_UNSENT_BYTES + len(piece)
    await until(lambda: lost == [connection])
    assert not connection.send(b"x")
    for writer in held:
        writer.transport.abort()
    server.close()
