"""The wire at `hub.listen`, by hand: what a stranger can send, and what it costs."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hub_house import House, chat, keyed, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fleetproxy.errors import BackendReset, WorkerBusy
from fleetproxy.hub import nfrx_link, session, sockets

UPGRADE = (
    "GET /api/llm/connect HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
REGISTER = json.dumps({"type": "register", "worker_id": "raw", "models": ["m"], "max_concurrency": 2}).encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0) -> bytes:
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    bit = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", first, bit | size)
    elif size < 65536:
        head = struct.pack(">BBH", first, bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, bit | 127, size)
    return head + (bytes(4) + payload if mask else payload)


class Raw:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes]:
        """Status and head of the handshake's answer."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1]), head

    async def end(self) -> bytes:
        """What comes until the other side closes."""
        got = b""
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    got += data
        return got

    async def close_code(self) -> int | None:
        """The code of the close frame that ends it; None when it was cut off."""
        got = await self.end()
        at = got.rfind(b"\x88")
        return int.from_bytes(got[at + 2 : at + 4], "big") if at >= 0 and len(got) >= at + 4 else None


@asynccontextmanager
async def raw(house: House, first: str | bytes = "") -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    try:
        writer.write(first.encode() if isinstance(first, str) else first)
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def upgraded(house: House, *, registered: bool = False) -> AsyncIterator[Raw]:
    async with raw(house, UPGRADE + "\r\n") as peer:
        assert (await peer.answer())[0] == 101
        if registered:
            peer.writer.write(frame(1, REGISTER))
            await until(lambda: len(house.hub.workers) == 1)
        yield peer


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET /api/llm/connect HTTP/1.1\r\nHost: h\r\n\r\n", 426),
        (UPGRADE.replace("GET", "POST") + "\r\n", 405),
        (UPGRADE.replace("Version: 13", "Version: 8") + "\r\n", 400),
        (UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", "short") + "\r\n", 400),
        (UPGRADE.replace("HTTP/1.1", "HTTP/1.0") + "\r\n", 505),
        (UPGRADE + "Sec-WebSocket-Protocol: \xe9\r\n\r\n", 400),
        (UPGRADE + "X: " + "x" * 9000 + "\r\n\r\n", 431),
        ("GET /" + "x" * 9000 + " HTTP/1.1\r\n\r\n", 414),
    ],
)
async def test_handshakes_that_are_none_get_an_http_answer(house: House, request_text: str, status: int) -> None:
    async with raw(house, request_text) as peer:
        assert (await peer.answer())[0] == status
        await peer.end()
    await until(lambda: len(house.hub.door) == 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        UPGRADE.encode() + b"\r\n" + frame(8, b"\x03\xe8"),
        UPGRADE.encode() + b"\r\n" + frame(3),
        b"x" * 100_000,
    ],
    ids=["tls", "blank", "short", "closed-at-once", "nonsense-behind", "long-line"],
)
async def test_nonsense_ends_the_connection_and_nothing_else(house: House, sent: bytes) -> None:
    async with raw(house, sent) as peer:
        peer.writer.write_eof()
        await peer.end()
    await until(lambda: len(house.hub.door) == 0)
    async with upgraded(house, registered=True):
        pass


async def test_a_handshake_that_never_ends_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_S", 0.02)
    async with raw(house) as silent, raw(house, UPGRADE) as slow:
        assert await silent.end() == b""
        assert await slow.end() == b""


async def test_compression_is_not_agreed_to(house: House) -> None:
    async with raw(house, UPGRADE + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n") as peer:
        status, head = await peer.answer()
        assert status == 101
        assert b"extensions" not in head.lower()
        peer.writer.write(frame(1, b"x", rsv=4))
        assert await peer.close_code() == 1002


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(1, b"x", rsv=1), 1002),
        (frame(1, b"x", mask=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(11), 1002),
        (frame(9, b"x", fin=False), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(0, b"x"), 1002),
        (frame(1, b"a", fin=False) + frame(1, b"b"), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, struct.pack(">H", 999)), 1002),
        (frame(8, struct.pack(">H", 1005)), 1002),
        (frame(8, struct.pack(">H", 1000) + b"\xff"), 1007),
        (b"\x81\xff" + struct.pack(">Q", 2**63) + bytes(4), 1009),
        (b"\x81\xff" + struct.pack(">Q", 2**40) + bytes(4), 1009),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, b'{"type":"heart\xc3', fin=False) + frame(0, b"\x28"), 1007),
    ],
)
async def test_malformed_frames_close_that_socket_with_the_right_code(house: House, sent: bytes, code: int) -> None:
    async with upgraded(house, registered=True) as peer:
        peer.writer.write(sent)
        assert await peer.close_code() == code
    await until(lambda: len(house.hub.workers) == 0)


