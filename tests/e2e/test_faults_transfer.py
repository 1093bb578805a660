"""Faults of transfer channels (T): each case of the catalogue by its number, against real processes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleetproxy.testing.processes import memory_bytes
from fleetproxy.testing.raw import Answer, RawClient, connect, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.stage import Stage
from tests.e2e.fault_cases import rounds

pytestmark = pytest.mark.asyncio(loop_scope="module")
OpenStage = Callable[..., Awaitable[Stage]]

CASES = {
    "T-1": "test_t01_each_end_has_one_winner",
    "T-2": "test_t02_a_used_channel_is_in_use_then_unknown",
    "T-3": "test_t03_waiting_ends_when_the_time_is_over",
    "T-4": "test_t04_both_ends_make_it_or_neither",
    "T-6": "test_t06_a_writer_that_dies_never_ends_cleanly_for_the_reader",
    "T-7": "test_t07_a_reader_that_dies_is_told_to_the_writer_at_once",
    "T-8": "test_t08_much_goes_through_in_little_memory",
    "T-9": "test_t09_channels_are_bounded_and_secret",
    "T-10": "test_t10_who_may_use_channels",
    "T-11": "test_t11_the_two_ends_may_come_to_different_processes",
}
Headers = tuple[tuple[str, str], ...]


async def made(stage: Stage, headers: Headers = ()) -> str:
    answer = await stage.ask("/api/transfer", b"", headers)
    assert answer.status == 200, answer
    value = json.loads(answer.body)
    assert set(value) == {"channel_id", "expires_at"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value["expires_at"])
    channel: str = value["channel_id"]
    return channel


async def read(stage: Stage, channel: str, headers: Headers = (), within_s: float = 15.0) -> Answer:
    return await stage.ask(f"/api/transfer/{channel}", None, headers, method="GET", within_s=within_s)


async def write(stage: Stage, channel: str, body: bytes, headers: Headers = (), within_s: float = 15.0) -> Answer:
    return await stage.ask(f"/api/transfer/{channel}", body, headers, within_s=within_s)


async def reading(stage: Stage, channel: str, **options: Any) -> RawClient:
    """A reader that waits."""
    client = await stage.connect(**options)
    await client.send(stage.request(f"/api/transfer/{channel}", None, method="GET"))
    return client


async def writing(stage: Stage, channel: str, *headers: tuple[str, str]) -> RawClient:
    """A writer that has sent its head."""
    client = await stage.connect()
    await client.send(stage.request(f"/api/transfer/{channel}", None, headers))
    return client


CHUNKED = ("Transfer-Encoding", "chunked")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_what_is_written_is_read(stage: Stage) -> None:
    for size in (0, 1, 65_536, 1_000_003):
        body = random.Random(size).randbytes(size)
        channel = await made(stage)
        got, sent = await asyncio.gather(read(stage, channel), write(stage, channel, body))
        assert (got.status, got.clean, got.body) == (200, True, body)
        assert (sent.status, json.loads(sent.body)) == (200, {"status": "ok"})
    records = await stage.records()
    assert {record["path"] for record in records} == {"/api/transfer", "/api/transfer/{channel_id}"}
    assert {record["family"] for record in records} == {"transfer"}
    assert records[-1]["bytes_in"] == records[-2]["bytes_out"] == 1_000_003


@pytest.mark.parametrize("first", ["reader", "writer"])
async def test_type_and_length_are_passed_on_whoever_comes_first(stage: Stage, first: str) -> None:
    channel = await made(stage)
    headers = (("Content-Type", "audio/wav; rate=16000"),)
    calls = [read(stage, channel), write(stage, channel, b"RIFF", headers)]
    tasks = []
    for call in calls if first == "reader" else reversed(calls):
        tasks.append(asyncio.ensure_future(call))
        await asyncio.sleep(0.05)
    got, sent = await asyncio.gather(*(tasks if first == "reader" else reversed(tasks)))
    assert (got.body, got.header("content-type"), got.header("content-length")) == (b"RIFF", headers[0][1], "4")
    assert got.header("x-content-type-options") == "nosniff"
    assert sent.status == 200


async def test_pieces_arrive_as_they_are_written(stage: Stage) -> None:
    channel = await made(stage)
    reader = await reading(stage, channel)
    writer = await writing(stage, channel, CHUNKED)
    await writer.send(chunk(b"one"))
    assert b"one" in await reader.until(b"one")
    await asyncio.sleep(0.05)
    await writer.send(chunk(b"two"))
    await reader.until(b"two")
    await writer.send(b"0\r\n\r\n")
    assert (await writer.answer(method="POST")).status == 200
    assert await reader.until(b"0\r\n\r\n")
    for client in (reader, writer):
        client.close()


async def test_a_writer_is_told_to_go_on_when_the_reader_is_there(stage: Stage) -> None:
    channel = await made(stage)
    writer = await writing(stage, channel, ("Expect", "100-continue"), ("Content-Length", "5"))
    assert await writer.receive(within_s=0.2) == b""
    reader = await reading(stage, channel)
    await writer.until(b"100 Continue\r\n\r\n")
    await writer.send(b"hello")
    assert (await writer.answer(method="POST")).status == 200
    answer = await reader.answer()
    assert (answer.body, answer.clean) == (b"hello", True)
    for client in (reader, writer):
        client.close()


async def test_t01_each_end_has_one_winner(stage: Stage) -> None:
    for _ in range(rounds(12, 1000)):
        channel = await made(stage)
        readers = [read(stage, channel) for _ in range(4)]
        writers = [write(stage, channel, b"%d" % number * 100) for number in range(4)]
        answers = await asyncio.gather(*readers, *writers)
        for side in (answers[:4], answers[4:]):
            assert sorted(answer.status or 0 for answer in side) == [200, 409, 409, 409]
        assert {answer.body for answer in answers if answer.status == 409} == {b'{"error":"transfer_in_use"}'}
        winner = next(number for number, answer in enumerate(answers[4:]) if answer.status == 200)
        assert next(answer.body for answer in answers[:4] if answer.status == 200) == b"%d" % winner * 100


async def test_t02_a_used_channel_is_in_use_then_unknown(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, transfer={"ttl_s": 1.0})
    channel = await made(stage)
    await asyncio.gather(read(stage, channel), write(stage, channel, b"x"))
    for answer in (await read(stage, channel), await write(stage, channel, b"x")):
        assert (answer.status, answer.body) == (409, b'{"error":"transfer_in_use"}')
    await asyncio.sleep(1.1)
    for answer in (await read(stage, channel), await write(stage, channel, b"x")):
        assert (answer.status, answer.body) == (404, b'{"error":"transfer_not_found"}')
    await stage.settle()


async def test_t03_waiting_ends_when_the_time_is_over(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, transfer={"ttl_s": 1.0})
    for end in (read, lambda *words: write(*words, b"x" * 10_000)):
        channel = await made(stage)
        began_s = time.monotonic()
        answer = await end(stage, channel)
        assert (answer.status, answer.body) == (410, b'{"error":"transfer_expired"}')
        assert 0.85 < time.monotonic() - began_s < 1.5
        late = await read(stage, channel)
        assert (late.status, late.body) == (410, b'{"error":"transfer_expired"}')
    await asyncio.sleep(1.1)
    assert (await read(stage, channel)).status == 404
    await stage.settle()


async def test_t04_both_ends_make_it_or_neither(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, transfer={"ttl_s": 0.3})
    outcomes = set()

    async def late(delay_s: float) -> None:
        channel = await made(stage)
        first = asyncio.ensure_future(read(stage, channel))
        await asyncio.sleep(delay_s)
        second = await write(stage, channel, b"now")
        statuses = ((await first).status, second.status)
        assert statuses in {(200, 200), (410, 410)}, statuses
        outcomes.add(statuses)

    rng = random.Random(4)
    for _ in range(rounds(8, 500)):
        await asyncio.gather(*(late(0.3 + rng.uniform(-0.02, 0.02)) for _ in range(20)))
    assert len(outcomes) == 2
    await stage.settle()


async def test_t06_a_writer_that_dies_never_ends_cleanly_for_the_reader(stage: Stage) -> None:
    for number in range(rounds(6, 300)):
        channel = await made(stage)
        framing = CHUNKED if number % 2 else ("Content-Length", "1000000")
        reader, writer = await reading(stage, channel), await writing(stage, channel, framing)
        data = b"some" * 100
        await writer.send(chunk(data) if number % 2 else data)
        await reader.until(data)
        writer.reset() if number % 3 else writer.close()
        assert await reader.closed(within_s=1.0) in {"fin", "reset"}
        reader.close()
    records = await stage.records()
    assert {record["outcome"] for record in records[1::3]} == {"truncated"}
    assert {record["outcome"] for record in records[2::3]} == {"client_gone"}


async def test_t06_a_reader_that_has_nothing_yet_is_told(stage: Stage) -> None:
    channel = await made(stage)
    reader, writer = await reading(stage, channel), await writing(stage, channel, ("Content-Length", "10"))
    await asyncio.sleep(0.1)
    writer.reset()
    answer = await reader.answer()
    assert (answer.status, answer.body, answer.clean) == (502, b'{"error":"transfer_failed"}', True)
    reader.close()


async def test_t07_a_reader_that_dies_is_told_to_the_writer_at_once(stage: Stage) -> None:
    for number in range(rounds(6, 300)):
        channel = await made(stage)
        reader, writer = await reading(stage, channel), await writing(stage, channel, ("Content-Length", "1000000"))
        await writer.send(b"x" * 5000)
        await reader.until(b"x" * 5000)
        began_s = time.monotonic()
        reader.reset() if number % 2 else reader.close()
        answer = await writer.answer(method="POST")
        assert (answer.status, answer.body) == (502, b'{"error":"transfer_failed"}')
        assert time.monotonic() - began_s < 0.25
        writer.close()


async def test_a_waiting_end_that_leaves_may_come_again(stage: Stage) -> None:
    for end in (reading, lambda *words: writing(*words, ("Content-Length", "3"))):
        channel = await made(stage)
        client = await end(stage, channel)
        await asyncio.sleep(0.15)
        client.close()
        await asyncio.sleep(0.15)
        got, sent = await asyncio.gather(read(stage, channel), write(stage, channel, b"abc"))
        assert (got.status, got.body, sent.status) == (200, b"abc", 200)


async def pour(writer: RawClient, megabytes: int, digest: Any) -> None:
    block = random.Random(1).randbytes(1024 * 1024)
    for number in range(megabytes):
        data = number.to_bytes(8) + block[8:]
        digest.update(data)
        await writer.send(data)


async def test_t08_much_goes_through_in_little_memory(stage: Stage) -> None:
    megabytes = rounds(64, 1024)
    await through(stage, 2)  # everything warm: pools, code, arenas
    pids = stage.service.pids()
    before = {name: memory_bytes(pid) for name, pid in pids.items() if name != "control"}
    peak = dict(before)
    await through(stage, megabytes, watch=lambda: watch(pids, peak))
    grown = {name: peak[name] - before[name] for name in before}
    # The kernel's, Granian's and our own windows; never what was sent.
    assert max(grown.values()) < 8 * 1024 * 1024, grown


def watch(pids: dict[str, int], peak: dict[str, int]) -> None:
    for name, most in peak.items():
        peak[name] = max(most, memory_bytes(pids[name]))


async def through(stage: Stage, megabytes: int, watch: Callable[[], None] = lambda: None) -> None:
    channel = await made(stage)
    reader = await reading(stage, channel, receive_buffer_bytes=64 * 1024)
    writer = await writing(stage, channel, ("Content-Length", str(megabytes * 1024 * 1024)))
    sent, got = hashlib.sha256(), hashlib.sha256()
    pouring = asyncio.ensure_future(pour(writer, megabytes, sent))
    head = await reader.head()
    assert head.status == 200
    left = megabytes * 1024 * 1024
    pieces = 0
    while left:
        piece = await reader.receive()
        assert piece
        got.update(piece)
        left -= len(piece)
        pieces += 1
        if pieces % 64 == 0:
            watch()
            await asyncio.sleep(0.002)  # a reader slower than the writer
    await pouring
    assert (await writer.answer(method="POST")).status == 200
    assert got.digest() == sent.digest()
    for client in (reader, writer):
        client.close()


async def test_t09_channels_are_bounded_and_secret(open_stage: OpenStage) -> None:
    keys = [{"name": name, "key": f"key-of-{name}"} for name in ("anna", "ben", "carl")]
    limits = {"channels": 9, "channels_per_key": 4, "ttl_s": 1.5}
    stage = await open_stage(processes=2, transfer=limits, keys=keys)

    async def make(name: str) -> Answer:
        return await stage.ask("/api/transfer", b"", (("Authorization", f"Bearer key-of-{name}"),))

    ids = set()
    for name in ("anna", "ben"):
        answers = [await make(name) for _ in range(6)]
        assert [answer.status for answer in answers] == [200] * 4 + [429] * 2
        assert answers[-1].body == b'{"error":"too_many_transfers"}'
        assert answers[-1].header("retry-after")
        ids |= {json.loads(answer.body)["channel_id"] for answer in answers[:4]}
    assert [(await make("carl")).status for _ in range(2)] == [200, 503]
    assert len(ids) == 8
    await asyncio.sleep(1.6)
    assert (await make("anna")).status == 200
    for channel in ids:
        await read(stage, channel, (("Authorization", "Bearer key-of-anna"),))
    await stage.settle()
    rows = await asyncio.to_thread(stage.service.rows, "select * from requests")
    said = stage.service.text() + json.dumps(rows, default=str) + await asyncio.to_thread(everything, stage.service)
    assert rows
    for channel in ids:
        assert channel not in said


def everything(service: Service) -> str:
    """What metrics and the state say."""
    return "".join(service.fetch("GET", path)[2].decode() for path in ("/metrics", "/api/plugins"))


async def test_t10_who_may_use_channels(open_stage: OpenStage) -> None:
    auth = {
        "api_key": "the-api-key-of-this-place",
        "client_key": "the-client-key-of-it",
        "api_http_roles": ["caller"],
        "client_http_roles": ["agent"],
        "trusted_proxies": ["127.0.0.1/32"],
    }
    client_keys = [{"name": "attic", "key": "the-key-of-the-attic"}]
    stage = await open_stage(processes=2, auth=auth, client_keys=client_keys)
    good: list[Headers] = [
        (("Authorization", "Bearer the-api-key-of-this-place"),),
        (("Authorization", "bearer the-client-key-of-it"),),
        (("Authorization", "Bearer the-key-of-the-attic"),),
        (("X-User-Roles", "guest, caller"),),
        (("X-User-Roles", "agent"),),
    ]
    bad: list[Headers] = [(), (("Authorization", "Bearer the-client-key-of-i"),), (("X-User-Roles", "Caller"),)]
    for headers in good:
        channel = await made(stage, headers)
        for wrong in bad:
            for answer in (await read(stage, channel, wrong), await write(stage, channel, b"x", wrong)):
                assert (answer.status, answer.body) == (401, b'{"error":"unauthorized"}')
        for other in good:
            channel = await made(stage, headers)
            got, sent = await asyncio.gather(read(stage, channel, other), write(stage, channel, b"x", headers))
            assert (got.status, sent.status) == (200, 200)
    await stage.settle()


async def test_t10_roles_of_strangers_are_nothing(open_stage: OpenStage) -> None:
    stage = await open_stage(auth={"client_key": "the-client-key", "client_http_roles": ["agent"]})
    answer = await stage.ask("/api/transfer", b"", (("X-User-Roles", "agent"),))
    assert answer.status == 401
    await stage.settle()


async def test_t10_a_channel_may_be_its_makers_alone(open_stage: OpenStage) -> None:
    keys = [{"name": name, "key": f"key-of-{name}"} for name in ("anna", "ben")]
    stage = await open_stage(transfer={"same_key": True}, keys=keys)
    anna, ben = ((("X-Ollama-Api-Key", f"key-of-{name}"),) for name in ("anna", "ben"))
    channel = await made(stage, anna)
    answer = await read(stage, channel, ben)
    assert (answer.status, answer.body) == (403, b'{"error":"forbidden"}')
    got, sent = await asyncio.gather(read(stage, channel, anna), write(stage, channel, b"x", anna))
    assert (got.status, sent.status) == (200, 200)
    await stage.settle()


async def test_t11_the_two_ends_may_come_to_different_processes(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2)
    for _ in range(12):
        channel = await made(stage)
        got, sent = await asyncio.gather(read(stage, channel), write(stage, channel, b"across"))
        assert (got.body, sent.status) == (b"across", 200)
    records = await stage.records()
    pairs = {
        (reader["process"], writer["process"]) for reader, writer in zip(records[1::3], records[2::3], strict=True)
    }
    assert any(reader != writer for reader, writer in pairs), pairs
    await stage.settle()


async def test_t12_running_transfers_outlive_a_drain_waiting_ones_do_not(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=1, timeouts={"drain_s": 5})
    channel, lonely = await made(stage), await made(stage)
    waiting = await reading(stage, lonely)
    reader, writer = await reading(stage, channel), await writing(stage, channel, ("Content-Length", "6"))
    await writer.send(b"abc")
    await reader.until(b"abc")
    stopping = asyncio.ensure_future(asyncio.to_thread(stage.service.stop))
    answer = await waiting.answer()
    assert (answer.status, answer.body) == (503, b'{"error":"draining"}')
    with contextlib.suppress(OSError):  # the listener may be closed already
        refused = await write(stage, lonely, b"x")
        assert refused.status in {503, None}
    await writer.send(b"def")
    assert (await writer.answer(method="POST")).status == 200
    await reader.until(b"def")
    assert await stopping == 0
    for client in (reader, writer, waiting):
        client.close()


async def test_t13_a_transfer_without_progress_is_broken_off(open_stage: OpenStage) -> None:
    stage = await open_stage(transfer={"idle_s": 0.5})
    channel = await made(stage)
    reader, writer = await reading(stage, channel), await writing(stage, channel, ("Content-Length", "100"))
    await writer.send(b"abc")
    await reader.until(b"abc")
    began_s = time.monotonic()
    answer = await writer.answer(method="POST")
    assert (answer.status, answer.body) == (502, b'{"error":"transfer_failed"}')
    assert await reader.closed() in {"fin", "reset"}
    assert 0.4 < time.monotonic() - began_s < 3.0
    for client in (reader, writer):
        client.close()
    await stage.settle()


async def test_t14_other_methods_are_refused_and_conditions_ignored(stage: Stage) -> None:
    channel = await made(stage)
    for method in ("HEAD", "PUT", "PATCH", "DELETE"):
        async with await stage.connect() as client:
            await client.send(request(method, f"/api/transfer/{channel}", b"" if method != "HEAD" else None))
            answer = await client.answer(method=method)
        assert (answer.status, answer.header("allow")) == (405, "GET, POST")
    conditions = (("Range", "bytes=1-2"), ("If-Match", '"x"'), ("If-None-Match", "*"))
    got, sent = await asyncio.gather(read(stage, channel, conditions), write(stage, channel, b"abcdef", conditions))
    assert (got.status, got.body, sent.status) == (200, b"abcdef", 200)


@pytest.mark.parametrize("name", ["x", "..%2f", "00000000-0000-0000-0000-000000000000", "a" * 300, "{channel_id}"])
async def test_ids_nobody_made_are_unknown(stage: Stage, name: str) -> None:
    async with await stage.connect() as client:
        await client.send(request("GET", f"/api/transfer/{name}"))
        answer = await client.answer()
    assert answer.status in {400, 404}
    if answer.status == 404:
        assert answer.body == b'{"error":"transfer_not_found"}'
    await stage.recount()


async def test_a_family_that_is_off_is_not_there(open_stage: OpenStage) -> None:
    stage = await open_stage(plugins=["llm"])
    for method, path in (("POST", "/api/transfer"), ("GET", "/api/transfer/x"), ("POST", "/api/mcp/id/x")):
        assert (await stage.look(path, method)).status == 404
    await stage.recount()
    await stage.settle()


async def test_one_process_killed_takes_its_ends_and_the_others_hear_it(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2)
    stage.service.allowed.append(re.compile("proxy-[01] ended"))
    ends = []
    for _ in range(8):
        channel = await made(stage)
        reader, writer = await reading(stage, channel), await writing(stage, channel, ("Content-Length", "100"))
        await writer.send(b"abc")
        await reader.until(b"abc")
        ends.append((reader, writer))
    os.kill(stage.service.pids()["proxy-1"], signal.SIGKILL)
    alive = 0
    for reader, writer in ends:
        how = await reader.closed(within_s=0.3)
        if how == "silent":
            alive += 1
            await writer.send(b"x" * 97)
            assert (await writer.answer(method="POST")).status == 200
        reader.close()
        writer.close()
    assert alive < len(ends)
    await connect_again(stage)
    await stage.recount()


async def connect_again(stage: Stage) -> None:
    for _ in range(8):
        client = await connect(stage.service.host, stage.service.port)
        client.close()
