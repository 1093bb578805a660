"""Callers and servers that do unusual things: what is passed on, what is ended, and who is blamed for it."""

from __future__ import annotations

import asyncio
import gzip
import json

import msgspec
import pytest

from fleetproxy.core.table import RESIDENT, Limits, Route
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import connect, request
from fleetproxy.testing.script import (
    LAST_CHUNK,
    NDJSON_HEAD,
    Fin,
    Firehose,
    Keep,
    Send,
    Sleep,
    Stall,
    chunk,
    head,
    response,
)
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


async def test_a_server_that_stops_reading_an_upload_is_not_the_callers_stall(start):
    digest = "sha256:" + "d" * 64
    async with FaultUpstream() as upstream:
        upstream.read_body, upstream.script = False, [Stall()]
        limits = Limits(body_idle_s=0.2, stream_idle_s=0.6)
        async with start(snapshot_of([upstream], limits=limits)) as running:
            async with await connect("127.0.0.1", running.port) as client:
                sending = asyncio.ensure_future(client.send(request("POST", f"/api/blobs/{digest}", bytes(30_000_000))))
                answer = await client.answer()
                sending.cancel()
            assert answer.status == 504
            await running.settled()
            [row] = running.records()
            assert (row.outcome, row.error) == ("backend_error", "backend_timeout")


@pytest.mark.parametrize("given", ["1.1 elsewhere", "1.0 a, 1.1 b"])
async def test_who_a_request_has_passed_before_us_is_told_on(start, given):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/api/show", SHOW, [("Via", given)]))
                assert (await client.answer()).status == 200
            assert upstream.requests[0].header("via") == f"{given}, 1.1 fleetproxy-test"


CHUNKED = ("Transfer-Encoding", "chunked")
JSON = [("Content-Type", "application/json")]
PLAIN = b'{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
GZIPPED = gzip.compress(b"data: {}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    ("answer", "body", "tokens"),
    [
        (response(body=PLAIN), PLAIN, (3, 2)),
        (head(200, [*JSON, CHUNKED]) + chunk(PLAIN) + LAST_CHUNK, PLAIN, (3, 2)),
        (
            head(200, [("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip"), CHUNKED])
            + chunk(GZIPPED)
            + LAST_CHUNK,
            GZIPPED,
            (None, None),
        ),
    ],
    ids=["json", "json in chunks", "compressed"],
)
async def test_who_asks_for_a_stream_and_gets_no_readable_one_gets_it_as_it_is(start, answer, body, tokens):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(answer), Keep()]
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/v1/chat/completions", b'{"model":"m","stream":true}'))
                got = await client.answer()
            assert (got.status, got.clean, got.body) == (200, True, body)
            await running.settled()
            [row] = running.records()
            assert (row.outcome, row.error, row.streamed) == ("ok", None, True)
            assert (row.tokens_in, row.tokens_out) == tokens
            assert running.plane.trips.states() == {}


async def test_a_json_body_that_breaks_off_gets_no_event_into_it(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(head(200, [*JSON, CHUNKED]) + chunk(b'{"choices":')), Fin()]
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/v1/chat/completions", b'{"model":"m","stream":true}'))
                got = await client.answer()
            assert (got.status, got.clean, got.body) == (200, False, b'{"choices":')


async def test_a_redirect_to_the_servers_own_address_leads_back_to_us(start):
    async with FaultUpstream() as upstream:
        target = f"http://127.0.0.1:{upstream.port}/api/elsewhere?x=1"
        upstream.script = [Send(response(307, b"", [("Location", target)])), Keep()]
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/api/show", SHOW))
                answer = await client.answer()
            assert (answer.status, answer.header("location")) == (307, "/api/elsewhere?x=1")


@pytest.mark.parametrize("path", ["/api/tags", "/nothing"])
async def test_a_callers_own_request_id_comes_back_from_answers_of_our_own_too(start, path):
    async with start(snapshot_of([])) as running, await connect("127.0.0.1", running.port) as client:
        await client.send(request("GET", path, headers=[("X-Request-Id", "mine-1")]))
        answer = await client.answer()
        assert (answer.header("x-request-id"), answer.header("request-id")) == ("mine-1", "mine-1")


@pytest.mark.parametrize("model", ["phi", "phi:latest", "PHI", "library%2Fphi"])
async def test_a_model_is_listed_under_every_spelling_of_its_name(start, model):
    entry = b'{"id":"phi:latest","object":"model"}'
    snapshot = msgspec.structs.replace(snapshot_of([]), model_bodies={"phi:latest": entry})
    async with start(snapshot) as running, await connect("127.0.0.1", running.port) as client:
        await client.send(request("GET", f"/v1/models/{model}"))
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, entry)


async def test_clients_of_http_1_0_are_served_without_host_and_without_chunks(start):
    """Health checks of balancers speak it, with no more than a request line."""
    async with FaultUpstream() as upstream:
        upstream.script = [Send(NDJSON_HEAD + chunk(DONE) + LAST_CHUNK), Keep()]
        async with start(snapshot_of([upstream])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
                answer = await client.answer()
                assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(CHAT), CHAT))
                answer = await client.answer()
                assert (answer.status, answer.header("transfer-encoding"), answer.body) == (200, None, DONE)
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(b"GET /healthz HTTP/1.1\r\n\r\n")
                assert (await client.answer()).status == 400


async def test_a_refusal_too_long_to_be_read_is_never_passed_on_in_part(start):
    page = b"<html>" + b"x" * 100_000
    async with FaultUpstream() as one, FaultUpstream() as two:
        one.script = two.script = [
            Send(head(404, [("Content-Type", "text/html"), CHUNKED]) + chunk(page[:90_000])),
            Sleep(0.05),
            Send(chunk(page[90_000:]) + LAST_CHUNK),
            Keep(),
        ]
        async with start(snapshot_of([one, two])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/api/show", SHOW))
                answer = await client.answer()
            assert (answer.status, answer.clean) == (502, True)
            assert json.loads(answer.body)["error"]
            await running.settled()
            [row] = running.records()
            assert (row.outcome, row.error) == ("backend_error", "bad_response")


@pytest.mark.parametrize("pin", ["gpü", "GPÜ"])
@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
async def test_a_server_with_letters_beyond_ascii_can_be_pinned(start, pin, coding):
    async with FaultUpstream() as one, FaultUpstream() as two:
        one.script = two.script = OK
        snapshot = snapshot_of([one, two])
        table = msgspec.structs.replace(snapshot.table, pins={"gpü": 1})
        async with (
            start(msgspec.structs.replace(snapshot, table=table)) as running,
            await connect("127.0.0.1", running.port) as client,
        ):
            asked = request("POST", "/api/show", SHOW, [("X-Ollama-Pin-Server", "PIN")])
            await client.send(asked.replace(b"PIN", pin.encode(coding)))
            answer = await client.answer()
            assert (answer.status, answer.header("x-fleet-backend")) == (200, "s1")


async def test_a_fault_of_ours_is_said_in_the_callers_dialect_and_written_down(start):
    snapshot = snapshot_of([])
    broken = msgspec.structs.replace(snapshot.table, models={"m:latest": (Route(7, RESIDENT, "m"),)})
    async with (
        start(msgspec.structs.replace(snapshot, table=broken)) as running,
        await connect("127.0.0.1", running.port) as client,
    ):
        await client.send(request("POST", "/v1/chat/completions", CHAT))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
        await running.settled()
        [row] = running.records()
        assert (row.status, row.outcome, row.error) == (500, "refused", "internal_error")