async def test_a_message_may_come_in_fragments_with_pings_between(house: House) -> None:
    async with upgraded(house) as peer:
        for at in range(0, len(REGISTER), 7):
            last = at + 7 >= len(REGISTER)
            peer.writer.write(frame(1 if at == 0 else 0, REGISTER[at : at + 7], fin=last))
            if not last:
                peer.writer.write(frame(9, b"ping"))
        await until(lambda: len(house.hub.workers) == 1)


async def test_empty_fragments_without_end_take_no_memory(house: House) -> None:
    async with upgraded(house, registered=True) as peer:
        peer.writer.write(frame(1, b"", fin=False) + frame(0, b"", fin=False) * 3_000)
        peer.writer.write(frame(0, b'{"type":"heartbeat"}'))
        await peer.writer.drain()
        (connected,) = house.hub.workers
        before = connected.worker.last_heartbeat_s
        await until(lambda: connected.worker.last_heartbeat_s > before)
        (one,) = house.hub.sessions.open
        assert one._socket._pieces is None  # type: ignore[attr-defined]


async def test_a_message_over_a_megabyte_costs_that_worker_its_socket(house: House) -> None:
    async with upgraded(house, registered=True) as peer:
        peer.writer.write(frame(1, b"x" * (1024 * 1024)))
        assert await peer.close_code() == 1009


