"""The relay's rows of nfrx's interop checklist (`nfrx_rows.py`): what serves the stock nfrx-mcp, at two processes."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

import pytest

from tests.e2e.nfrx_rows import Rows, called, post, relay, rpc

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_relay1_the_ack_is_the_first_frame_and_gives_the_id(rows: Rows) -> None:
    async with relay(rows) as (_, given):
        assert str(UUID(given)) == given
    async with relay(rows, "wanted") as (_, given):
        assert given == "wanted"


async def test_relay2_frames_are_keyed_by_t_with_these_fields(rows: Rows) -> None:
    async with relay(rows) as (socket, name):
        asking = asyncio.ensure_future(post(rows, name, rpc(), "relay-token"))
        opening = await socket.listen()
        assert set(opening) == {"t", "sid", "req_id", "hint", "auth"}
        assert (opening["t"], opening["hint"], opening["auth"]) == ("open", "tools/list", "relay-token")
        assert str(UUID(opening["sid"])) == opening["sid"]
        await socket.say(t="open.ok", sid=opening["sid"])
        frame = await socket.listen()
        assert frame == {"t": "rpc", "sid": opening["sid"], "payload": json.loads(rpc())}
        await socket.raw(f'{{"t":"rpc","sid":"{opening["sid"]}","payload":{{"jsonrpc":"2.0","id":1,"result":{{}}}}}}')
        await socket.say(t="close", sid=opening["sid"], msg="done")
        answer = await asking
        assert (answer.status, answer.body) == (200, b'{"jsonrpc":"2.0","id":1,"result":{}}')
        closing = await socket.listen()
        assert closing == {"t": "close", "sid": opening["sid"], "msg": "done"}


async def test_relay3_no_message_is_over_its_limit_and_the_refusal_is_clear(rows: Rows) -> None:
    async with relay(rows) as (socket, name):
        answer = await post(rows, name, rpc(text="x" * 32_700))
        said = json.loads(answer.body)["error"]
        assert (answer.status, said["data"]["mcp"]) == (413, "MCP_LIMIT_EXCEEDED")
        assert "32768 bytes" in said["message"]
        assert said["message"].endswith(".")
        asking = asyncio.ensure_future(post(rows, name, rpc(text="x" * 32_400)))
        sid = (await socket.listen())["sid"]
        await socket.say(t="open.ok", sid=sid)
        await socket.listen()
        await socket.raw(f'{{"t":"rpc","sid":"{sid}","payload":{{"jsonrpc":"2.0","id":1,"result":{{}}}}}}')
        assert (await asking).status == 200
        assert max(len(payload) for _, _, payload in socket.heard) <= 32_768


async def test_relay4_pings_are_taken(rows: Rows) -> None:
    async with relay(rows) as (socket, name):
        for _ in range(3):
            await socket.say(t="ping")
        await socket.say(t="pong")
        while not await socket.silent():
            pass
        assert all(json.loads(payload)["t"] == "pong" for _, _, payload in socket.heard[1:])
        assert (await called(rows, socket, name)).status == 200


async def test_relay5_nothing_is_sent_before_open_ok(rows: Rows) -> None:
    async with relay(rows) as (socket, name):
        asking = asyncio.ensure_future(post(rows, name, rpc()))
        sid = (await socket.listen())["sid"]
        assert await socket.silent(0.2)
        await socket.say(t="open.fail", sid=sid, code="MCP_UNAUTHORIZED", msg="unauthorized")
        answer = await asking
        assert answer.status == 401
        assert json.loads(answer.body)["error"]["data"]["mcp"] == "MCP_UNAUTHORIZED"
        assert all(json.loads(payload).get("t") != "rpc" for _, _, payload in socket.heard)


async def test_relay6_one_response_for_each_session(rows: Rows) -> None:
    async with relay(rows) as (socket, name):
        asking = asyncio.ensure_future(post(rows, name, rpc()))
        sid = (await socket.listen())["sid"]
        await socket.say(t="open.ok", sid=sid)
        await socket.listen()
        for word in ("first", "second", "third"):
            await socket.say(t="rpc", sid=sid, payload={"jsonrpc": "2.0", "id": 1, "result": word})
        assert json.loads((await asking).body)["result"] == "first"
        assert (await socket.listen())["t"] == "close"
        assert (await called(rows, socket, name)).status == 200


async def test_relay7_close_cancels(rows: Rows) -> None:
    async with relay(rows) as (socket, name):
        async with await rows.stage.connect() as client:
            await client.send(rows.stage.request(f"/api/mcp/id/{name}", rpc(), recorded=None))
            sid = (await socket.listen())["sid"]
            await socket.say(t="open.ok", sid=sid)
            await socket.listen()
            await asyncio.sleep(0.1)
        closing = await socket.listen()
        assert (closing["t"], closing["sid"]) == ("close", sid)
        assert (await called(rows, socket, name)).status == 200


async def test_relay8_who_shows_the_key_gets_its_id_at_once(rows: Rows) -> None:
    async with relay(rows, "taken") as (old, _), relay(rows, "taken") as (new, name):
        assert name == "taken"
        assert (await old.closed())[1] == "superseded"
        assert (await called(rows, new, name)).status == 200
