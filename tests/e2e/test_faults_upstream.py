"""Faults of servers (U): each P0 case of the catalogue by its number, against real processes.

`FLEETPROXY_FAULT_ROUNDS=full` repeats what is random or racing as often as the catalogue asks.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import statistics
import time
import warnings
from collections.abc import AsyncIterable, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import ollama
import openai
import pytest
import trustme

from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.processes import memory_bytes
from fleetproxy.testing.raw import Answer
from fleetproxy.testing.script import (
    LAST_CHUNK,
    NDJSON_HEAD,
    SSE_HEAD,
    Fin,
    Firehose,
    HalfClose,
    Keep,
    Rst,
    Script,
    Send,
    Sleep,
    Stall,
    chunk,
    head,
    response,
)
from fleetproxy.testing.spawned import until
from fleetproxy.testing.stage import Stage, eventually
from tests.e2e.fault_cases import rounds

pytestmark = pytest.mark.asyncio(loop_scope="module")
OpenStage = Callable[..., Awaitable[Stage]]

CASES = {
    "U-1": "test_u01_refused_here_served_there",
    "U-2": "test_u02_refused_everywhere_is_a_quick_502",
    "U-3": "test_u03_nobody_online_is_503_with_retry_after",
    "U-4": "test_u04_a_connection_that_never_completes_is_given_up",
    "U-5": "test_u05_reset_before_any_byte_goes_once_to_another",
    "U-6": "test_u06_a_write_is_never_sent_twice",
    "U-7": "test_u07_kept_connections_closed_under_us_cost_nobody_anything",
    "U-8": "test_u08_reset_after_headers_is_a_visible_break_and_no_retry",
    "U-9": "test_u09_reset_mid_stream_gives_all_bytes_then_breaks",
    "U-10": "test_u10_fin_mid_stream_is_never_a_clean_end",
    "U-11": "test_u11_fin_before_content_length_is_visible",
    "U-13": "test_u13_silence_before_the_first_byte_is_504",
    "U-14": "test_u14_silence_mid_stream_breaks_off",
    "U-15": "test_u15_a_leaving_client_closes_the_upstream_within_250_ms",
    "U-20": "test_u20_garbage_is_502",
    "U-21": "test_u21_malformed_headers_are_never_forwarded",
    "U-22": "test_u22_two_lengths_are_502",
    "U-23": "test_u23_length_and_chunked_together_never_share_a_connection",
    "U-27": "test_u27_an_unasked_101_is_502",
    "U-31": "test_u31_model_missing_here_served_there",
    "U-32": "test_u32_404_only_when_every_cause_was_the_model",
    "U-33": "test_u33_other_404s_pass_through",
    "U-34": "test_u34_429_passes_through_with_retry_after",
    "U-35": "test_u35_hop_by_hop_headers_stop_here",
    "U-36": "test_u36_headers_that_would_reach_into_the_browser_stop_here",
    "U-38": "test_u38_a_fast_failing_server_attracts_no_traffic",
    "U-40": "test_u40_impossible_statuses_are_502_and_the_process_lives",
    "U-42": "test_u42_giant_heads_are_502_and_cost_no_memory",
    "U-43": "test_u43_an_endless_list_takes_nothing_down",
    "U-47": "test_u47_tls_is_verified_and_failures_are_502",
    "U-49": "tests/transport/test_resolver.py::test_names_that_hang_hold_up_no_other_name",
    "U-54": "test_u54_pins_are_strict_and_never_silent",
}

WRITES: dict[str, tuple[str, bytes]] = {
    "/api/pull": ("POST", b'{"model":"m"}'),
    "/api/push": ("POST", b'{"model":"m"}'),
    "/api/create": ("POST", b'{"model":"x","from":"m"}'),
    "/api/copy": ("POST", b'{"source":"m","destination":"x"}'),
    "/api/delete": ("DELETE", b'{"model":"m"}'),
    f"/api/blobs/sha256:{'a' * 64}": ("POST", b"weights"),
}
READS: dict[str, bytes] = {
    "/api/chat": b'{"model":"m","messages":[]}',
    "/api/generate": b'{"model":"m","prompt":"x"}',
    "/api/embed": b'{"model":"m","input":"x"}',
    "/api/show": b'{"model":"m"}',
    "/v1/chat/completions": b'{"model":"m","messages":[]}',
    "/v1/embeddings": b'{"model":"m","input":"x"}',
}
LINES = [b'{"model":"m","message":{"role":"assistant","content":"%d"},"done":false}\n' % number for number in range(8)]
LAST = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n'
OK = [Send(response(body=b'{"model":"m","done":true}')), Keep()]


def body_of(answer: Answer) -> str:
    return answer.body.decode(errors="replace")


@pytest.mark.parametrize("path", READS)
async def test_u01_refused_here_served_there(stage: Stage, path: str) -> None:
    stage["b"].script = OK
    await stage["a"].vanish()
    answer = await stage.ask(path, READS[path])
    assert answer.status == 200
    assert answer.header("x-fleet-backend") == "b"
    record = await stage.record()
    assert (record["backend"], record["outcome"]) == ("b", "ok")
    attempts = await stage.attempts(record)
    assert [(tried["backend"], tried["error"]) for tried in attempts][-2:] == [("a", "connect_failed"), ("b", None)]


async def test_u02_refused_everywhere_is_a_quick_502(stage: Stage) -> None:
    await stage["a"].vanish()
    await stage["b"].vanish()
    started = asyncio.get_running_loop().time()
    answer = await stage.ask()
    took_s = asyncio.get_running_loop().time() - started
    assert answer.status == 502
    assert '"error"' in body_of(answer)
    assert took_s < 1.0
    assert (await stage.record())["outcome"] == "backend_error"


async def test_u03_nobody_online_is_503_with_retry_after(open_stage: OpenStage) -> None:
    stage = await open_stage(upstreams={"a": FaultUpstream(("m",))}, poll={"interval_s": 0.2, "offline_threshold": 1})
    await stage["a"].vanish()
    await asyncio.to_thread(until, lambda: stage.service.status("/readyz") == 503, 10, "nobody online")
    answer = await stage.ask()
    assert answer.status == 503
    assert answer.header("retry-after")
    assert "no online servers available" in body_of(answer)
    assert (await stage.record())["outcome"] == "refused"


async def test_u04_a_connection_that_never_completes_is_given_up(stage: Stage) -> None:
    """A listener whose backlog is full drops SYNs, as a black hole does."""
    async with stage["a"].deaf():
        answer = await stage.ask(within_s=5)
        assert (answer.status, answer.header("x-fleet-backend")) == (200, "b")
        alone = await stage.ask(body=b'{"model":"solo"}', within_s=5)
        assert alone.status == 504
    first, second = await stage.records()
    assert 900 < first["total_ms"] < 2500
    assert 900 < second["total_ms"] < 2500


@pytest.mark.parametrize("path", READS)
async def test_u05_reset_before_any_byte_goes_once_to_another(stage: Stage, path: str) -> None:
    stage["a"].script, stage["b"].script = [Rst()], OK
    # A kept connection that breaks is tried once more on a fresh one: that is another case (U-7).
    await stage["a"].hang_up()
    answer = await stage.ask(path, READS[path])
    assert (answer.status, answer.header("x-fleet-backend")) == (200, "b")
    stage["b"].script = [Rst()]
    await stage["b"].hang_up()
    answer = await stage.ask(path, READS[path])
    assert answer.status == 502
    assert (len(stage["a"].requests), len(stage["b"].requests)) == (2, 2)
    assert [record["status"] for record in await stage.records()] == [200, 502]


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize("script", [[Rst()], [Fin()], [HalfClose(), Stall()]], ids=["reset", "fin", "half-close"])
async def test_u06_a_write_is_never_sent_twice(stage: Stage, path: str, script: Script) -> None:
    for upstream in stage.upstreams.values():
        upstream.script = script
    method, body = WRITES[path]
    answer = await stage.ask(path, body, method=method)
    assert answer.status == 502
    assert stage.seen() == 1


async def test_u07_kept_connections_closed_under_us_cost_nobody_anything(stage: Stage) -> None:
    chance = random.Random(7)
    for upstream in stage.upstreams.values():
        upstream.choose = lambda *_: [OK[0], Sleep(chance.uniform(0, 0.005)), Fin()]

    async def client(count: int) -> list[int | None]:
        statuses = []
        for _ in range(count):
            statuses.append((await stage.ask("/api/show", b'{"model":"m"}')).status)
            await asyncio.sleep(chance.uniform(0, 0.004))
        return statuses

    total = rounds(120, 2000)
    found = await asyncio.gather(*(client(total // 8) for _ in range(8)))
    assert {status for statuses in found for status in statuses} == {200}
    before = stage.seen()
    writes = [await stage.ask("/api/copy", WRITES["/api/copy"][1]) for _ in range(rounds(20, 200))]
    assert {answer.status for answer in writes} == {200}
    assert stage.seen() - before == len(writes)
    assert {record["backend"] for record in await stage.records()} <= {"a", "b"}


async def test_u08_reset_after_headers_is_a_visible_break_and_no_retry(stage: Stage) -> None:
    stage["a"].script = [Send(NDJSON_HEAD), Sleep(0.05), Rst()]
    answer = await stage.ask()
    assert answer.status == 200
    assert not answer.clean
    assert len(stage["b"].requests) == 0
    record = await stage.record()
    assert record["outcome"] == "truncated"
    assert record["status"] == 200


ENDS: dict[str, Script] = {"reset": [Sleep(0.02), Rst()], "fin": [Fin()]}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", ["ndjson", "sse", "raw"])
async def test_u09_reset_mid_stream_gives_all_bytes_then_breaks(stage: Stage, form: str, end: str) -> None:
    chance = random.Random(9)
    path = {"ndjson": "/api/chat", "sse": "/v1/chat/completions", "raw": "/api/show"}[form]
    opening = {"ndjson": NDJSON_HEAD, "sse": SSE_HEAD, "raw": head(200, [("Transfer-Encoding", "chunked")])}[form]
    for _ in range(rounds(4, 500)):
        pieces = LINES[: chance.randint(1, len(LINES))]
        if form == "sse":
            pieces = [b"data: " + piece.rstrip() + b"\n\n" for piece in pieces]
        steps: list[object] = [Send(opening)]
        for piece in pieces:
            steps += [Send(chunk(piece)), Sleep(0.001)]
        stage["a"].script = [*steps, *ENDS[end]]  # type: ignore[list-item]
        answer = await stage.ask(path, b'{"model":"m","stream":true}')
        assert not answer.clean
        assert answer.body.startswith(b"".join(pieces))
        rest = answer.body[len(b"".join(pieces)) :]
        assert (b'"error"' in rest) == (form != "raw")
        assert b"[DONE]" not in rest
    assert {record["outcome"] for record in await stage.records()} == {"truncated"}
    assert len(stage["b"].requests) == 0


async def test_u10_fin_mid_stream_is_never_a_clean_end(stage: Stage) -> None:
    """The vendors' clients must raise: an end without the end marker is an error to them."""
    stage["a"].script = [Send(NDJSON_HEAD), *(Send(chunk(line)) for line in LINES), Fin()]
    async with ollama.AsyncClient(host=stage.service.url) as client:
        got: list[object] = []
        with pytest.raises(ollama.ResponseError):
            await _collect(await client.chat("m", [], stream=True), got)
        assert len(got) == len(LINES)
    event = b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    stage["a"].script = [Send(SSE_HEAD), Send(chunk(event)), Send(chunk(event)), Fin()]
    async with openai.AsyncOpenAI(base_url=f"{stage.service.url}/v1", api_key="x", max_retries=0) as through:
        with pytest.raises(openai.APIError):
            await _collect(await through.chat.completions.create(model="m", messages=[], stream=True), [])
    orderly = [Send(NDJSON_HEAD), Send(chunk(LINES[0])), Send(LAST_CHUNK), Keep()]
    stage["a"].script = orderly  # ended by HTTP's rules, not by the dialect's
    answer = await stage.ask()
    assert not answer.clean
    assert b'"error"' in answer.body
    stage._rows += 2  # the two vendors' requests carry no id of ours


