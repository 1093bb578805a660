"""Faults of MCP relays (M): each case of the catalogue by its number, against real processes and stock relays."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from fleetproxy.testing.raw import Answer, RawClient, request
from fleetproxy.testing.relay import FakeRelay
from fleetproxy.testing.stage import Stage, eventually
from tests.e2e.fault_cases import rounds

pytestmark = pytest.mark.asyncio(loop_scope="module")
OpenStage = Callable[..., Awaitable[Stage]]
Headers = tuple[tuple[str, str], ...]

CASES = {
    "M-1": "test_m01_equal_ids_of_different_callers_never_meet",
    "M-2": "test_m02_answers_nobody_asked_for_reach_nobody",
    "M-5": "test_m05_an_unknown_relay_is_said_to_be_offline",
    "M-7": "test_m07_a_caller_that_leaves_hurts_nobody_else",
    "M-8": "test_m08_a_caller_has_its_share_and_no_more",
    "M-10": "test_m10_a_token_goes_to_the_relay_and_nowhere_else",
}


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"result": {"params": request.get("params"), "method": request["method"]}}


@asynccontextmanager
async def relay(stage: Stage, relay_id: str = "", **options: Any) -> AsyncIterator[FakeRelay]:
    """A relay that has been told its id: from then on every process knows it."""
    url = f"ws://{stage.service.host}:{stage.service.port}/api/mcp/connect"
    async with await FakeRelay.dial(url, relay_id=relay_id or f"r-{uuid4().hex[:8]}", **options) as made:
        yield made


def rpc(method: str = "tools/list", identity: Any = 1, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": params}).encode()


async def post(stage: Stage, relay_id: str, body: bytes, headers: Headers = (), within_s: float = 10.0) -> Answer:
    return await stage.ask(f"/api/mcp/id/{relay_id}", body, headers, within_s=within_s)


def error_of(answer: Answer) -> tuple[int | None, str, str, Any]:
    """(status, nfrx's word, text, id), the shape checked."""
    assert answer.body.endswith(b"\n")
    said = json.loads(answer.body)
    assert list(said) == ["error", "id", "jsonrpc"]
    assert said["jsonrpc"] == "2.0"
    assert said["error"]["code"] == -32000
    assert set(said["error"]["data"]) == {"mcp", "req_id"}
    assert said["error"]["data"]["req_id"] == answer.header("x-request-id")
    return answer.status, said["error"]["data"]["mcp"], said["error"]["message"], said["id"]


async def test_a_call_goes_to_the_relay_and_its_answer_comes_back_as_it_is(stage: Stage) -> None:
    async with relay(stage) as fake:
        body = b' {"jsonrpc":"2.0", "id":1.50, "method":"tools/call","params":{"a":[1,  2], "\\u00e9":"\xc3\xa9"}} '
        asking = asyncio.ensure_future(post(stage, fake.id, body, (("Authorization", "Bearer t0ken"),)))
        opening = await fake.next("open")
        assert set(opening) == {"t", "sid", "req_id", "hint", "auth"}
        assert (opening["hint"], opening["auth"]) == ("tools/call", "t0ken")
        await asyncio.sleep(0.1)
        await fake.say("open.ok", sid=opening["sid"])
        text = await fake.socket.recv()
        assert text == '{"t":"rpc","sid":"%s","payload":%s}' % (opening["sid"], body.decode())  # noqa: UP031
        payload = '{"jsonrpc":"2.0","result":{"x":1.0,  "y":"\\u0041é"},"id":1.50}'
        await fake.raw('{"t":"rpc","sid":"%s","payload":%s}' % (opening["sid"], payload))  # noqa: UP031
        answer = await asking
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert answer.body.decode() == payload
        assert (await fake.next("close"))["msg"] == "done"
    record = await stage.record()
    assert (record["family"], record["endpoint"], record["outcome"]) == ("mcp", "/api/mcp/id/{id}", "ok")


async def test_w34_a_relay_that_has_its_id_is_known_to_every_process(stage: Stage) -> None:
    for _ in range(rounds(5, 100)):
        async with relay(stage) as fake:
            fake.serve(echo)
            answers = await asyncio.gather(*(post(stage, fake.id, rpc()) for _ in range(8)))
            assert [answer.status for answer in answers] == [200] * 8, answers


async def test_a_notification_is_delivered_and_accepted(stage: Stage) -> None:
    async with relay(stage) as fake:
        body = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
        asking = asyncio.ensure_future(post(stage, fake.id, body))
        sid, payload = await fake.call()
        answer = await asking
        assert (answer.status, answer.body) == (202, b"")
        assert payload == json.loads(body)
        await fake.reply(sid, payload, error={"code": -32000, "message": "Provider error"})
        fake.serve(echo)
        assert (await post(stage, fake.id, rpc())).status == 200


async def test_m01_equal_ids_of_different_callers_never_meet(stage: Stage) -> None:
    async with relay(stage) as fake:

        async def slowly(request: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(random.random() * 0.02)
            return echo(request)

        fake.serve(slowly)

        async def caller(name: int) -> None:
            header = (("Authorization", f"Bearer caller-{name}"),)
            for number in range(rounds(8, 500)):
                answer = await post(stage, fake.id, rpc("m", 7, mine=f"{name}-{number}"), header)
                assert answer.status == 200, answer
                said = json.loads(answer.body)
                assert said["id"] == 7
                assert said["result"]["params"] == {"mine": f"{name}-{number}"}

        await asyncio.gather(*(caller(name) for name in range(20)))


async def test_m02_answers_nobody_asked_for_reach_nobody(stage: Stage) -> None:
    async with relay(stage) as fake, relay(stage) as other:
        asking = asyncio.ensure_future(post(stage, fake.id, rpc("wait")))
        sid, payload = await fake.call()
        stolen = {"jsonrpc": "2.0", "id": 1, "result": "stolen"}
        for _ in range(3):
            await other.say("rpc", sid=sid, payload=stolen)  # another relay, though it knows the session
            await other.say("close", sid=sid, msg="done")
            await fake.say("rpc", sid=str(uuid4()), payload=stolen)
            await fake.say("rpc", payload=stolen)
            await fake.say("nonsense", sid="x")
        await asyncio.sleep(0.05)
        assert not asking.done()
        await fake.reply(sid, payload, result="mine")
        await fake.reply(sid, payload, result="twice")
        assert json.loads((await asking).body)["result"] == "mine"
        fake.serve(echo)
        other.serve(echo)
        for one in (fake, other):
            assert (await post(stage, one.id, rpc())).status == 200


async def test_m02_an_answer_after_the_time_is_nobodys(open_stage: OpenStage) -> None:
    stage = await open_stage(mcp={"timeout_s": 0.5})
    async with relay(stage) as fake:
        asking = asyncio.ensure_future(post(stage, fake.id, rpc(identity="late")))
        sid, payload = await fake.call()
        assert error_of(await asking) == (504, "MCP_TIMEOUT", "timeout waiting for response", "late")
        assert (await fake.next("close"))["sid"] == sid
        await fake.reply(sid, payload, result="late")
        fake.serve(echo)
        assert json.loads((await post(stage, fake.id, rpc())).body)["result"]["method"] == "tools/list"
        no_open = asyncio.ensure_future(post(stage, fake.id, rpc()))
        assert (await no_open).status == 200
    await stage.settle()


async def test_m04_ids_in_use_are_refused_without_a_key(stage: Stage) -> None:
    url = f"ws://{stage.service.host}:{stage.service.port}/api/mcp/connect"
    async with relay(stage, "kept") as fake:
        for wanted in ("kept", "a/b", "<b>", "x" * 65, "é"):
            with pytest.raises(ConnectionClosed) as closed:
                await FakeRelay.dial(url, relay_id=wanted)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "id in use")
        fake.serve(echo)
        assert (await post(stage, "kept", rpc())).status == 200
        async with await FakeRelay.dial(url) as anonymous:
            assert re.fullmatch(r"[0-9a-f-]{36}", anonymous.id)


async def test_m04_with_the_key_a_relay_takes_its_id_back(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, auth={"client_key": "the-client-key"})
    url = f"ws://{stage.service.host}:{stage.service.port}/api/mcp/connect"
    with pytest.raises(ConnectionClosed) as closed:
        await FakeRelay.dial(url, relay_id="tools", key="wrong")
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "unauthorized")
    async with relay(stage, "tools", key="the-client-key") as old:
        asking = asyncio.ensure_future(post(stage, "tools", rpc()))
        await old.call()
        async with relay(stage, "tools", key="the-client-key") as new:
            assert error_of(await asking)[:2] == (503, "PROVIDER_UNAVAILABLE")
            with pytest.raises(ConnectionClosed):
                await old.next("never")
            assert old.socket.close_reason == "superseded"
            new.serve(echo)
            assert (await post(stage, "tools", rpc())).status == 200
    await stage.settle()


