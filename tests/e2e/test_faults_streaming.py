"""Faults of streaming and slots (S): each P0 case of the catalogue by its number, against real processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from fleetproxy.link.board import Board
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import request
from fleetproxy.testing.script import LAST_CHUNK, NDJSON_HEAD, Firehose, Keep, Rst, Send, Sleep, Stall, chunk
from fleetproxy.testing.service import ADMIN_KEY
from fleetproxy.testing.stage import Stage, eventually
from tests.e2e.fault_cases import rounds

pytestmark = pytest.mark.asyncio(loop_scope="module")
OpenStage = Callable[..., Awaitable[Stage]]

CASES = {
    "S-1": "test_s01_nothing_is_produced_for_nobody",
    "S-2": "test_s02_leaving_at_any_moment_before_the_answer_ends_everything",
    "S-3": "test_s03_a_storm_of_cancels_loses_no_slot",
    "S-4": "test_s04_slots_are_counted_exactly_once",
    "S-7": "test_s07_subscribers_that_never_read_hold_nobody_up",
}
CHAT = b'{"model":"m","messages":[]}'
LINE = b'{"model":"m","message":{"content":"x"},"done":false}\n'
LAST = b'{"model":"m","message":{"content":""},"done":true}\n'
WHOLE = [Send(NDJSON_HEAD), Send(chunk(LINE)), Send(chunk(LAST)), Send(LAST_CHUNK), Keep()]


async def test_s01_nothing_is_produced_for_nobody(stage: Stage) -> None:
    stage["a"].script = [Send(NDJSON_HEAD), Firehose(chunk(LINE * 100))]
    log = len(stage.service.text().splitlines())
    count = rounds(6, 100)
    for number in range(count):
        client = await stage.connect()
        await client.send(stage.request("/api/chat", CHAT))
        await client.until(LINE)
        client.reset() if number % 2 else client.close()
        await eventually(lambda: not stage["a"].running(), 1.0, "the firehose is closed")
    assert len(stage.service.text().splitlines()) - log <= count
    assert {record["outcome"] for record in await stage.records()} == {"client_gone"}


#: Where a request can be when its client leaves: name -> what the servers do, and how much of the request is sent.
MOMENTS = ("connecting", "waiting", "retrying", "half a body", "half a chunked body", "uploading", "head sent")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_s02_leaving_at_any_moment_before_the_answer_ends_everything(stage: Stage, moment: str, how: str) -> None:
    solo, blob = b'{"model":"solo"}', f"/api/blobs/sha256:{'c' * 64}"
    stage["a"].script = [Rst()] if moment == "retrying" else [Stall()]
    stage["b"].script = [Stall()]
    if moment == "head sent":
        stage["a"].script = [Send(NDJSON_HEAD), Stall()]
    for _ in range(rounds(3, 50)):
        client = await stage.connect()
        match moment:
            case "connecting":
                async with stage["a"].deaf():
                    await client.send(stage.request("/api/chat", solo))
                    await asyncio.sleep(0.05)
                    getattr(client, how)()
                    await asyncio.sleep(0.05)
                continue
            case "half a body":
                await client.send(stage.request("/api/chat", solo[:5], (("Content-Length", "500"),)))
            case "half a chunked body":
                await client.send(stage.request("/api/chat", None, (("Transfer-Encoding", "chunked"),)) + b"5\r\nab")
            case "uploading":
                await client.send(stage.request(blob, b"x" * 1000, (("Content-Length", "9000"),)))
            case _:
                await client.send(stage.request("/api/chat", CHAT))
        await asyncio.sleep(0.05)
        getattr(client, how)()
        await asyncio.sleep(0.02)
    await eventually(lambda: not any(upstream.running() for upstream in stage.upstreams.values()), 1.0, "all closed")
    assert {record["outcome"] for record in await stage.records()} == {"client_gone"}


async def test_s03_a_storm_of_cancels_loses_no_slot(open_stage: OpenStage) -> None:
    """After random cancels, a server with four slots still runs four at once, and no more than four."""
    stage = await open_stage(
        upstreams={"a": FaultUpstream(("m",))},
        servers={"a": {"max_concurrent": 4}},
        timeouts={"first_byte_s": 20, "stream_idle_s": 20},
        queue={"size": 200, "wait_s": 30},
    )
    chance = random.Random(3)

    async def impatient() -> None:
        client = await stage.connect()
        await client.send(stage.request("/api/chat", CHAT, recorded=None))
        await asyncio.sleep(chance.uniform(0, 0.04))
        client.reset() if chance.random() < 0.5 else client.close()

    stage["a"].script = [Sleep(0.01), *WHOLE]
    for _ in range(rounds(8, 250)):
        await asyncio.gather(*(impatient() for _ in range(40)))
    before = -1
    while before != len(stage["a"].requests) or stage["a"].running():  # the last leavers are on their way out
        before = len(stage["a"].requests)
        await asyncio.sleep(0.3)
    stage["a"].script = [Send(NDJSON_HEAD), Stall()]
    clients = [await stage.connect() for _ in range(7)]
    for client in clients:
        await client.send(stage.request("/api/chat", CHAT))
    await eventually(lambda: len(stage["a"].running()) == 4, 5.0, "four at once")
    await asyncio.sleep(0.2)
    assert len(stage["a"].requests) - before == 4
    for client in clients:
        client.close()
    await eventually(lambda: not stage["a"].running(), 5.0)
    await stage.settle()


async def test_s04_slots_are_counted_exactly_once(stage: Stage) -> None:
    """The load board against the servers' own books, looked at every few milliseconds under mixed ends."""
    ends = [WHOLE, [Rst()], [Send(NDJSON_HEAD), Send(chunk(LINE)), Rst()], [Send(NDJSON_HEAD), Sleep(0.02), *WHOLE[1:]]]
    chance = random.Random(4)
    for upstream in stage.upstreams.values():
        upstream.choose = lambda *_: chance.choice(ends)
    lowest = highest = 0
    done = asyncio.Event()

    async def look() -> None:
        nonlocal lowest, highest
        board = Board(stage.service.runtime / "board")
        try:
            while not done.is_set():
                lowest = min(lowest, *board.cells[4096 : 4096 + 64], *board.cells[-4096:][:64])
                highest = max(highest, sum(board.cells[4096:]))
                await asyncio.sleep(0.005)
        finally:
            board.close()

    async def client(number: int) -> None:
        for _ in range(rounds(12, 200)):
            if chance.random() < 0.2:
                leaver = await stage.connect()
                await leaver.send(stage.request("/api/chat", CHAT, recorded=None))
                await asyncio.sleep(chance.uniform(0, 0.02))
                leaver.close()
            else:
                await stage.ask("/api/chat", CHAT)

    looking = asyncio.ensure_future(look())
    await asyncio.gather(*(client(number) for number in range(10)))
    done.set()
    await looking
    assert lowest == 0
    assert 0 < highest <= 10 * 2


async def test_s07_subscribers_that_never_read_hold_nobody_up(stage: Stage) -> None:
    fields = [("Authorization", f"Bearer {ADMIN_KEY}")]
    data = request("GET", "/api/state/stream", headers=fields)
    deaf = [await stage.connect(receive_buffer_bytes=4096) for _ in range(rounds(5, 10))]
    hearing = [await stage.connect() for _ in range(rounds(20, 1000))]
    for client in (*deaf, *hearing):
        await client.send(data)
    for client in hearing:
        first = await client.head()
        assert (first.status, first.header("content-type")) == (200, "text/event-stream")
        assert b"data:" in await client.until(b"\n\n")
    stage["o"].models = ["omni", "fresh-model"]
    await asyncio.to_thread(stage.service.admin, "POST", "/api/poll")
    for client in hearing:
        assert await client.until(b"\n\n")
    stage["o"].models = ["omni"]
    assert (await stage.look("/api/tags")).status == 200
    for client in (*deaf, *hearing):
        client.close()