async def _collect(stream: AsyncIterable[object], into: list[object]) -> None:
    async for part in stream:
        into.append(part)


async def test_u11_fin_before_content_length_is_visible(stage: Stage) -> None:
    stage["a"].script = [Send(response(body=b'{"part":1', length=400)), Fin()]
    answer = await stage.ask("/api/show")
    assert not answer.clean
    assert answer.body == b'{"part":1'
    record = await stage.record()
    assert (record["outcome"], record["bytes_out"]) == ("truncated", 9)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/api/show"])
async def test_u13_silence_before_the_first_byte_is_504(stage: Stage, path: str) -> None:
    stage["a"].script = [Stall()]
    answer = await stage.ask(path, READS[path])
    assert answer.status == 504
    assert "timeout" in body_of(answer)
    await eventually(lambda: stage["a"].requests[0].closed_s is not None, 1.0)
    assert len(stage["b"].requests) == 0


async def test_u14_silence_mid_stream_breaks_off(stage: Stage) -> None:
    stage["a"].script = [Send(NDJSON_HEAD), Send(chunk(LINES[0])), Stall()]
    answer = await stage.ask()
    assert not answer.clean
    assert answer.body.startswith(LINES[0])
    assert b'"error"' in answer.body
    await eventually(lambda: stage["a"].requests[0].closed_s is not None, 1.0)
    assert (await stage.record())["outcome"] == "truncated"