async def test_m05_an_unknown_relay_is_said_to_be_offline(stage: Stage) -> None:
    for name in ("nobody", "x" * 100, "%41", "a%00b"[:3]):
        answer = await post(stage, name, b"not even JSON")
        assert error_of(answer) == (503, "PROVIDER_UNAVAILABLE", "relay offline", None)
        assert answer.header("retry-after")


#: Body -> (status, nfrx's word, the id that is told).
BODIES: list[tuple[bytes, int, str | None, Any]] = [
    (b"", 200, "MCP_SCHEMA_ERROR", None),
    (b"{", 200, "MCP_SCHEMA_ERROR", None),
    (b"[]", 200, "MCP_SCHEMA_ERROR", None),
    (b"null", 200, "MCP_SCHEMA_ERROR", None),
    (b'"x"', 200, "MCP_SCHEMA_ERROR", None),
    (b'[{"jsonrpc":"2.0","id":1,"method":"m"}]', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":1,"method":"m"} x', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":1,"method":"m"}{}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":1,"method":"m","x":"\xff"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":1,"method":"m","x":"\n"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":NaN,"method":"m"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":null,"method":"m"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":true,"method":"m"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":[1],"method":"m"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":{},"method":"m"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":"%b","method":"m"}' % (b"x" * 2000), 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"1.0","id":5,"method":"m"}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"id":5,"method":"m"}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":2.0,"id":5,"method":"m"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":"a\\u0062","method":""}', 200, "MCP_SCHEMA_ERROR", "ab"),
    (b'{"jsonrpc":"2.0","id":5,"method":7}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":"2.0","id":5,"method":"%b"}' % (b"m" * 300), 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":"2.0","id":5,"method":"m","params":1}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":"2.0","id":5,"method":"m","params":"x"}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":"2.0","id":5,"method":"m","params":null}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":"2.0","id":5}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":"2.0"}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":5,"result":1,"error":{}}', 200, "MCP_SCHEMA_ERROR", 5),
    (b'{"jsonrpc":"2.0","result":1}', 200, "MCP_SCHEMA_ERROR", None),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 200, "MCP_SCHEMA_ERROR", None),
    (b'{"jsonrpc":"2.0","id":0,"method":"m"}', 200, None, 0),
    (b'{"jsonrpc":"2.0","id":-1,"method":"m"}', 200, None, -1),
    (b'{"jsonrpc":"2.0","id":1.50,"method":"m"}', 200, None, 1.5),
    (b'{"jsonrpc":"2.0","id":9007199254740993,"method":"m"}', 200, None, 9007199254740993),
    (b'{"jsonrpc":"2.0","id":"","method":"m"}', 200, None, ""),
    (b'{"jsonrpc":"2.0","id":"\xc3\xa9","method":"m","params":{}}', 200, None, "é"),
    (b'{"jsonrpc":"2.0","id":5,"method":"m","params":[]}', 200, None, 5),
    (b'{"jsonrpc":"2.0","method":"notifications/x"}', 202, None, None),
    (b'{"jsonrpc":"2.0","id":5,"result":null}', 202, None, None),
    (b'{"jsonrpc":"2.0","id":5,"error":{"code":1,"message":"x"}}', 202, None, None),
]


