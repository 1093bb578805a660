"""Each fault does what its name says, seen by a client that guesses nothing."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from fleetproxy.testing.fakes import Fake, Fault
from fleetproxy.testing.fakes.faults import NAMES
from fleetproxy.testing.raw import Answer, connect, exchange, request

CHAT = request("POST", "/api/chat", b'{"model":"llama3.2:3b","messages":[{"role":"user","content":"x"}]}')
WHOLE = request("POST", "/api/chat", b'{"model":"llama3.2:3b","stream":false,"messages":[{"role":"user"}]}')


async def ask(fake: Fake, data: bytes = CHAT, within_s: float = 5.0) -> Answer:
    return await exchange("127.0.0.1", fake.http.port, data, within_s=within_s)


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("model_missing", 404, b"model 'llama3.2:3b' not found"),
        ("error", 500, b"llama runner process"),
        ("unavailable", 503, b"server busy"),
        ("limited", 429, b"rate limit"),
    ],
)
async def test_status_faults_answer_once(ollama: Fake, name: str, status: int, body: bytes) -> None:
    ollama.faults.add(Fault(name=name))
    answer = await ask(ollama)
    assert (answer.status, answer.clean) == (status, True)
    assert body in answer.body
    assert (answer.header("retry-after") is not None) == (name == "limited")
    assert (await ask(ollama)).status == 200
    assert [row.fault for row in ollama.journal.rows] == [name, None]


async def test_reset_before_any_byte(ollama: Fake) -> None:
    ollama.faults.add(Fault(name="reset_before"))
    answer = await ask(ollama)
    assert (answer.end, answer.raw) == ("reset", b"")


async def test_reset_after_headers(ollama: Fake) -> None:
    ollama.faults.add(Fault(name="reset_after_headers", next=2))
    for data in (CHAT, WHOLE):
        answer = await ask(ollama, data)
        assert (answer.status, answer.end, answer.body) == (200, "reset", b"")


@pytest.mark.parametrize(("name", "end"), [("reset_mid", "reset"), ("cut", "fin")])
async def test_streams_break_after_their_pieces(ollama: Fake, name: str, end: str) -> None:
    ollama.faults.add(Fault(name=name, after=3))
    answer = await ask(ollama)
    assert (answer.status, answer.end, len(answer.body.splitlines())) == (200, end, 3)
    assert not answer.clean


@pytest.mark.parametrize("name", ["reset_mid", "cut", "short"])
async def test_whole_answers_break_in_the_middle(ollama: Fake, name: str) -> None:
    ollama.faults.add(Fault(name=name))
    answer = await ask(ollama, WHOLE)
    assert answer.status == 200
    assert 0 < len(answer.body) < int(answer.header("content-length") or 0)
    assert not answer.clean


async def test_short_promises_more_than_it_sends(ollama: Fake) -> None:
    ollama.faults.add(Fault(name="short"))
    answer = await ask(ollama)
    assert answer.header("content-length") == str(1 << 20)
    assert answer.end == "fin"


async def test_hang_and_stall_stay_silent_until_the_peer_leaves(ollama: Fake) -> None:
    for name, pieces in (("hang", 0), ("stall", 2)):
        ollama.faults.add(Fault(name=name))
        async with await connect("127.0.0.1", ollama.http.port) as client:
            await client.send(CHAT)
            got = await client.until(b"\n", within_s=5) if pieces else b""
            assert await client.closed(within_s=0.05) == "silent"
            assert bool(got) == bool(pieces)
        row = ollama.journal.rows[-1]
        async with asyncio.timeout(5):
            while row.finished_s is None:
                await asyncio.sleep(0.005)
        assert row.peer_closed_s is not None
        assert not row.complete


async def test_drip_sends_single_bytes(ollama: Fake) -> None:
    ollama.faults.add(Fault(name="drip", seconds=0.0))
    answer = await ask(ollama)
    assert answer.clean
    assert {len(piece) for _, piece in answer.pieces} == {1}


async def test_garbage_is_not_http(ollama: Fake) -> None:
    ollama.faults.add(Fault(name="garbage"))
    with pytest.raises(AssertionError, match="status line"):
        await ask(ollama)


@pytest.mark.parametrize(("name", "lines", "errors"), [("error_mid", 3, 1), ("no_marker", 2, 0)])
async def test_orderly_ends_without_the_end_marker(ollama: Fake, name: str, lines: int, errors: int) -> None:
    ollama.faults.add(Fault(name=name))
    answer = await ask(ollama)
    assert answer.clean
    values = [orjson.loads(line) for line in answer.body.splitlines()]
    assert len(values) == lines
    assert sum("error" in value for value in values) == errors
    assert not any(value.get("done") for value in values)


async def test_faults_choose_by_model_and_path(ollama: Fake) -> None:
    ollama.faults.add(Fault(name="error", model="other"))
    ollama.faults.add(Fault(name="error", path="/api/embed"))
    assert (await ask(ollama)).status == 200
    embed = request("POST", "/api/embed", b'{"model":"nomic-embed-text","input":"x"}')
    assert (await ask(ollama, embed)).status == 500


async def test_faults_are_set_and_read_over_http(ollama: Fake) -> None:
    port = ollama.http.port
    set_one = request("POST", "/__fake/unavailable", b'{"next":2}')
    assert (await exchange("127.0.0.1", port, set_one)).status == 200
    listed = orjson.loads((await exchange("127.0.0.1", port, request("GET", "/__fake/faults"))).body)
    assert listed["faults"][0]["next"] == 2
    assert listed["names"] == NAMES
    assert [(await ask(ollama)).status for _ in range(3)] == [503, 503, 200]
    wrong = await exchange("127.0.0.1", port, request("POST", "/__fake/unavailable", b'{"nxt":2}'))
    assert wrong.status == 400
    assert (await exchange("127.0.0.1", port, request("POST", "/__fake/nonsense", b"{}"))).status == 404
    rows = orjson.loads((await exchange("127.0.0.1", port, request("GET", "/__fake/requests"))).body)["requests"]
    assert [row["status"] for row in rows] == [503, 503, 200]
    assert rows[0]["body"].startswith('{"model"')


async def test_timed_faults_end_by_themselves(ollama: Fake) -> None:
    ollama.faults.add(Fault(name="error", for_s=0.03))
    assert (await ask(ollama)).status == 500
    async with asyncio.timeout(5):
        while (await ask(ollama)).status != 200:
            await asyncio.sleep(0.005)


async def test_the_peers_close_is_seen_while_a_model_generates() -> None:
    from fleetproxy.testing.fakes import Profile

    async with Fake(Profile(speed=1.0)) as fake:
        client = await connect("127.0.0.1", fake.http.port)
        async with client:
            await client.send(CHAT)
            await client.until(b"\n")
        row = fake.journal.rows[-1]
        async with asyncio.timeout(5):
            while row.peer_closed_s is None:
                await asyncio.sleep(0.005)
        assert fake.machine.engine.running == 0
        assert not fake.crashes
