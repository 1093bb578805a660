"""Callers and servers that take their time, and connections that must not be used again."""

from __future__ import annotations

import asyncio
import json

import pytest

from fleetproxy.core.table import Limits
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import connect, request
from fleetproxy.testing.script import LAST_CHUNK, NDJSON_HEAD, Firehose, Keep, Send, chunk, response
from tests.proxy.conftest import snapshot_of

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
SHOW = b'{"model":"m"}'
DONE = b'{"model":"m","message":{"role":"assistant","content":""},"done":true}\n'
LINE = json.dumps({"model": "m", "message": {"role": "assistant", "content": "x" * 60_000}, "done": False}).encode()
OK = [Send(response(body=b'{"ok":true}')), Keep()]
MUCH = 24 << 20


async def stalled(running, upstream):
    """A caller that has asked for a long stream and reads nothing of it; returns when the server is held back."""
    client = await connect("127.0.0.1", running.port, receive_buffer_bytes=4096)
    await client.send(request("POST", "/api/chat", CHAT))
    sent = -1
    async with asyncio.timeout(5):
        while not upstream.requests or sent != (sent := upstream.requests[0].sent_bytes) or not sent:
            await asyncio.sleep(0.05)
    return client


async def test_a_caller_who_reads_slowly_is_not_the_servers_stall(start):
    async with FaultUpstream() as upstream:
        upstream.script = [
            Send(NDJSON_HEAD),
            Firehose(chunk(LINE + b"\n"), MUCH),
            Send(chunk(DONE) + LAST_CHUNK),
            Keep(),
        ]
        async with start(snapshot_of([upstream], limits=Limits(stream_idle_s=0.3, write_stall_s=30.0))) as running:
            async with await stalled(running, upstream) as client:
                [exchange] = running.plane.live
                assert exchange.time_limit_s == 30.0, "the caller's limit holds while it does not read"
                answer = await client.answer(within_s=20)
            assert answer.clean
            assert answer.body.endswith(DONE)
            await running.settled()
            [row] = running.records()
            assert (row.outcome, row.error) == ("ok", None)
            assert running.plane.trips.states() == {}


async def test_a_caller_who_stops_reading_is_ended_and_the_server_is_not_blamed(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(NDJSON_HEAD), Firehose(chunk(LINE + b"\n"))]
        async with start(snapshot_of([upstream], limits=Limits(stream_idle_s=30.0, write_stall_s=0.3))) as running:
            async with await stalled(running, upstream):
                await running.settled()
                async with asyncio.timeout(5):
                    while upstream.requests[0].closed_s is None:
                        await asyncio.sleep(0.005)
            [row] = running.records()
            assert (row.outcome, row.error) == ("client_gone", "client_gone")
            assert running.plane.trips.states() == {}


@pytest.mark.parametrize(("size", "close"), [(900_000, None), (20_000_000, "close")], ids=["little", "much"])
async def test_a_server_that_refuses_half_an_upload_is_heard_and_its_connection_not_used_again(start, size, close):
    """What it then reads on that connection is still that upload; and who sends reads the answer only afterwards."""
    digest = "sha256:" + "c" * 64
    async with FaultUpstream() as upstream:
        upstream.read_body = False
        upstream.script = [Send(response(400, b'{"error":"no"}')), Keep()]
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                whole = request("POST", f"/api/blobs/{digest}", bytes(size))
                await client.send(whole[:100_000])
                async with asyncio.timeout(5):
                    while not upstream.requests or not upstream.requests[0].sent_bytes:
                        await asyncio.sleep(0.005)
                await client.send(whole[100_000:])
                answer = await client.answer()
                assert (answer.status, answer.header("connection"), answer.clean) == (400, close, True)
            await running.settled()
            upstream.read_body, upstream.script = True, OK
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/api/show", SHOW))
                answer = await client.answer(within_s=3)
            assert (answer.status, answer.body) == (200, b'{"ok":true}')
            assert [seen.connection for seen in upstream.requests] == [1, 2]


@pytest.mark.parametrize("given", ["1.1 elsewhere", "1.0 a, 1.1 b"])
async def test_who_a_request_has_passed_before_us_is_told_on(start, given):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/api/show", SHOW, [("Via", given)]))
                assert (await client.answer()).status == 200
            assert upstream.requests[0].header("via") == f"{given}, 1.1 fleetproxy-test"


async def test_a_redirect_to_the_servers_own_address_leads_back_to_us(start):
    async with FaultUpstream() as upstream:
        target = f"http://127.0.0.1:{upstream.port}/api/elsewhere?x=1"
        upstream.script = [Send(response(307, b"", [("Location", target)])), Keep()]
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/api/show", SHOW))
                answer = await client.answer()
            assert (answer.status, answer.header("location")) == (307, "/api/elsewhere?x=1")