async def test_m06_bodies_that_are_no_call(stage: Stage) -> None:
    async with relay(stage) as fake:
        fake.serve(echo)
        for body, status, word, identity in BODIES:
            answer = await post(stage, fake.id, body)
            assert answer.status == status, (body[:60], answer)
            if word is not None:
                assert error_of(answer) == (status, word, "invalid request", identity), body[:60]
            elif status == 200:
                assert json.loads(answer.body)["id"] == identity, body[:60]
            else:
                assert answer.body == b""


async def test_m06_ids_in_errors_are_the_bytes_that_came(open_stage: OpenStage) -> None:
    stage = await open_stage(mcp={"timeout_s": 0.3})
    async with relay(stage) as fake:
        for raw in (b"1.50", b"1e400", b"12345678901234567890123", b'"a\\u0062"', b"-0", b'"<&>"'):
            answer = await post(stage, fake.id, b'{"jsonrpc":"2.0","id":%b,"method":"m"}' % raw)
            assert answer.status == 504
            assert b'"id":%b,' % raw in answer.body
        assert fake.id
    await stage.settle()


async def test_m06_bodies_that_are_too_large(open_stage: OpenStage) -> None:
    stage = await open_stage(mcp={"max_request_bytes": 50_000})
    async with relay(stage) as fake:
        fake.serve(echo)
        for headers in ((), (("Transfer-Encoding", "chunked"),)):
            body = rpc(x="y" * 60_000)
            sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if headers else body
            answer = await post(stage, fake.id, sent, headers)
            assert error_of(answer)[:2] == (413, "MCP_LIMIT_EXCEEDED")
    await stage.settle()


