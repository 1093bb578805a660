"""Faults of clients and their HTTP (C): each P0 case of the catalogue by its number, against real processes."""

from __future__ import annotations

import asyncio
import hashlib
import random
import statistics
import time
from collections.abc import Awaitable, Callable

import pytest

from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.processes import memory_bytes
from fleetproxy.testing.raw import Answer, RawClient, chunked, connect, request
from fleetproxy.testing.script import NDJSON_HEAD, Firehose, Keep, Rst, Send, Sleep, Stall, chunk, response
from fleetproxy.testing.stage import Stage, eventually
from tests.e2e.fault_cases import rounds

pytestmark = pytest.mark.asyncio(loop_scope="module")
OpenStage = Callable[..., Awaitable[Stage]]

CASES = {
    "C-1": "test_c01_no_smuggled_request_reaches_a_server",
    "C-2": "test_c02_one_framing_header_and_it_is_ours",
    "C-3": "test_c03_malformed_lengths_are_400",
    "C-4": "test_c04_a_malformed_chunk_never_becomes_a_whole_body",
    "C-5": "test_c05_a_short_body_never_becomes_a_whole_one",
    "C-8": "test_c08_pipelined_requests_keep_their_order",
    "C-12": "test_c12_control_bytes_in_headers_are_400",
    "C-13": "test_c13_hosts",
    "C-14": "test_c14_absolute_targets_choose_nothing",
    "C-15": "test_c15_strange_methods_are_405",
    "C-19": "test_c19_connection_strips_nothing_of_ours",
    "C-20": "test_c20_c21_silent_and_slow_heads_end",
    "C-21": "test_c20_c21_silent_and_slow_heads_end",
    "C-22": "test_c22_a_slow_body_ends",
    "C-26": "test_c26_leaving_mid_stream_is_seen_above_and_written_down",
    "C-27": "test_c27_leaving_before_the_first_byte_is_seen_above",
    "C-28": "test_c28_leaving_the_queue_means_never_dispatched",
    "C-29": "test_c29_leaving_during_a_retry_or_a_connect_leaves_nothing_behind",
    "C-30": "test_c30_a_storm_of_leavers",
    "C-31": "test_c31_a_slow_reader_throttles_the_server_and_costs_no_memory",
    "C-34": "test_c34_bodies_over_the_limit_are_413",
    "C-35": "test_c35_uploads_are_streamed",
    "C-36": "test_c36_many_large_bodies_are_admitted_by_bytes",
    "C-40": "test_c40_path_tricks_are_400",
    "C-41": "test_c41_paths_of_one_port_are_not_served_on_the_other",
    "C-43": "test_c43_upgrades_are_ignored",
}
CHAT = b'{"model":"m","messages":[]}'
LINE = b'{"model":"m","message":{"content":"x"},"done":false}\n'


async def raw(stage: Stage, data: bytes, *, method: str = "GET", within_s: float = 5.0) -> Answer:
    """Bytes as they are, one answer; what comes back need not be HTTP at all."""
    async with await stage.connect() as client:
        await client.send(data)
        try:
            return await client.answer(method=method, within_s=within_s)
        except AssertionError:
            return Answer()


INNER = b"POST /api/copy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nX-Smuggled: 1\r\n\r\n{}"


def _outer(framing: bytes, body: bytes) -> bytes:
    return b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%b\r\n%b" % (framing, body)


def _both(length: int, coding: bytes) -> bytes:
    return b"Content-Length: %d\r\nTransfer-Encoding: %b\r\n" % (length, coding)