@pytest.mark.parametrize("when", ["before the first byte", "mid-stream"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_u15_a_leaving_client_closes_the_upstream_within_250_ms(stage: Stage, when: str, how: str) -> None:
    opening = [] if when.startswith("before") else [Send(NDJSON_HEAD), Send(chunk(LINES[0]))]
    stage["a"].script = [*opening, Stall()]
    delays_s = []
    for number in range(rounds(8, 1000)):
        async with await stage.connect() as client:
            await client.send(stage.request("/api/chat"))
            await stage.arrived("a", number + 1)
            if opening:
                await client.until(LINES[0])
            else:
                await asyncio.sleep(0.03)
            left_s = time.monotonic()
            getattr(client, how)()
            delays_s.append(await stage.closed("a", number) - left_s)
    assert statistics.median(delays_s) < 0.25, delays_s
    assert {record["outcome"] for record in await stage.records()} == {"client_gone"}


GARBAGE = {
    "tls record": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "binary": bytes(range(255, -1, -1)) * 4,
    "http/0.9": b"<html>hello</html>\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half a line": b"HTTP/1.1 20",
    "wrong version": b"HTTP/3.0 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_u20_garbage_is_502(stage: Stage, what: str) -> None:
    stage["a"].script = [Send(GARBAGE[what]), Fin()]
    answer = await stage.ask(body=b'{"model":"solo"}')
    assert answer.status == 502
    assert GARBAGE[what][:8] not in answer.body


BAD_LINES = {
    "bare CR": b"X-A: one\rtwo",
    "NUL": b"X-A: one\0two",
    "no colon": b"X-A one",
    "empty name": b": one",
    "obs-fold": b"X-A: one\r\n two",
    "leading space": b" X-A: one",
    "space before colon": b"X-A : one",
    "control in name": b"X\x01A: one",
    "bell in value": b"X-A: one\x07two",
}


@pytest.mark.parametrize("what", BAD_LINES)
async def test_u21_malformed_headers_are_never_forwarded(stage: Stage, what: str) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%b\r\nContent-Length: 2\r\n\r\n{}" % BAD_LINES[what]
    stage["a"].script = [Send(raw), Keep()]
    answer = await stage.ask("/api/show", b'{"model":"solo"}')
    assert answer.status in {502, 200}
    if answer.status == 200:  # provably harmless: the field is gone, nothing of it came through
        assert answer.header("x-a") is None
    assert b"one" not in answer.raw.replace(b"none", b"")


@pytest.mark.parametrize("lengths", [(b"2", b"3"), (b"2, 3",), (b"+2",), (b"-2",), (b"0x2",), (b"2 2",), (b"",)])
async def test_u22_two_lengths_are_502(stage: Stage, lengths: tuple[bytes, ...]) -> None:
    fields = b"".join(b"Content-Length: %b\r\n" % length for length in lengths)
    stage["a"].script = [Send(b"HTTP/1.1 200 OK\r\n%b\r\n{}" % fields), Keep()]
    answer = await stage.ask("/api/show", b'{"model":"solo"}')
    assert answer.status == 502
    await eventually(lambda: stage["a"].requests[0].done)


async def test_u23_length_and_chunked_together_never_share_a_connection(stage: Stage) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{ }\n\r\n0\r\n\r\n"
    stage["a"].script = [Send(raw), Keep()]
    for _ in range(3):
        answer = await stage.ask("/api/show", b'{"model":"solo"}')
        assert answer.status == 502 or (answer.body == b"{ }\n" and answer.clean)
    assert len({seen.connection for seen in stage["a"].requests}) == 3


async def test_u27_an_unasked_101_is_502(stage: Stage) -> None:
    stage["a"].script = [
        Send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        Stall(),
    ]
    answer = await stage.ask("/api/show", b'{"model":"solo"}')
    assert answer.status == 502
    await eventually(lambda: stage["a"].requests[0].closed_s is not None, 1.0)


MISSING = response(404, b'{"error":"model \'m\' not found"}')


@pytest.mark.parametrize("path", READS)
async def test_u31_model_missing_here_served_there(stage: Stage, path: str) -> None:
    stage["a"].script, stage["b"].script = [Send(MISSING), Keep()], OK
    answer = await stage.ask(path, READS[path])
    assert (answer.status, answer.header("x-fleet-backend")) == (200, "b")
    record = await stage.record()
    attempts = await stage.attempts(record)
    assert [(tried["backend"], tried["status"]) for tried in attempts][-2:] == [("a", 404), ("b", 200)]


async def test_u32_404_only_when_every_cause_was_the_model(stage: Stage) -> None:
    stage["a"].script = stage["b"].script = [Send(MISSING), Keep()]
    answer = await stage.ask()
    assert answer.status == 404
    assert "not found" in body_of(answer)
    stage["b"].script = [Send(response(500, b'{"error":"broken"}')), Keep()]
    mixed = await stage.ask()
    assert mixed.status in {500, 502, 503}


@pytest.mark.parametrize(
    "answer", [response(404, b"404 page not found", [("Content-Type", "text/plain")]), response(404, b"{}")]
)
async def test_u33_other_404s_pass_through(stage: Stage, answer: bytes) -> None:
    stage["a"].script = [Send(answer), Keep()]
    found = await stage.ask()
    assert found.status == 404
    assert found.body == answer.partition(b"\r\n\r\n")[2]
    assert len(stage["b"].requests) == 0


RETRY_AFTER = ["2", "Fri, 31 Dec 2066 23:59:59 GMT", "soon", "-5", "1e12"]


async def test_u34_429_passes_through_with_retry_after(open_stage: OpenStage) -> None:
    """A server of its own for each value, because each is then left in peace for a while."""
    models = [f"m{number}" for number in range(len(RETRY_AFTER))]
    upstreams = {f"s{number}": FaultUpstream((name,), resident=(name,)) for number, name in enumerate(models)}
    spare = FaultUpstream(models)
    stage = await open_stage(upstreams={**upstreams, "spare": spare})
    for number, value in enumerate(RETRY_AFTER):
        name = f"s{number}"
        fields = [("Content-Type", "application/json"), ("Retry-After", value)]
        stage[name].script = [Send(response(429, b'{"error":"slow down"}', fields)), Keep()]
        body = b'{"model":"m%d"}' % number
        answer = await stage.ask(body=body)
        assert (answer.status, answer.body) == (429, b'{"error":"slow down"}')
        assert answer.header("retry-after") == value
        assert len(stage[name].requests) == 1
        if number == 0:  # two seconds of peace: the next one goes to the spare
            assert (await stage.ask(body=body)).header("x-fleet-backend") == "spare"
    await stage.settle()


async def test_u35_hop_by_hop_headers_stop_here(stage: Stage) -> None:
    fields = [
        ("Connection", "x-secret-hop, keep-alive"),
        ("X-Secret-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Trailer", "X-T"),
        ("Upgrade", "h2c"),
        ("X-Kept", "yes"),
    ]
    stage["a"].script = [Send(response(200, b"{}", fields)), Keep()]
    answer = await stage.ask("/api/show", b'{"model":"solo"}')
    names = {name.lower() for name, _ in answer.headers}
    assert "x-kept" in names
    assert not names & {name.lower() for name, _ in fields[:-1]} - {"connection", "keep-alive"}
    assert answer.header("keep-alive") != "timeout=5"
    assert "x-secret-hop" not in (answer.header("connection") or "")


async def test_u36_headers_that_would_reach_into_the_browser_stop_here(stage: Stage) -> None:
    fields = [
        ("Set-Cookie", "session=stolen"),
        ("Clear-Site-Data", '"*"'),
        ("Strict-Transport-Security", "max-age=1"),
        ("Alt-Svc", 'h3=":1"'),
        ("Refresh", "0; url=http://evil"),
        ("Service-Worker-Allowed", "/"),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Credentials", "true"),
    ]
    stage["a"].script = [Send(response(200, b"{}", fields)), Keep()]
    answer = await stage.ask("/api/show", b'{"model":"solo"}')
    assert answer.status == 200
    assert not {name.lower() for name, _ in answer.headers} & {name.lower() for name, _ in fields}


async def test_u38_a_fast_failing_server_attracts_no_traffic(open_stage: OpenStage) -> None:
    stage = await open_stage(routing={"eject_failures": 5, "retry_budget": 1.0}, poll={"interval_s": 5.0})
    # Both hold the model now: nothing but the failures tells them apart.
    stage["b"].resident = ["m:latest"]
    stage["a"].script = [Send(response(503, b'{"error":"busy"}')), Keep()]
    stage["b"].script = [Sleep(0.01), *OK]
    await stage.all_online()
    total = rounds(300, 1000)
    for _ in range(total // 10):
        await asyncio.gather(*(stage.ask("/api/show") for _ in range(10)))
    assert len(stage["a"].requests) < total * 0.1
    statuses = {record["status"] for record in await stage.records()}
    assert statuses <= {200, 503}


@pytest.mark.parametrize("status", ["000", "099", "1000", "-1", "2000", "20", "2oo", "", "999"])
async def test_u40_impossible_statuses_are_502_and_the_process_lives(stage: Stage, status: str) -> None:
    pids = stage.service.pids()
    stage["a"].script = [Send(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode()), Keep()]
    answer = await stage.ask("/api/show", b'{"model":"solo"}')
    assert answer.status == 502
    assert stage.service.pids() == pids


GIANTS = {
    "one 2 MiB header": b"X-A: " + b"a" * (2 << 20) + b"\r\n",
    "20 000 headers": b"".join(b"X-%d: a\r\n" % number for number in range(20_000)),
    "a 64 KiB cookie": b"Set-Cookie: " + b"a" * 65_536 + b"\r\n",
}


@pytest.mark.parametrize("what", GIANTS)
async def test_u42_giant_heads_are_502_and_cost_no_memory(stage: Stage, what: str) -> None:
    pids = [pid for name, pid in stage.service.pids().items() if name.startswith("proxy")]
    stage["a"].script = [Send(b"HTTP/1.1 200 OK\r\n" + GIANTS[what] + b"Content-Length: 2\r\n\r\n{}"), Keep()]
    await stage.ask("/api/show", b'{"model":"solo"}')
    before = sum(map(memory_bytes, pids))
    for _ in range(rounds(5, 50)):
        answer = await stage.ask("/api/show", b'{"model":"solo"}')
        assert answer.status == 502
    assert sum(map(memory_bytes, pids)) - before < 8 << 20


async def test_u43_an_endless_list_takes_nothing_down(stage: Stage) -> None:
    control = stage.service.pids()["control"]
    before = memory_bytes(control)
    endless = [Send(head(200, [("Content-Type", "application/json")])), Firehose(b'{"models":[' + b" " * 65536)]
    stage["a"].polls = {"/api/tags": endless, "/api/ps": endless}
    for _ in range(3):
        await asyncio.to_thread(stage.service.admin, "POST", "/api/poll")
    answer = await stage.look("/api/tags")
    assert (answer.status, answer.clean) == (200, True)
    assert b"m:latest" in answer.body
    assert memory_bytes(control) - before < 96 << 20
    assert stage.service.pids()["control"] == control


def _context(authority: trustme.CA, *names: str, expired: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    until = datetime.now(UTC) - timedelta(days=1) if expired else None
    authority.issue_cert(*names, not_after=until).configure_cert(context)
    return context


async def test_u47_tls_is_verified_and_failures_are_502(open_stage: OpenStage, tmp_path_factory: object) -> None:
    ours, strangers = trustme.CA(), trustme.CA()
    folder = tmp_path_factory.mktemp("tls")  # type: ignore[attr-defined]
    ours.cert_pem.write_to_path(str(folder / "ca.pem"))
    good = _context(ours, "127.0.0.1")
    secure = FaultUpstream(("m",), tls=good)
    stage = await open_stage(
        upstreams={"s": secure},
        servers={"s": {"tls_ca_file": str(folder / "ca.pem")}},
        poll={"interval_s": 600.0},
    )
    secure.script = [Send(response(body=b'{"ok":1}')), Fin()]
    assert (await stage.ask("/api/show")).body == b'{"ok":1}'
    old = _context(ours, "127.0.0.1")
    with warnings.catch_warnings():  # an old version is what this case is about
        warnings.simplefilter("ignore", DeprecationWarning)
        old.set_ciphers("DEFAULT@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1
    cases = {
        "expired": (_context(ours, "127.0.0.1", expired=True), 502),
        "wrong name": (_context(ours, "elsewhere.example"), 502),
        "self-signed": (_context(strangers, "127.0.0.1"), 502),
        "old version": (old, 502),
        "plaintext": (None, 502),
    }
    for what, (context, status) in cases.items():
        secure.tls = context
        secure.greeting = [] if context else [Send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), Fin()]
        await secure.hang_up()
        before = len(secure.requests)
        answer = await stage.ask("/api/show")
        assert answer.status == status, what
        assert "127.0.0.1" not in body_of(answer), what
        assert len(secure.requests) == before, what
    secure.tls, secure.greeting = None, [Stall()]
    answer = await stage.ask("/api/show")
    assert answer.status == 504
    secure.greeting = [Fin()]
    assert (await stage.ask("/api/show")).status == 502
    secure.tls, secure.greeting = good, ()
    secure.script = [Send(head(200, [("Content-Type", "application/json")]) + b'{"half":'), Fin()]
    cut = await stage.ask("/api/show")  # no close_notify and no length: whether it is whole cannot be known
    assert not cut.clean
    secure.script = [Send(response(body=b'{"ok":1}')), Fin()]
    assert (await stage.ask("/api/show")).status == 200


async def test_u54_pins_are_strict_and_never_silent(stage: Stage, open_stage: OpenStage) -> None:
    pinned = await stage.ask(headers=(("X-Ollama-Pin-Server", "B"),))
    assert (pinned.status, pinned.header("x-fleet-backend")) == (200, "b")
    unknown = await stage.ask(headers=(("X-Ollama-Pin-Server", "nowhere"),))
    assert unknown.status == 404
    assert stage.seen() == 1
    lenient = await open_stage(routing={"pin_fallback": True, "retry_budget": 1.0, "eject_failures": 1000})
    fallback = await lenient.ask(headers=(("X-Ollama-Pin-Server", "nowhere"),))
    assert fallback.status == 200
    assert fallback.header("x-fleet-pin")