async def test_m07_a_caller_that_leaves_hurts_nobody_else(stage: Stage) -> None:
    async with relay(stage) as fake:
        slow = asyncio.ensure_future(post(stage, fake.id, rpc("slow")))
        slow_sid, slow_request = await fake.call()
        for number in range(rounds(6, 200)):
            client = await leaving(stage, fake.id)
            sid, _ = await fake.call()
            await asyncio.sleep(0.1)  # long enough under way to be watched
            began_s = time.monotonic()
            client.reset() if number % 2 else client.close()
            assert (await fake.next("close", within_s=1.0))["sid"] == sid
            assert time.monotonic() - began_s < 0.1
        await fake.reply(slow_sid, slow_request, result="still here")
        assert json.loads((await slow).body)["result"] == "still here"
    assert [record["outcome"] for record in await stage.records()].count("client_gone") == rounds(6, 200)


async def leaving(stage: Stage, relay_id: str) -> RawClient:
    client = await stage.connect()
    await client.send(stage.request(f"/api/mcp/id/{relay_id}", rpc("leave")))
    return client


async def test_m08_a_caller_has_its_share_and_no_more(stage: Stage) -> None:
    anna, ben = ((("Authorization", f"Bearer {name}"),) for name in ("anna", "ben"))
    async with relay(stage) as fake:
        running = [asyncio.ensure_future(post(stage, fake.id, rpc(), anna)) for _ in range(16)]
        calls = [await fake.call() for _ in running]
        answer = await post(stage, fake.id, rpc(identity=17), anna)
        assert error_of(answer) == (429, "LIMIT_EXCEEDED", "too many concurrent calls", 17)
        for headers in (ben, ()):
            other = asyncio.ensure_future(post(stage, fake.id, rpc(), headers))
            sid, asked = await fake.call()
            await fake.reply(sid, asked, result="yes")
            assert (await other).status == 200
        notice = asyncio.ensure_future(post(stage, fake.id, b'{"jsonrpc":"2.0","method":"notifications/x"}', anna))
        await fake.call()
        assert (await notice).status == 202
        for sid, asked in calls:
            await fake.reply(sid, asked, result="done")
        assert {answer.status for answer in await asyncio.gather(*running)} == {200}
        again = asyncio.ensure_future(post(stage, fake.id, rpc(), anna))
        sid, asked = await fake.call()
        await fake.reply(sid, asked, result="again")
        assert (await again).status == 200


