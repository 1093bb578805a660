"""The relay against upstreams that fail in every way: what is tried again, what is not, and what the caller sees."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from fleetproxy.core.table import Access, Limits
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import connect, request
from fleetproxy.testing.script import (
    LAST_CHUNK,
    NDJSON_HEAD,
    SSE_HEAD,
    Fin,
    Keep,
    Rst,
    Send,
    Stall,
    chunk,
    head,
    response,
)
from tests.proxy.conftest import snapshot_of

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
UNARY = b'{"model":"m","messages":[],"stream":false}'
LINE = b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}\n'
DONE = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"prompt_eval_count":3,"eval_count":2}\n'
OK = [Send(response(body=b'{"ok":true}')), Keep()]
NOT_FOUND = [Send(response(404, b'{"error":"model \'m\' not found"}')), Keep()]


async def ask(port: int, body: bytes = UNARY, path: str = "/api/chat", headers: tuple[tuple[str, str], ...] = ()):
    async with await connect("127.0.0.1", port) as client:
        await client.send(request("POST", path, body, headers))
        return await client.answer()


async def test_an_answer_passes_through_unchanged_and_leaves_one_row(start):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port)
            assert (answer.status, answer.body, answer.clean) == (200, b'{"ok":true}', True)
            assert upstream.requests[0].body == UNARY
            assert upstream.requests[0].all("host") == [f"127.0.0.1:{upstream.port}"]
            [row] = running.records()
            assert (row.status, row.outcome, row.backend, row.model, row.bytes_in) == (200, "ok", "s0", "m", len(UNARY))
            assert answer.header("x-request-id") == row.request_id == upstream.requests[0].header("x-request-id")
            assert answer.header("x-fleet-route") == "model_loaded"


async def test_a_stream_arrives_piece_by_piece_byte_for_byte_with_its_usage_counted(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(NDJSON_HEAD + chunk(LINE)), Send(chunk(LINE) + chunk(DONE) + LAST_CHUNK), Keep()]
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port, CHAT)
            assert answer.body == LINE + LINE + DONE
            assert answer.clean
            [row] = running.records()
            assert (row.streamed, row.tokens_in, row.tokens_out, row.bytes_out) == (True, 3, 2, len(answer.body))


@pytest.mark.parametrize("fault", [[Rst()], [Fin()], NOT_FOUND, [Send(response(500, b"{}")), Keep()]])
async def test_a_read_goes_to_the_next_server_before_the_first_byte(start, fault):
    async with FaultUpstream() as bad, FaultUpstream() as good:
        bad.script, good.script = fault, OK
        snapshot = snapshot_of([bad, good])
        async with start(snapshot) as running:
            for _ in range(6):
                answer = await ask(running.port)
                assert (answer.status, answer.body) == (200, b'{"ok":true}')
            rows = running.records()
            assert len(rows) == 6
            retried = [row for row in rows if row.retries]
            assert retried, "the failing server was never asked"
            assert all([attempt.backend for attempt in row.attempts] == ["s0", "s1"] for row in retried)


async def test_a_refused_connection_is_tried_elsewhere_also_for_writes(start):
    async with FaultUpstream() as bad, FaultUpstream() as good:
        good.script = [Send(response(body=b"")), Keep()]
        snapshot = snapshot_of([bad, good])
        await bad.refuse()
        async with start(snapshot) as running:
            for _ in range(4):
                answer = await ask(running.port, b'{"source":"m","destination":"n"}', "/api/copy")
                assert answer.status == 200


async def test_a_write_is_never_sent_twice(start):
    async with FaultUpstream() as one, FaultUpstream() as two:
        one.script = two.script = [Rst()]
        async with start(snapshot_of([one, two])) as running:
            answer = await ask(running.port, b'{"source":"m","destination":"n"}', "/api/copy")
            assert answer.status == 502
            assert len(one.requests) + len(two.requests) == 1


async def test_refused_everywhere_is_502_and_never_not_found(start):
    async with FaultUpstream() as one, FaultUpstream() as two:
        snapshot = snapshot_of([one, two])
        await one.refuse()
        await two.refuse()
        async with start(snapshot) as running:
            answer = await ask(running.port)
            assert answer.status == 502
            assert "error" in json.loads(answer.body)
            [row] = running.records()
            assert (row.outcome, row.error, len(row.attempts)) == ("backend_error", "connect_failed", 2)


async def test_not_found_everywhere_is_not_found(start):
    async with FaultUpstream() as one, FaultUpstream() as two:
        one.script = two.script = NOT_FOUND
        async with start(snapshot_of([one, two])) as running:
            answer = await ask(running.port)
            assert answer.status == 404
            assert json.loads(answer.body)["error"].startswith("model 'm' not found on any available server")


async def test_a_404_that_is_not_about_the_model_passes_through(start):
    async with FaultUpstream() as one, FaultUpstream() as two:
        one.script = two.script = [Send(response(404, b"404 page", [("Content-Type", "text/plain")])), Keep()]
        async with start(snapshot_of([one, two])) as running:
            answer = await ask(running.port)
            assert (answer.status, answer.body) == (404, b"404 page")
            assert len(one.requests) + len(two.requests) == 1


@pytest.mark.parametrize(
    ("path", "script", "event"),
    [
        ("/api/chat", [Send(NDJSON_HEAD + chunk(LINE)), Rst()], b'{"error":'),
        ("/api/chat", [Send(NDJSON_HEAD + chunk(LINE)), Fin()], b'{"error":'),
        ("/api/chat", [Send(NDJSON_HEAD + chunk(LINE) + LAST_CHUNK), Keep()], b'{"error":'),
        ("/v1/chat/completions", [Send(SSE_HEAD + chunk(b'data: {"choices":[]}\n\n')), Rst()], b'data: {"error":'),
        (
            "/v1/chat/completions",
            [Send(SSE_HEAD + chunk(b'data: {"choices":[]}\n\n') + LAST_CHUNK), Keep()],
            b'data: {"error":',
        ),
    ],
)
async def test_a_broken_or_unfinished_stream_ends_visibly(start, path, script, event):
    async with FaultUpstream() as upstream:
        upstream.script = script
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port, b'{"model":"m","messages":[],"stream":true}', path)
            assert answer.status == 200
            assert event in answer.body
            assert not answer.clean
            await running.settled()
            [row] = running.records()
            assert row.outcome == "truncated"


async def test_a_short_body_is_cut_short_not_ended(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(response(body=b"abc", length=10)), Fin()]
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port)
            assert answer.body == b"abc"
            assert not answer.clean


async def test_a_kept_connection_that_the_server_closed_costs_the_caller_nothing(start):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream])) as running:
            assert (await ask(running.port)).status == 200
            # The next request on that connection meets a reset, the one on a fresh connection an answer.
            upstream.choose = lambda number, seen: [Rst()] if seen.connection == 1 else OK
            assert (await ask(running.port)).status == 200
            assert [row.retries for row in running.records()] == [0, 0]
            assert running.plane.trips.states() == {}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_caller_leaving_before_the_first_byte_closes_the_upstream(start, stream):
    async with FaultUpstream() as upstream:
        upstream.script = [Stall()]
        async with start(snapshot_of([upstream])) as running:
            client = await connect("127.0.0.1", running.port)
            await client.send(request("POST", "/api/chat", CHAT if stream else UNARY))
            async with asyncio.timeout(5):
                while not upstream.requests:
                    await asyncio.sleep(0.005)
            client.close()
            async with asyncio.timeout(5):
                while upstream.requests[0].closed_s is None:
                    await asyncio.sleep(0.005)
            await running.settled()
            [row] = running.records()
            assert (row.outcome, row.status, len(row.attempts)) == ("client_gone", 499, 1)


async def test_the_caller_leaving_mid_stream_closes_the_upstream(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(NDJSON_HEAD + chunk(LINE)), Stall()]
        async with start(snapshot_of([upstream])) as running:
            client = await connect("127.0.0.1", running.port)
            await client.send(request("POST", "/api/chat", CHAT))
            async with asyncio.timeout(5):
                while not running.plane.live or not next(iter(running.plane.live)).bytes_out:
                    await asyncio.sleep(0.005)
            client.close()
            await running.settled()
            async with asyncio.timeout(5):
                while upstream.requests[0].closed_s is None:
                    await asyncio.sleep(0.005)
            [row] = running.records()
            assert (row.outcome, row.bytes_out) == ("client_gone", len(LINE))


async def test_a_server_that_never_answers_is_given_up_at_the_limit(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Stall()]
        async with start(snapshot_of([upstream], limits=Limits(first_byte_s=0.2))) as running:
            answer = await ask(running.port)
            assert answer.status == 504
            [row] = running.records()
            assert row.error == "backend_timeout"


async def test_a_stream_that_stalls_is_cut_at_the_limit(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(NDJSON_HEAD + chunk(LINE)), Stall()]
        async with start(snapshot_of([upstream], limits=Limits(stream_idle_s=0.2))) as running:
            answer = await ask(running.port, CHAT)
            assert answer.body.startswith(LINE)
            assert b'{"error":' in answer.body
            assert not answer.clean
            await running.settled()
            [row] = running.records()
            assert (row.outcome, row.error) == ("truncated", "backend_stalled")


@pytest.mark.parametrize("status", [b"000", b"099", b"101", b"20", b"2oo", b"600", b"999", b"1000"])
async def test_an_impossible_status_is_502(start, status):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(b"HTTP/1.1 " + status + b" Odd\r\nContent-Length: 0\r\n\r\n"), Keep()]
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port)
            assert answer.status == 502


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"hello there, no http here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nNo colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        head(200, [("X", "y" * 40_000), ("Content-Length", "0")]),
        head(200, [*((f"X-{number}", "y") for number in range(200)), ("Content-Length", "0")]),
    ],
)
async def test_an_answer_that_is_not_http_we_pass_on_is_502(start, raw):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(raw), Stall()]
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port)
            assert answer.status == 502
            await running.settled()


async def test_headers_of_one_hop_and_cookies_do_not_reach_the_caller(start):
    async with FaultUpstream() as upstream:
        upstream.script = [
            Send(
                response(
                    200,
                    b"{}",
                    [
                        ("Content-Type", "application/json"),
                        ("Connection", "X-Secret, keep-alive"),
                        ("X-Secret", "1"),
                        ("Keep-Alive", "timeout=5"),
                        ("Set-Cookie", "fleet_session=evil"),
                        ("Access-Control-Allow-Origin", "*"),
                        ("X-Kept", "yes"),
                    ],
                )
            ),
            Keep(),
        ]
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port)
            names = {name.lower() for name, _ in answer.headers}
            assert "x-kept" in names
            assert not names & {"x-secret", "keep-alive", "set-cookie", "access-control-allow-origin", "connection"}


async def test_an_early_hint_is_swallowed(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + response(body=b"{}")), Keep()]
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port)
            assert (answer.status, answer.body, answer.interim) == (200, b"{}", [])


async def test_an_alias_rewrites_the_model_and_nothing_else(start):
    async with FaultUpstream(models=("llama3:8b",)) as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream], aliases={"fast": "llama3:8b"})) as running:
            answer = await ask(running.port, b'{ "stream": false,  "model" : "fast", "x": [1.0, 1e2]}')
            assert answer.status == 200
            assert upstream.requests[0].body == b'{ "stream": false,  "model" : "llama3:8b", "x": [1.0, 1e2]}'


async def test_a_servers_prefix_key_and_ipv6_address_are_used_and_the_callers_key_is_not(start):
    upstream = FaultUpstream()
    upstream.host = "::1"
    async with upstream:
        upstream.script = OK
        snapshot = snapshot_of([upstream])
        [routed] = snapshot.table.backends
        there = msgspec.structs.replace(routed.backend, path_prefix="/base/ollama", api_key="tok")
        table = msgspec.structs.replace(snapshot.table, backends=(msgspec.structs.replace(routed, backend=there),))
        async with start(msgspec.structs.replace(snapshot, table=table)) as running:
            headers = (("Authorization", "Bearer theirs"), ("x-api-key", "theirs"))
            answer = await ask(running.port, path="/api/chat?ts=1&a=%20", headers=headers)
            assert answer.status == 200
            [seen] = upstream.requests
            assert seen.target == "/base/ollama/api/chat?ts=1&a=%20"
            assert seen.all("host") == [f"[::1]:{upstream.port}"]
            assert (seen.all("authorization"), seen.all("x-api-key")) == (["Bearer tok"], [])


async def test_paths_the_operator_lets_through_go_to_a_server_of_the_model_and_others_nowhere(start):
    async with FaultUpstream(models=("n",)) as other, FaultUpstream() as upstream:
        other.script = upstream.script = OK
        async with start(snapshot_of([other, upstream], access=Access(passthrough=("/rerank",)))) as running:
            for path in ("/rerank", "/rerank/deep?x=1"):
                answer = await ask(running.port, b'{"model":"m"}', path)
                assert (answer.status, answer.body) == (200, b'{"ok":true}')
            for path in ("/rerankx", "/tokenize", "/api/blobs/x"):
                assert (await ask(running.port, b'{"model":"m"}', path)).status == 404
            assert [seen.target for seen in upstream.requests] == ["/rerank", "/rerank/deep?x=1"]
            assert other.requests == []
            assert [(row.endpoint, row.dialect) for row in running.records()] == [("/*", "openai")] * 2


async def test_an_upload_streams_through_and_is_asked_of_one_server_only(start):
    digest = "sha256:" + "a" * 64
    async with FaultUpstream() as one, FaultUpstream() as two:
        one.script = two.script = [Send(response(201, b"")), Keep()]
        async with start(snapshot_of([one, two])) as running:
            body = bytes(range(256)) * 4096
            answer = await ask(running.port, body, f"/api/blobs/{digest}")
            assert answer.status == 201
            [seen] = one.requests + two.requests
            assert (seen.body_bytes, seen.body_complete) == (len(body), True)
            [row] = running.records()
            assert row.bytes_in == len(body)


async def test_an_upload_that_breaks_off_reaches_the_server_as_incomplete(start):
    digest = "sha256:" + "b" * 64
    async with FaultUpstream() as upstream:
        async with start(snapshot_of([upstream])) as running:
            client = await connect("127.0.0.1", running.port)
            whole = request("POST", f"/api/blobs/{digest}", b"x" * 100_000)
            await client.send(whole[:-50_000])
            async with asyncio.timeout(5):
                while not upstream.requests or not upstream.requests[0].body_bytes:
                    await asyncio.sleep(0.005)
            client.close()
            await running.settled()
            async with asyncio.timeout(5):
                while upstream.requests[0].closed_s is None:
                    await asyncio.sleep(0.005)
            assert not upstream.requests[0].body_complete
            [row] = running.records()
            assert row.outcome == "client_gone"