@pytest.mark.parametrize("registered", [False, True])
async def test_a_flood_of_pings_nobody_reads_the_answers_of_is_cut_off(
    house: House, monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    monkeypatch.setattr(sockets, "MAX_UNSENT_BYTES", 256 * 1024)
    monkeypatch.setattr(sockets, "CLOSE_S", 0.2)
    async with upgraded(house, registered=registered) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        ping = frame(9, b"x" * 125) * 1000
        with suppress(ConnectionError):
            async with asyncio.timeout(30):
                while len(house.hub.door):
                    peer.writer.write(ping)
                    await peer.writer.drain()
                    await asyncio.sleep(0)
        await until(lambda: len(house.hub.door) == 0)


def stepping(house: House, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """What a watcher of the loop sees: how many frames were looked at between two of his turns, at most."""
    looked, most = 0, 0
    frame_of = sockets.DirectSocket._frame

    def counted(self: sockets.DirectSocket, event: Any) -> int:
        nonlocal looked
        looked += 1
        return frame_of(self, event)

    monkeypatch.setattr(sockets.DirectSocket, "_frame", counted)

    async def watch() -> None:
        nonlocal most
        while True:
            before = looked
            await asyncio.sleep(0)
            most = max(most, looked - before)

    watching = asyncio.ensure_future(watch())
    house.stack.callback(watching.cancel)
    return lambda: (looked, most)


@pytest.mark.parametrize("sent", [frame(1, b'{"type":"heartbeat"}'), frame(9, b"x"), frame(10), frame(1, b"{}")])
async def test_a_flood_is_looked_at_a_little_at_a_time_and_then_closed(
    house: House, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(session, "CHATTER_BURST", 1_000)
    monkeypatch.setattr(session, "CHATTER_PER_S", 1)
    monkeypatch.setattr(session, "MAX_VIOLATIONS", 10**9)
    seen = stepping(house, monkeypatch)
    async with upgraded(house, registered=True) as peer, upgraded(house) as other:
        peer.writer.write(sent * 30_000)
        other.writer.write(frame(1, REGISTER.replace(b"raw", b"other")))
        await until(lambda: any(one.worker.id == "other" for one in house.hub.workers))
        await until(lambda: house.hub.sessions.counts["flood"])
        await until(lambda: [one.worker.id for one in house.hub.workers] == ["other"])
        looked, most = seen()
        assert 1_000 < looked < 3_000
        assert most <= sockets.FIRST_PART_BYTES / len(sent) + 1, "later parts are smaller"


async def test_answers_somebody_asked_for_are_no_flood_however_many(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CHATTER_BURST", 100)
    monkeypatch.setattr(session, "CHATTER_PER_S", 1)
    proxy = await house.proxy()
    seen = stepping(house, monkeypatch)
    async with upgraded(house, registered=True) as peer:
        await until(lambda: proxy.hub.workers)
        asking = asyncio.ensure_future(proxy.ask(chat()))
        async with asyncio.timeout(10):
            head = await peer.reader.readexactly(4)
            order = json.loads(await peer.reader.readexactly(int.from_bytes(head[2:])))
        named = {"request_id": order["request_id"]}
        begin = {"type": "http_proxy_response_headers", "status": 200, "headers": {}} | named
        chunk = {"type": "http_proxy_response_chunk", "data": "eA=="} | named
        end = {"type": "http_proxy_response_end"} | named
        first, piece, last = (frame(1, json.dumps(message).encode()) for message in (begin, chunk, end))
        peer.writer.write(first + piece * 20_000 + last)
        assert await asking == (200, b"x" * 20_000)
        assert seen()[1] <= sockets.MOST_PART_BYTES / len(piece) + sockets.TURN_FRAMES


async def test_a_worker_that_does_not_read_gets_nothing_more_and_is_dropped_after_a_while(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nfrx_link, "BUSY_UNSENT_BYTES", 1_000_000)
    proxy = await house.proxy()
    async with upgraded(house, registered=True) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: proxy.hub.workers)
        big = chat(b"x" * 9_000_000)
        stuck = asyncio.ensure_future(proxy.ask(big))
        (one,) = house.hub.sessions.open
        await until(lambda: one._socket.unsent_bytes > 1_000_000)
        with pytest.raises(WorkerBusy):
            await proxy.ask(chat())
        now_s = house.hub.sessions.loop.time()
        one.look(now_s)
        one._heard_s = now_s + session.STALL_S
        one.look(now_s + session.STALL_S - 1)
        assert len(house.hub.workers) == 1
        one.look(now_s + session.STALL_S + 1)
        with pytest.raises(BackendReset):
            await stuck
    assert house.hub.sessions.counts["stalled"] == 1


async def test_who_goes_on_talking_after_the_close_frame_is_cut_off(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "CLOSE_S", 0.2)

    async def talk(peer: Raw) -> None:
        while True:
            peer.writer.write(frame(1, b"still here"))
            await peer.writer.drain()
            await asyncio.sleep(0.01)

    async with upgraded(house) as peer:
        peer.writer.write(frame(1, b"no register message"))
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(talk(peer), 10)
    await until(lambda: not len(house.hub.door))


async def test_there_is_room_for_so_many_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.hub.door.MAX_SOCKETS", 2)
    async with upgraded(house), upgraded(house):
        async with raw(house, UPGRADE + "\r\n") as third:
            assert await third.end() == b""
        assert house.hub.door.counts["full"] == 1
    await until(lambda: len(house.hub.door) == 0)
    async with upgraded(house):
        pass


async def test_strangers_may_fill_only_their_own_room(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.hub.door.MAX_STRANGERS", 1)
    async with upgraded(house, registered=True), upgraded(house):
        with pytest.raises(InvalidStatus) as refused:
            await connect(house.url, compression=None)
        assert refused.value.response.status_code == 503


@pytest.mark.parametrize("house", [keyed("k3y")], indirect=True)
async def test_a_thousand_wrong_keys_leave_nothing_behind(house: House) -> None:
    for _ in range(40):
        with suppress(InvalidStatus, ConnectionClosed):
            async with connect(house.url, compression=None) as socket:
                await socket.send('{"type":"register","client_key":"bad"}')
                await socket.recv()
    assert house.hub.sessions.counts["unauthorized"] == 10
    assert house.hub.door.counts["429"] == 30
    await until(lambda: not house.hub.sessions.open)


async def test_two_hundred_workers_come_back_at_once(house: House) -> None:
    proxy = await house.proxy()

    async def dial(number: int) -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        peer = Raw(reader, writer)
        writer.write(UPGRADE.encode() + b"\r\n")
        assert (await peer.answer())[0] == 101
        register = {"type": "register", "worker_id": f"w{number}", "models": ["m"], "max_concurrency": 1}
        writer.write(frame(1, json.dumps(register).encode()))
        return peer

    peers = await asyncio.gather(*(dial(number) for number in range(200)))
    await until(lambda: len(proxy.hub.workers) == 200)
    assert len({worker.column for worker in proxy.hub.workers.values()}) == 200
    for peer in peers:
        peer.writer.transport.abort()
    await until(lambda: not proxy.hub.workers)