async def test_m09_answers_that_are_none(stage: Stage) -> None:
    async with relay(stage) as fake:
        for reply in (
            [("close", {"msg": "done"})],
            [("rpc", {}), ("close", {})],
            [("rpc", {"payload": None}), ("close", {})],
            [("rpc", {"payload": "event: message\ndata: {}"}), ("close", {})],
            [("rpc", {"payload": [1]})],
        ):
            asking = asyncio.ensure_future(post(stage, fake.id, rpc(identity="x")))
            sid, _ = await fake.call()
            for t, fields in reply:
                await fake.say(t, sid=sid, **fields)
            said = error_of(await asking)
            assert said == (502, "MCP_UPSTREAM_ERROR", "relay closed the call without an answer", "x")
        for reply in ([("rpc", {"payload": {}})], [("close", {})], [("open.fail", {"code": "X"})]):
            asking = asyncio.ensure_future(post(stage, fake.id, rpc(identity="y")))
            sid = (await fake.next("open"))["sid"]
            for t, fields in reply:
                await fake.say(t, sid=sid, **fields)
            assert error_of(await asking) == (503, "MCP_PROVIDER_UNAVAILABLE", "open failed", "y")
        fake.serve(echo)
        assert (await post(stage, fake.id, rpc())).status == 200


async def test_m09_large_answers_pass_up_to_the_limit(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, mcp={"max_response_bytes": 3_000_000})
    async with relay(stage) as fake:
        fake.serve(lambda request: {"result": "z" * request["params"]["size"]})
        answer = await post(stage, fake.id, rpc(size=2_900_000))
        assert (answer.status, len(json.loads(answer.body)["result"])) == (200, 2_900_000)
        answer = await post(stage, fake.id, rpc(size=3_000_001, identity=3))
        assert error_of(answer) == (200, "MCP_LIMIT_EXCEEDED", "response too large", 3)
        assert (await post(stage, fake.id, rpc(size=1))).status == 200
    await stage.settle()


async def test_m09_frames_for_a_stock_relay_stay_within_its_limit(stage: Stage) -> None:
    async with relay(stage) as fake:
        fake.serve(lambda request: {"result": len(request["params"]["x"])})
        base = len(rpc(x=""))
        envelope = len('{"t":"rpc","sid":"","payload":}') + 36
        edge = 32768 - envelope - base
        for size in (edge - 1, edge):
            answer = await post(stage, fake.id, rpc(x="q" * size))
            assert (answer.status, json.loads(answer.body)["result"]) == (200, size)
        for size in (edge + 1, 100_000, 2_000_000):
            status, word, text, identity = error_of(await post(stage, fake.id, rpc(x="q" * size, identity="big")))
            assert (status, word, identity) == (413, "MCP_LIMIT_EXCEEDED", "big")
            assert "32768" in text
        assert (await post(stage, fake.id, rpc(x="1"))).status == 200