SHOW = b'{"model":"m"}'
CHUNKED_SHOW = b"d\r\n" + SHOW + b"\r\n0\r\n\r\n"
SMUGGLES: dict[str, bytes] = {
    "CL.TE": _outer(_both(len(CHUNKED_SHOW) + len(INNER), b"chunked"), CHUNKED_SHOW + INNER),
    "TE.CL": _outer(_both(4, b"chunked"), CHUNKED_SHOW + INNER),
    "TE.TE identity": _outer(_both(len(SHOW), b"chunked, identity"), SHOW + INNER),
    "xchunked": _outer(_both(len(SHOW), b"xchunked"), SHOW + INNER),
    "comma chunked": _outer(_both(len(SHOW), b",chunked"), CHUNKED_SHOW + INNER),
    "vertical tab": _outer(_both(len(SHOW), b"\x0bchunked"), CHUNKED_SHOW + INNER),
    "two TE lines": _outer(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKED_SHOW + INNER),
    "TE identity": _outer(b"Transfer-Encoding: identity\r\nContent-Length: 13\r\n", SHOW + INNER),
    "underscore": _outer(b"Transfer_Encoding: chunked\r\nContent-Length: 13\r\n", SHOW + INNER),
    "space before colon": _outer(b"Transfer-Encoding : chunked\r\nContent-Length: 13\r\n", SHOW + INNER),
    "folded": _outer(b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 13\r\n", SHOW + INNER),
    "two CL": _outer(b"Content-Length: 13\r\nContent-Length: 0\r\n", SHOW + INNER),
    "CL list": _outer(b"Content-Length: 13, 0\r\n", SHOW + INNER),
    "CL plus": _outer(b"Content-Length: +13\r\n", SHOW + INNER),
    "upper coding": _outer(b"Transfer-Encoding: CHUNKED\r\n", CHUNKED_SHOW),
    "chunk extension": _outer(b"Transfer-Encoding: chunked\r\n", b'd;x="\r\n' + SHOW + b"\r\n0\r\n\r\n"),
    "chunk size 0x": _outer(b"Transfer-Encoding: chunked\r\n", b"0xd\r\n" + SHOW + b"\r\n0\r\n\r\n" + INNER),
    "chunk size minus": _outer(b"Transfer-Encoding: chunked\r\n", b"-d\r\n" + SHOW + b"\r\n0\r\n\r\n" + INNER),
    "chunk overlong": _outer(b"Transfer-Encoding: chunked\r\n", b"1" * 17 + b"\r\n" + SHOW + b"\r\n0\r\n\r\n"),
    "bare LF chunk": _outer(b"Transfer-Encoding: chunked\r\n", b"d\n" + SHOW + b"\n0\n\n" + INNER),
    "length in trailer": _outer(
        b"Transfer-Encoding: chunked\r\n", b"d\r\n" + SHOW + b"\r\n0\r\nContent-Length: 99\r\n\r\n"
    ),
    "HTTP/1.0 TE": _outer(b"Transfer-Encoding: chunked\r\n", CHUNKED_SHOW + INNER).replace(b"1.1", b"1.0", 1),
    "GET with body": b"GET /api/version HTTP/1.1\r\nHost: x.local\r\nContent-Length: 3\r\n\r\nabc" + INNER,
}


@pytest.mark.parametrize("what", SMUGGLES)
async def test_c01_no_smuggled_request_reaches_a_server(stage: Stage, what: str) -> None:
    """Whatever the reading: every request a server saw has its record, and heads are read once."""
    for _ in range(rounds(2, 50)):
        await raw(stage, SMUGGLES[what], within_s=1.5)
    await asyncio.sleep(0.05)
    sql = "select count(*) as n from requests where backend is not null"
    await asyncio.to_thread(stage.service.rows, sql)
    served = (await stage.count()) - stage.rows_before
    assert stage.seen() <= served
    for upstream in stage.upstreams.values():
        for seen in upstream.requests:
            assert len(seen.all("content-length")) + len(seen.all("transfer-encoding")) <= 1
            assert seen.header("transfer_encoding") is None
    await stage.recount()


@pytest.mark.parametrize("path", ["/api/chat", "/api/show", f"/api/blobs/sha256:{'b' * 64}"])
async def test_c02_one_framing_header_and_it_is_ours(stage: Stage, path: str) -> None:
    fields = (("Transfer-Encoding", "chunked"), ("Trailer", "X-T"), ("TE", "trailers"))
    async with await stage.connect() as client:
        await client.send(stage.request(path, None, fields) + chunked([b'{"model":', b'"m"}']))
        assert (await client.answer()).status == 200
    await stage.ask(path, CHAT)
    for upstream in stage.upstreams.values():
        for seen in upstream.requests:
            assert len(seen.all("content-length")) + len(seen.all("transfer-encoding")) == 1
            assert seen.body_complete
            assert seen.header("trailer") is None
            assert seen.header("te") is None


@pytest.mark.parametrize("length", ["+5", "-1", "0x5", "5_0", "", "5,5", "5 5", "9" * 20, "\xa05", "5.0", "1e1"])
async def test_c03_malformed_lengths_are_400(stage: Stage, length: str) -> None:
    answer = await raw(stage, request("POST", "/api/show", b"12345", [("Content-Length", length)]))
    assert answer.status in {400, 413} or (answer.status is None and answer.end in {"fin", "reset"})
    assert stage.seen() == 0
    await stage.recount()


BAD_CHUNKS = {
    "no size": b"\r\nxx\r\n0\r\n\r\n",
    "letters": b"zz\r\nxx\r\n0\r\n\r\n",
    "no line end": b"2\r\nxxx\r\n0\r\n\r\n",
    "sign": b"+2\r\nxx\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", BAD_CHUNKS)
@pytest.mark.parametrize("path", ["/api/chat", f"/api/blobs/sha256:{'b' * 64}"])
async def test_c04_a_malformed_chunk_never_becomes_a_whole_body(stage: Stage, path: str, what: str) -> None:
    opening = b"10\r\n" + b'{"model":"m"   }' + b"\r\n"
    data = stage.request(path, None, (("Transfer-Encoding", "chunked"),)) + opening + BAD_CHUNKS[what]
    await raw(stage, data)
    for upstream in stage.upstreams.values():
        assert not any(seen.body_complete for seen in upstream.requests)
    assert (await stage.record())["outcome"] in {"client_gone", "refused"}


@pytest.mark.parametrize("path", ["/api/chat", f"/api/blobs/sha256:{'b' * 64}"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_c05_a_short_body_never_becomes_a_whole_one(stage: Stage, path: str, how: str) -> None:
    client = await stage.connect()
    await client.send(stage.request(path, b'{"model":"m"', (("Content-Length", "500"),)))
    await asyncio.sleep(0.05)
    getattr(client, how)()
    assert (await stage.record())["outcome"] == "client_gone"
    for upstream in stage.upstreams.values():
        assert not any(seen.body_complete for seen in upstream.requests)
        for seen in upstream.requests:
            await eventually(lambda: seen.closed_s is not None, 1.0)  # noqa: B023


async def test_c08_pipelined_requests_keep_their_order(stage: Stage) -> None:
    stage["a"].choose = lambda number, _: [
        Sleep(0.03 if number == 1 else 0),
        Send(response(body=b"%d" % number)),
        Keep(),
    ]
    async with await stage.connect() as client:
        good = stage.request("/api/show", b'{"model":"solo"}')
        await client.send(good + stage.request("/api/show", b'{"model":"solo"}') + b"BROKEN\r\n\r\n")
        assert [(await client.answer()).body for _ in range(2)] == [b"1", b"2"]
        last = await client.answer()
        assert last.status in {400, None}
        assert await client.closed() in {"fin", "reset"}
    assert stage.seen() == 2


@pytest.mark.parametrize("byte", [*range(0x00, 0x09), *range(0x0B, 0x0D), *range(0x0E, 0x20), 0x7F])
async def test_c12_control_bytes_in_headers_are_400(stage: Stage, byte: int) -> None:
    for line in (b"X-A: one%ctwo" % byte, b"X%cA: one" % byte):
        data = request("POST", "/api/show", SHOW)
        answer = await raw(stage, data.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n", 1))
        assert answer.status in {400, None}
    assert stage.seen() == 0


async def test_c12_bad_names_are_400_and_high_bytes_pass_untouched(stage: Stage) -> None:
    for line in (b"X-A : one", b": one", b"X A: one"):
        data = request("POST", "/api/show", SHOW).replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n", 1)
        assert (await raw(stage, data)).status in {400, None}
    assert stage.seen() == 0
    answer = await stage.ask("/api/show", headers=(("X-High", "caf\xe9 \xff"),))
    assert answer.status in {200, 400}
    if answer.status == 200:
        assert stage["a"].requests[0].header("x-high") == "caf\xe9 \xff"
    else:
        await stage.recount()


HOSTS = {
    "none": b"",
    "two": b"Host: localhost\r\nHost: localhost\r\n",
    "two different": b"Host: localhost\r\nHost: other\r\n",
    "path": b"Host: a/b\r\n",
    "user": b"Host: user@localhost\r\n",
    "space": b"Host: a b\r\n",
    "port letters": b"Host: localhost:x\r\n",
    "fragment": b"Host: a#b\r\n",
    "empty": b"Host:\r\n",
}


@pytest.mark.parametrize("what", HOSTS)
async def test_c13_hosts(stage: Stage, what: str) -> None:
    data = b"POST /api/show HTTP/1.1\r\n%bContent-Length: 13\r\n\r\n%b" % (HOSTS[what], SHOW)
    answer = await raw(stage, data)
    assert answer.status == 400
    assert stage.seen() == 0


@pytest.mark.parametrize(
    "target", ["http://{}/api/show", "https://{}/api/show", "http://user@{}/api/show", "ftp://{}/x"]
)
async def test_c14_absolute_targets_choose_nothing(stage: Stage, target: str) -> None:
    """An open proxy would connect to the named host. Ours refuses, or asks its own fleet under that server's own name.

    The server below drops the authority of an absolute target, so that one beside a good Host cannot be refused.
    """
    async with FaultUpstream() as canary:
        named = f"127.0.0.1:{canary.port}"
        for authority in ("evil.example", named):
            answer = await raw(stage, request("POST", target.format(authority), SHOW))
            assert answer.status in {200, 400, 403, 404, 421}
        assert canary.connections == 0
    for upstream in stage.upstreams.values():
        for seen in upstream.requests:
            assert seen.all("host") == [f"127.0.0.1:{upstream.port}"]
            assert seen.target == "/api/show"
    await stage.recount()


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "FOO!BAR", "get", "PROPFIND", "BREW"])
async def test_c15_strange_methods_are_405(stage: Stage, method: str) -> None:
    answer = await raw(stage, request(method, "/api/show", headers=[("X-Canary", "echo-me")]))
    assert answer.status in ({405, None, 400} if method == "CONNECT" else {405})
    if answer.status == 405:
        assert answer.header("allow")
    assert b"echo-me" not in answer.raw
    assert stage.seen() == 0


async def test_c19_connection_strips_nothing_of_ours(stage: Stage) -> None:
    nominated = "close, X-Ollama-Api-Key, Authorization, X-Forwarded-For, Cookie, Host, X-Request-Id, Via"
    answer = await stage.ask("/api/show", headers=(("Connection", nominated), ("X-Forwarded-For", "6.6.6.6")))
    assert answer.status == 200
    (seen,) = stage["a"].requests
    assert len(seen.all("host")) == 1
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]
    assert seen.header("via")
    assert seen.header("cookie") is None


async def test_c20_c21_silent_and_slow_heads_end(stage: Stage) -> None:
    """Silence, half a preface, half a head, one header now and then: all closed by the header deadline."""
    openings = [b"", b"PRI * HTTP/2.0\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "]
    clients = [await stage.connect() for _ in range(rounds(10, 500)) for _ in openings]
    started = time.monotonic()
    for number, client in enumerate(clients):
        await client.send(openings[number % len(openings)])

    async def slow() -> None:
        async with await stage.connect() as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            while True:
                ended = await client.closed(within_s=2.0)
                if ended != "silent":
                    return
                try:
                    await client.send(b"X-Slow: 1\r\n")
                except OSError:
                    return

    async def well() -> None:
        while True:
            assert (await stage.look("/")).status == 200
            await asyncio.sleep(0.5)

    checking = asyncio.ensure_future(well())
    ended = await asyncio.gather(slow(), *(client.closed(within_s=14) for client in clients))
    assert "silent" not in ended
    assert time.monotonic() - started < 15
    assert not checking.done()
    checking.cancel()
    for client in clients:
        client.close()


async def test_c22_a_slow_body_ends(stage: Stage) -> None:
    """One byte, then silence beyond the idle limit of a body."""
    async with await stage.connect() as client:
        await client.send(stage.request("/api/chat", b"{", (("Content-Length", "500"),)))
        answer = await client.answer(within_s=5)
        assert answer.status in {408, None}
        assert await client.closed(within_s=5) in {"fin", "reset"}
    assert stage.seen() == 0
    assert (await stage.record())["outcome"] in {"refused", "client_gone"}


async def _leave(stage: Stage, number: int, how: str, opening: bool) -> float:
    """Seconds from a client's leaving to the upstream's close."""
    async with await stage.connect() as client:
        await client.send(stage.request("/api/chat", CHAT))
        await stage.arrived("a", number + 1)
        if opening:
            await client.until(LINE)
        left_s = time.monotonic()
        getattr(client, how)()
        return await stage.closed("a", number) - left_s


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_c26_leaving_mid_stream_is_seen_above_and_written_down(stage: Stage, how: str) -> None:
    stage["a"].script = [Send(NDJSON_HEAD), Send(chunk(LINE)), Send(chunk(LINE)), Stall()]
    delays_s = [await _leave(stage, number, how, opening=True) for number in range(rounds(10, 1000))]
    assert statistics.median(delays_s) < 0.25
    for record in await stage.records():
        assert record["outcome"] == "client_gone"
        assert record["bytes_out"] >= len(LINE)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("body", [CHAT, b'{"model":"m","messages":[],"stream":false}'], ids=["stream", "whole"])
async def test_c27_leaving_before_the_first_byte_is_seen_above(stage: Stage, how: str, body: bytes) -> None:
    stage["a"].script = [Stall()]
    delays_s = [await _leave(stage, number, how, opening=False) for number in range(rounds(10, 1000))]
    assert statistics.median(delays_s) < 0.25
    assert {record["outcome"] for record in await stage.records()} == {"client_gone"}


async def test_c28_leaving_the_queue_means_never_dispatched(open_stage: OpenStage) -> None:
    stage = await open_stage(upstreams={"a": FaultUpstream(("m",))}, servers={"a": {"max_concurrent": 1}}, processes=2)
    release = asyncio.Event()
    stage["a"].script = [Send(NDJSON_HEAD), Stall()]
    first = await stage.connect()
    await first.send(stage.request("/api/chat", CHAT))
    await eventually(lambda: len(stage["a"].requests) == 1)
    waiting = [await stage.connect() for _ in range(4)]
    for client in waiting:
        await client.send(stage.request("/api/chat", CHAT))
    await asyncio.sleep(0.2)
    assert len(stage["a"].requests) == 1
    for client in waiting[:3]:
        client.close()
    await asyncio.sleep(0.1)
    stage["a"].script = [Send(response(body=b'{"done":true}')), Keep()]
    first.close()
    assert (await waiting[3].answer()).status == 200
    waiting[3].close()
    release.set()
    await asyncio.sleep(0.1)
    assert len(stage["a"].requests) == 2
    outcomes = [record["outcome"] for record in await stage.records()]
    assert outcomes == ["client_gone"] * 4 + ["ok"]
    await stage.settle()


async def test_c29_leaving_during_a_retry_or_a_connect_leaves_nothing_behind(stage: Stage) -> None:
    stage["a"].script, stage["b"].script = [Rst()], [Stall()]
    client = await stage.connect()
    await client.send(stage.request("/api/chat", CHAT))
    await eventually(lambda: len(stage["b"].requests) == 1)
    client.close()
    await eventually(lambda: stage["b"].requests[0].closed_s is not None, 1.0)
    async with stage["a"].deaf():
        client = await stage.connect()
        await client.send(stage.request("/api/chat", b'{"model":"solo"}'))
        await asyncio.sleep(0.1)
        client.close()
        assert [record["outcome"] for record in await stage.records()] == ["client_gone"] * 2


async def test_c30_a_storm_of_leavers(stage: Stage) -> None:
    stage["a"].script = [Send(NDJSON_HEAD), Send(chunk(LINE)), Stall()]
    count = rounds(100, 500)
    clients = [await stage.connect() for _ in range(count)]
    for client in clients:
        await client.send(stage.request("/api/chat", CHAT))
    await asyncio.gather(*(client.until(LINE) for client in clients))
    assert len(stage["a"].running()) == count
    for number, client in enumerate(clients):
        client.reset() if number % 2 else client.close()
    await eventually(lambda: not stage["a"].running(), 2.0, "every upstream closed")
    assert {record["outcome"] for record in await stage.records()} == {"client_gone"}


async def test_c31_a_slow_reader_throttles_the_server_and_costs_no_memory(stage: Stage) -> None:
    piece = chunk(b"x" * 65_536)
    stage["a"].script = [Send(NDJSON_HEAD), Firehose(piece, 1 << 30)]
    pids = [pid for name, pid in stage.service.pids().items() if name.startswith("proxy")]
    clients: list[RawClient] = []

    async def held(readers: int) -> int:
        """Memory of the proxies once so many readers have stopped reading and the server has stopped sending."""
        while len(clients) < readers:
            client = await stage.connect(receive_buffer_bytes=4096)
            clients.append(client)
            await client.send(stage.request("/api/chat", CHAT))
            await client.until(b"\r\n\r\n")
        sent = -1
        while sent != (sent := sum(seen.sent_bytes for seen in stage["a"].requests)):
            await asyncio.sleep(0.1)
        assert sent < readers * (24 << 20)
        return sum(map(memory_bytes, pids))

    warm, more = 2 * len(pids), rounds(8, 40)
    try:
        grown = -await held(warm) + await held(warm + more)
    finally:
        for client in clients:
            client.close()
    assert grown < more * (1 << 20), f"{grown / more / 1024:.0f} KiB for each reader"
    await eventually(lambda: not stage["a"].running(), 2.0)


async def test_c34_bodies_over_the_limit_are_413(open_stage: OpenStage) -> None:
    stage = await open_stage(limits={"body_bytes": 100_000})
    async with await stage.connect() as client:  # refused before any of it is read
        await client.send(stage.request("/api/chat", None, (("Content-Length", "100001"),)))
        assert (await client.answer()).status == 413
    async with await stage.connect() as client:
        await client.send(stage.request("/api/chat", None, (("Transfer-Encoding", "chunked"),)))
        try:
            for _ in range(20):
                await client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            await client.send(b"0\r\n\r\n")
        except OSError:
            pass  # cut off while we were sending: the answer may lie behind
        assert (await client.answer()).status in {413, None}
    assert (await stage.ask("/api/show", b'{"model":"m","pad":"%b"}' % (b"x" * 90_000))).status == 200
    assert stage.seen() == 1
    await stage.settle()


@pytest.mark.timeout(rounds(120, 1800))
async def test_c35_uploads_are_streamed(stage: Stage) -> None:
    total = rounds(64 << 20, 10 << 30)
    piece = random.Random(35).randbytes(1 << 20)
    digest = hashlib.sha256()
    pids = [pid for name, pid in stage.service.pids().items() if name.startswith("proxy")]
    before = sum(map(memory_bytes, pids))
    highest = before
    for _ in range(total // len(piece)):
        digest.update(piece)
    path = f"/api/blobs/sha256:{digest.hexdigest()}"
    async with await stage.connect() as client:
        await client.send(stage.request(path, None, (("Content-Length", str(total)),)))
        for number in range(total // len(piece)):
            await client.send(piece)
            if number % 16 == 0:
                highest = max(highest, sum(map(memory_bytes, pids)))
        assert (await client.answer(within_s=60)).status == 200
    seen = [found for upstream in stage.upstreams.values() for found in upstream.requests]
    assert [(found.body_bytes, found.body_sha256) for found in seen] == [(total, digest.hexdigest())]
    assert highest - before < 12 << 20


async def test_c36_many_large_bodies_are_admitted_by_bytes(open_stage: OpenStage) -> None:
    stage = await open_stage(
        limits={"body_bytes": 4 << 20, "buffered_bytes": 16 << 20}, timeouts={"first_byte_s": 20, "body_idle_s": 20}
    )
    body = b'{"model":"m","pad":"%b"}' % (b"x" * (2 << 20))
    stage["a"].script = [Sleep(0.5), Send(response(body=b"{}")), Keep()]
    pids = [pid for name, pid in stage.service.pids().items() if name.startswith("proxy")]
    before = sum(map(memory_bytes, pids))

    async def one() -> Answer:
        async with await stage.connect() as client:
            try:
                await client.send(stage.request("/api/chat", body))
            except OSError:
                pass
            return await client.answer(within_s=20)

    answers = await asyncio.gather(*(one() for _ in range(rounds(24, 100))))
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {200, 503, None}
    assert statuses.count(200) >= 5
    assert statuses.count(503) >= 1
    assert all(answer.header("retry-after") for answer in answers if answer.status == 503)
    assert sum(map(memory_bytes, pids)) - before < 96 << 20
    await stage.settle()


TRICKS = [
    "//api/users",
    "/api//tags",
    "/api/%2e%2e/x",
    "/api/..%2f",
    "/api/../api/show",
    "/api/./show",
    "/api;x/users",
    "/api/show;x",
    "/api/%00",
    "/api/show%00",
    "/api/%0d%0aX:1",
    "/api/%c0%ae%c0%ae/x/%2e",
    "/api\\show",
    "/api/%5cshow",
    "/api/%252e%252e/x",
    "/api/show/..",
    "/api/show/.",
    "/api%2fshow",
    "/%61pi/../users",
    "/v1/%2e%2e/api/users",
]


@pytest.mark.parametrize("target", TRICKS)
async def test_c40_path_tricks_are_400(stage: Stage, target: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await raw(stage, request(method, target, SHOW))
        assert answer.status in {400, 404}, (method, target)
    assert stage.seen() == 0


@pytest.mark.parametrize("target", ["/api/show/", "/API/show", "/api/Show", "/api/sh%6fw", "/api/show?x=%2e%2e/&y=;"])
async def test_c40_what_is_forwarded_is_what_was_asked_byte_for_byte(stage: Stage, target: str) -> None:
    answer = await raw(stage, stage.request(target, SHOW, recorded=False))
    found = [seen.target for upstream in stage.upstreams.values() for seen in upstream.requests]
    assert found in ([], [target])
    assert answer.status in {200, 400, 404}
    await stage.recount()


async def test_c41_paths_of_one_port_are_not_served_on_the_other(open_stage: OpenStage) -> None:
    port = await _free_port()
    stage = await open_stage(dashboard={"listen": f"127.0.0.1:{port}", "on_public_port": False})
    for path in ("/api/users", "/api/servers", "/api/auth/me", "/dashboard", "/api/settings/fleet", "/state"):
        assert (await stage.look(path)).status == 404, path
    for method, path in (("DELETE", "/api/delete"), ("POST", "/api/chat"), ("POST", "/v1/chat/completions")):
        async with await connect("127.0.0.1", port) as client:
            await client.send(request(method, path, b'{"model":"m"}'))
            assert (await client.answer(method=method)).status in {401, 404, 405}, path
    assert stage.seen() == 0


async def _free_port() -> int:
    async with FaultUpstream() as holder:
        return holder.port


@pytest.mark.parametrize(
    "fields",
    [
        (
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "x"),
        ),
        (("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")),
    ],
    ids=["websocket", "h2c"],
)
async def test_c43_upgrades_are_ignored(stage: Stage, fields: tuple[tuple[str, str], ...]) -> None:
    answer = await raw(stage, request("POST", "/api/show", SHOW, fields))
    assert answer.status in {200, 400, 403, 426}
    for upstream in stage.upstreams.values():
        for seen in upstream.requests:
            assert seen.header("upgrade") is None
            assert seen.header("http2-settings") is None or "http2-settings" not in (seen.header("connection") or "")
            assert "upgrade" not in (seen.header("connection") or "").lower()
    await stage.recount()