async def test_m10_a_token_goes_to_the_relay_and_nowhere_else(open_stage: OpenStage) -> None:
    keys = [{"name": "anna", "key": "key-of-anna-which-is-long"}]
    stage = await open_stage(processes=2, keys=keys, log={"level": "debug", "format": "json"})
    canary = f"canary-{uuid4().hex}"
    async with relay(stage) as fake:
        fake.serve(echo)
        header = (("Authorization", f"Bearer {canary}"),)
        assert (await post(stage, fake.id, rpc(), header)).status == 200
        assert (await post(stage, fake.id, b"nonsense", header)).status == 200
        assert (await post(stage, "nobody", rpc(), header)).status == 503
        assert list(fake.tokens.values()) == [canary]
        # A key of ours says who calls; it is not the relay's business.
        ours = (("Authorization", "Bearer key-of-anna-which-is-long"),)
        assert (await post(stage, fake.id, rpc(), ours)).status == 200
        assert list(fake.tokens.values())[-1] == ""
    await stage.settle()
    sinks = [stage.service.text()]
    for table in ("requests", "attempts", "server_events", "metric_samples"):
        with contextlib.suppress(AssertionError):
            rows = await asyncio.to_thread(stage.service.rows, f"select * from {table}")
            sinks.append(json.dumps(rows, default=str))
    for path in ("/metrics", "/api/state", "/api/plugins"):
        sinks.append((await asyncio.to_thread(stage.service.fetch, "GET", path))[2].decode())
    assert len(sinks) > 4
    for sink in sinks:
        assert canary not in sink
        assert "key-of-anna-which-is-long" not in sink


async def test_m10_a_long_token_concerns_its_own_call_alone(stage: Stage) -> None:
    async with relay(stage) as fake:
        asking = asyncio.ensure_future(post(stage, fake.id, rpc("wait")))
        waiting = await fake.call()
        for size, status in ((8_000, 200), (9_000, 200), (40_000, 413)):
            header = (("Authorization", "Bearer " + "t" * size),)
            other = asyncio.ensure_future(post(stage, fake.id, rpc(), header))
            if status == 200:
                opening = await fake.next("open")
                assert opening["auth"] == "t" * size
                await fake.say("open.ok", sid=opening["sid"])
                await fake.reply(opening["sid"], (await fake.next("rpc"))["payload"], result={})
            assert (await other).status == status
        await fake.reply(*waiting, result="mine")
        assert json.loads((await asking).body)["result"] == "mine"


async def test_m11_a_relay_that_wants_another_token(stage: Stage) -> None:
    async with relay(stage) as fake:
        fake.serve(echo, token="right")
        for headers in ((), (("Authorization", "Bearer wrong"),)):
            answer = await post(stage, fake.id, rpc(identity="t"), headers)
            assert error_of(answer) == (401, "MCP_UNAUTHORIZED", "open failed", "t")
        assert (await post(stage, fake.id, rpc(), (("Authorization", "bearer right"),))).status == 200


async def test_m12_pages_of_other_origins_are_refused(stage: Stage) -> None:
    async with relay(stage) as fake:
        fake.serve(echo)
        for origin in (
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
        ):
            async with await stage.connect() as client:
                await client.send(request("POST", f"/api/mcp/id/{fake.id}", rpc(), [("Origin", origin)]))
                answer = await client.answer(method="POST")
            assert answer.status == 403
            assert answer.header("access-control-allow-origin") is None
        # DNS rebinding: the page's own name in Host.
        evil = request(
            "POST", f"/api/mcp/id/{fake.id}", rpc(), [("Origin", "http://evil.example")], host="evil.example"
        )
        async with await stage.connect() as client:
            await client.send(evil)
            assert (await client.answer(method="POST")).status == 403
        assert (await post(stage, fake.id, rpc(), (("Origin", "http://localhost:5173"),))).status == 200
        async with await stage.connect() as client:
            key = base64.b64encode(b"0123456789abcdef").decode()
            upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
            upgrade += [("Sec-WebSocket-Key", key), ("Origin", "https://evil.example")]
            await client.send(request("GET", "/api/mcp/connect", None, upgrade))
            assert (await client.answer()).status == 403


async def test_a_key_may_be_asked_for(open_stage: OpenStage) -> None:
    keys = [{"name": "anna", "key": "key-of-anna"}]
    stage = await open_stage(mcp={"require_key": True}, keys=keys)
    async with relay(stage) as fake:
        fake.serve(echo, token="the-relays")
        bearer = ("Authorization", "Bearer the-relays")
        answer = await post(stage, fake.id, rpc(), (bearer,))
        assert error_of(answer)[:2] == (401, "MCP_UNAUTHORIZED")
        assert (await post(stage, fake.id, rpc(), (bearer, ("X-Ollama-Api-Key", "key-of-anna")))).status == 200
    await stage.recount()
    await stage.settle()


async def test_a_relay_that_leaves_fails_its_calls_at_once(stage: Stage) -> None:
    for how in ("leave", "kill"):
        async with relay(stage) as fake:
            asking = [asyncio.ensure_future(post(stage, fake.id, rpc(identity=n))) for n in range(3)]
            for _ in asking:
                await fake.call()
            began_s = time.monotonic()
            fake.kill() if how == "kill" else await fake.leave()
            answers = await asyncio.gather(*asking)
            assert time.monotonic() - began_s < 0.5
            for number, answer in enumerate(answers):
                said = error_of(answer)
                assert said == (503, "PROVIDER_UNAVAILABLE", "relay left before it answered", number)
            for _ in range(4):
                assert error_of(await post(stage, fake.id, rpc()))[:3] == (503, "PROVIDER_UNAVAILABLE", "relay offline")


async def test_the_handshake_of_relays(stage: Stage) -> None:
    url = f"ws://{stage.service.host}:{stage.service.port}/api/mcp/connect"
    for first in ("x", "[]", "7", "null"):
        async with connect(url, compression=None) as socket:
            await socket.send(first)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert (socket.close_code, socket.close_reason) == (1008, "invalid register")
    async with connect(url, compression=None) as socket:
        await socket.send('{"id":7,"client_name":["x"],"client_key":"","other":{}}')
        assert set(json.loads(await socket.recv())) == {"id"}
        for text in ('{"t":"ping"}', '{"t":"pong"}', '{"t":"what"}', '{"type":"ping"}', "{}"):
            await socket.send(text)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await socket.recv()


async def test_relays_come_in_at_the_hubs_own_address_too(open_stage: OpenStage) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    stage = await open_stage(processes=2, hub={"listen": address}, mcp={"max_response_bytes": 3_000_000})
    async with await FakeRelay.dial(f"ws://{address}/api/mcp/connect") as fake:
        fake.serve(lambda request: {"result": "z" * request["params"]["size"]})
        for size in (1, 2_900_000):
            answer = await post(stage, fake.id, rpc(size=size))
            assert (answer.status, len(json.loads(answer.body)["result"])) == (200, size)
        assert error_of(await post(stage, fake.id, rpc(size=3_000_001)))[1] == "MCP_LIMIT_EXCEEDED"
    await stage.settle()


async def test_m13_nonsense_from_a_relay_ends_that_relay_alone(stage: Stage) -> None:
    rng = random.Random(13)
    async with relay(stage) as good:
        good.serve(echo)
        for _ in range(rounds(5, 200)):
            async with relay(stage) as bad:
                asking = asyncio.ensure_future(post(stage, bad.id, rpc(), within_s=15))
                sid, _ = await bad.call()
                with contextlib.suppress(ConnectionClosed):
                    for _ in range(300):
                        await bad.raw(mutated(rng, sid))
                assert (await asking).status in {200, 502, 503}
            assert (await post(stage, good.id, rpc())).status == 200
    await eventually(lambda: stage.service.status("/healthz") == 200)


def mutated(rng: random.Random, sid: str) -> str:
    frame: dict[str, Any] = {
        "t": rng.choice(["open.ok", "open.fail", "rpc", "close", "ping", "x", "", 7, None]),
        "sid": rng.choice([sid, sid, "x", "", 7, None, str(uuid4())]),
        "payload": rng.choice([{}, None, "x", [1], {"jsonrpc": "2.0", "id": 1, "result": {}}]),
    }
    text = json.dumps({key: value for key, value in frame.items() if rng.random() < 0.9})
    return text[: rng.randrange(len(text))] if rng.random() < 0.3 else text
