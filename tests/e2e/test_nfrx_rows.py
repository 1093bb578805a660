"""nfrx's interop checklist (its wire protocol's section 13), row by row and byte for byte, by hand-written peers.

    row 1-8    what serves the stock nfrx-llm and nfrx-asr        (docling is not served: its path is not found)
    relay 1-8  what serves the stock nfrx-mcp, in the order the checklist says it
    client 1-6 what serves real clients; the Jobs API is not served

Two processes: the peer's socket and its callers meet in the hub.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from fleetproxy.testing.raw import Answer, RawClient, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import until
from fleetproxy.testing.stage import Stage
from tests.e2e.go_socket import BINARY, GoSocket, Refused, free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

API_KEY, CLIENT_KEY = "rows-api-key", "rows-client-key"
BEARER = (("Authorization", f"Bearer {API_KEY}"),)
CHAT = "/api/llm/v1/chat/completions"
#: The keys of an `http_proxy_request`, `body` and `stream` left out when empty or false.
REQUEST_KEYS = {"type", "request_id", "method", "path", "headers"}
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection", "host"}


class Rows:
    """A service with a client key, reached at its public port and at `hub.listen`."""

    def __init__(self, stage: Stage, hub_port: int) -> None:
        self.stage = stage
        self.service: Service = stage.service
        self.hub_port = hub_port

    def dial(self, family: str = "llm", key: str = CLIENT_KEY, *, direct: bool = False) -> Any:
        port = self.hub_port if direct else self.service.port
        return GoSocket.dial("127.0.0.1", port, f"/api/{family}/connect", key=key)

    async def ask(self, path: str, body: bytes | None, headers: tuple[tuple[str, str], ...] = BEARER) -> Answer:
        return await self.stage.ask(path, body, headers, method="GET" if body is None else "POST")

    async def state(self, family: str = "llm") -> Any:
        status, _, body = await asyncio.to_thread(
            self.service.fetch, "GET", "/api/state", None, {"Authorization": f"Bearer {API_KEY}"}
        )
        assert status == 200
        return json.loads(body)["plugins"][family]

    async def listed(self, model: str, family: str = "llm", owner: str = "") -> None:
        """Wait until the model is listed, as this worker's, by whichever process is asked."""

        def there() -> bool:
            answer = self.service.fetch("GET", f"/api/{family}/v1/models", None, {"Authorization": f"Bearer {API_KEY}"})
            owners = {entry["id"]: entry["owned_by"].split(",") for entry in json.loads(answer[2])["data"]}
            return model in owners and (not owner or owner in owners[model])

        for _ in range(6):
            await asyncio.to_thread(until, there, 5.0, f"{model} is listed")

    @asynccontextmanager
    async def agent(self, model: str, family: str = "llm", **fields: Any) -> AsyncIterator[Agent]:
        """A stock agent with one model, that the server has taken in."""
        async with await self.dial(family) as socket:
            agent = Agent(socket)
            await agent.register(f"w-{uuid4().hex[:8]}", [model], **fields)
            if fields.get("max_concurrency", 1):
                await self.listed(model, family, agent.id)
            yield agent


class Agent:
    """What nfrx-llm says, in its words and with its fields."""

    def __init__(self, socket: GoSocket) -> None:
        self.socket = socket
        self.id = ""

    async def register(self, worker_id: str, models: list[str] | None, **fields: Any) -> None:
        self.id = worker_id
        message = {
            "type": "register",
            "worker_id": worker_id,
            "worker_name": worker_id,
            "client_key": "",
            "models": models,
            "max_concurrency": 1,
            "version": "dev",
            "build_sha": "unknown",
            "build_date": "unknown",
        }
        await self.socket.say(**message | fields)

    async def order(self) -> dict[str, Any]:
        order: dict[str, Any] = await self.socket.listen()
        return order

    async def head(self, order: dict[str, Any], status: int = 200, kind: str = "application/json") -> None:
        await self.socket.say(
            type="http_proxy_response_headers",
            request_id=order["request_id"],
            status=status,
            headers={"Content-Type": kind},
        )

    async def chunk(self, order: dict[str, Any], data: bytes) -> None:
        text = base64.b64encode(data).decode()
        await self.socket.say(type="http_proxy_response_chunk", request_id=order["request_id"], data=text)

    async def end(self, order: dict[str, Any], **error: str) -> None:
        more = {"error": error} if error else {}
        await self.socket.say(type="http_proxy_response_end", request_id=order["request_id"], **more)

    async def answer(self, order: dict[str, Any], body: bytes) -> None:
        await self.head(order)
        await self.chunk(order, body)
        await self.end(order)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rows]:
    folder: Path = tmp_path_factory.mktemp("rows")
    port = free_port()
    auth = {"api_key": API_KEY, "client_key": CLIENT_KEY}
    stage = await Stage.open(folder, processes=2, auth=auth, hub={"listen": f"127.0.0.1:{port}"})
    yield Rows(stage, port)
    await stage.close()


@pytest_asyncio.fixture(loop_scope="module")
async def rows(running: Rows) -> AsyncIterator[Rows]:
    running.stage.asked.clear()
    running.stage.perhaps.clear()
    await running.stage.recount()
    yield running
    await running.stage.settle()


def chat(model: str, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi <é>"}], **more}).encode()


# --- rows 1-8: nfrx-llm, nfrx-asr ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True], ids=["public-port", "hub-listen"])
@pytest.mark.parametrize("family", ["llm", "asr"])
async def test_row1_a_plain_upgrade_with_the_bearer_is_taken(rows: Rows, family: str, direct: bool) -> None:
    """No subprotocol, no extension and no Origin in either direction: `dial` looks."""
    async with await rows.dial(family, direct=direct) as socket:
        await Agent(socket).register(f"row1-{direct}", [f"row1-{family}-{direct}"])
        await rows.listed(f"row1-{family}-{direct}", family)
    async with await rows.dial(family, "wrong", direct=direct) as socket:
        await Agent(socket).register("row1-wrong", ["m1"])
        assert await socket.closed() == (1008, "unauthorized")


@pytest.mark.parametrize("direct", [False, True], ids=["public-port", "hub-listen"])
async def test_row1_docling_is_not_served(rows: Rows, direct: bool) -> None:
    with pytest.raises(Refused) as refused:
        await rows.dial("docling", direct=direct)
    assert refused.value.args[0] in {403, 404}


async def test_row2_models_may_be_null_and_concurrency_zero_and_there_is_no_ack(rows: Rows) -> None:
    async with await rows.dial() as socket:
        agent = Agent(socket)
        await agent.register("row2", None, max_concurrency=0)
        assert await socket.silent(0.3)
        await asyncio.to_thread(until, lambda: _statuses(rows).get("row2") == "not_ready", 5.0, "shown as not ready")
        await socket.say(type="status_update", max_concurrency=1, models=["row2"], status="idle")
        await rows.listed("row2")
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row2")))
        await agent.answer(await agent.order(), b"{}")
        assert (await asking).status == 200


@pytest.mark.parametrize("spelling", ["agent_config", "field"])
async def test_row2_the_embedding_batch_size_is_taken_in_both_spellings(rows: Rows, spelling: str) -> None:
    given: dict[str, Any] = {"agent_config": {"embedding_batch_size": "3"}}
    if spelling == "field":
        given = {"embedding_batch_size": 3}
    async with rows.agent("row2-batch", max_concurrency=4, **given) as agent:
        inputs = [f"text {number}" for number in range(7)]
        asked = json.dumps({"model": "row2-batch", "input": inputs}).encode()
        asking = asyncio.ensure_future(rows.ask("/api/llm/v1/embeddings", asked))
        sizes: list[int] = []
        while sum(sizes) < 7:
            order = await agent.order()
            texts = json.loads(base64.b64decode(order["body"]))["input"]
            sizes.append(len(texts))
            data = [
                {"object": "embedding", "index": at, "embedding": [float(text.split()[1])]}
                for at, text in enumerate(texts)
            ]
            usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
            await agent.answer(
                order, json.dumps({"object": "list", "data": data, "model": "row2-batch", "usage": usage}).encode()
            )
        answer = json.loads((await asking).body)
        assert max(sizes) <= 3
        assert [(row["index"], row["embedding"]) for row in answer["data"]] == [(n, [float(n)]) for n in range(7)]
        assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


async def test_row3_any_message_at_any_time_is_tolerated(rows: Rows) -> None:
    async with rows.agent("row3") as agent:
        say = agent.socket.say
        await say(type="heartbeat", ts=int(time.time()), host_cpu_percent=12.5, host_ram_used_percent=50.25)
        for word in ("job_chunk", "job_result", "job_error", "models_update", "nonsense"):
            await say(type=word, job_id="x", models=["other"], code="c", message="m", data={})
        await agent.socket.raw("not JSON at all")
        await agent.socket.raw('{"no":"type"}')
        await agent.socket.frame(BINARY, b'{"type":"heartbeat","ts":1}')
        await agent.end({"request_id": str(uuid4())})
        await say(type="register", worker_id="again", models=["other"], max_concurrency=1)
        assert await agent.socket.silent()
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row3")))
        await agent.answer(await agent.order(), b"{}")
        assert (await asking).status == 200
        workers = (await rows.state())["workers"]
        assert [one.get("host_cpu_percent") for one in workers if one["id"] == agent.id] in ([None], [12.5])


async def test_row3_fifteen_seconds_of_silence_are_death(rows: Rows) -> None:
    async with rows.agent("row3-silent") as quiet, rows.agent("row3-beating") as beating:
        began_s = time.monotonic()
        closing = asyncio.ensure_future(quiet.socket.closed(25.0))
        while not closing.done():
            await beating.socket.say(type="heartbeat", ts=int(time.time()))
            await asyncio.wait({closing}, timeout=5.0)
        assert closing.result() == (1008, "silent")
        assert 14.5 < time.monotonic() - began_s < 18.0
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row3-beating")))
        await beating.answer(await beating.order(), b"{}")
        assert (await asking).status == 200


#: (our path, the agent's path, a body)
PATHS: list[tuple[str, str, Callable[[str], bytes]]] = [
    (CHAT, "/chat/completions", chat),
    ("/v1/chat/completions", "/chat/completions", chat),
    ("/api/llm/v1/completions", "/completions", lambda model: json.dumps({"model": model, "prompt": "x"}).encode()),
    ("/api/llm/v1/responses", "/responses", lambda model: json.dumps({"model": model, "input": "x"}).encode()),
    ("/api/llm/v1/embeddings", "/embeddings", lambda model: json.dumps({"model": model, "input": "x"}).encode()),
]


@pytest.mark.parametrize(("path", "theirs", "body"), PATHS, ids=[path for path, _, _ in PATHS])
async def test_row4_requests_go_out_as_the_stock_server_sends_them(
    rows: Rows, path: str, theirs: str, body: Callable[[str], bytes]
) -> None:
    async with rows.agent("row4") as agent:
        sent = body("row4")
        headers = (
            *BEARER,
            ("User-Agent", "OpenAI/Python 2.0"),
            ("Accept-Language", "fr"),
            ("X-Request-Id", "row4-id"),
            ("Cookie", "a=b"),
            ("OpenAI-Organization", "org"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
        )
        identified = [pair for pair in headers if pair[0] != "X-Request-Id"]
        asking = asyncio.ensure_future(rows.ask(path, sent, tuple(identified)))
        order = await agent.order()
        assert set(order) == REQUEST_KEYS | {"body"}
        assert (order["type"], order["method"], order["path"]) == ("http_proxy_request", "POST", theirs)
        assert str(UUID(order["request_id"], version=4)) == order["request_id"]
        assert base64.b64decode(order["body"], validate=True) == sent
        assert len(order["body"]) % 4 == 0
        given = order["headers"]
        assert all(isinstance(value, str) for value in given.values())
        lowered = {name.lower() for name in given}
        assert not lowered & (HOP_BY_HOP | {"authorization", "cookie", "x-hop", "content-length"})
        assert given["Content-Type"] == "application/json"
        assert given["Cache-Control"] == "no-store"
        assert given["User-Agent"] == "OpenAI/Python 2.0"
        assert given["Accept-Language"] == "fr"
        assert given["X-Request-Id"].startswith("case-")
        await agent.answer(order, b'{"object":"list","data":[{"index":0,"embedding":[1]}],"usage":{}}')
        assert (await asking).status == 200
        opcode, final, _ = agent.socket.heard[-1]
        assert (opcode, final) == (1, True)


async def test_row4_stream_is_said_when_it_is_asked_for(rows: Rows) -> None:
    async with rows.agent("row4-stream") as agent:
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row4-stream", stream=True)))
        order = await agent.order()
        assert set(order) == REQUEST_KEYS | {"body", "stream"}
        assert order["stream"] is True
        await agent.head(order, kind="text/event-stream")
        await agent.chunk(order, b"data: [DONE]\n\n")
        await agent.end(order)
        assert (await asking).body == b"data: [DONE]\n\n"


async def test_row4_a_form_goes_to_the_speech_worker_as_it_came(rows: Rows) -> None:
    async with rows.agent("row4-asr", "asr") as agent:
        lines = [
            "--b",
            'Content-Disposition: form-data; name="model"',
            "",
            "row4-asr",
            "--b",
            'Content-Disposition: form-data; name="file"; filename="a.wav"',
            "Content-Type: audio/wav",
            "",
            "RIFF\x00\x7f",
            "--b--",
            "",
        ]
        body = "\r\n".join(lines).encode()
        headers = (*BEARER, ("Content-Type", "multipart/form-data; boundary=b"))
        asking = asyncio.ensure_future(rows.ask("/api/asr/v1/audio/transcriptions", body, headers))
        order = await agent.order()
        assert set(order) == REQUEST_KEYS | {"body"}
        assert (order["method"], order["path"]) == ("POST", "/audio/transcriptions")
        assert base64.b64decode(order["body"]) == body
        assert order["headers"]["Content-Type"] == "multipart/form-data; boundary=b"
        await agent.answer(order, b'{"text":"ok"}')
        assert (await asking).body == b'{"text":"ok"}'


async def test_row5_head_chunks_end_and_what_comes_late(rows: Rows) -> None:
    async with rows.agent("row5") as agent:
        pieces = [os.urandom(size) for size in (1, 2, 3, 32 * 1024, 32 * 1024)]
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row5")))
        order = await agent.order()
        await agent.head(order)
        for piece in pieces:
            await agent.chunk(order, piece)
        await agent.end(order)
        for _ in range(3):  # late, and for nobody
            await agent.chunk(order, b"late")
            await agent.end(order)
            await agent.end({"request_id": str(uuid4())})
        answer = await asking
        assert (answer.status, answer.clean, answer.body) == (200, True, b"".join(pieces))
        again = asyncio.ensure_future(rows.ask(CHAT, chat("row5")))
        order = await agent.order()
        await agent.head(order)
        await agent.chunk(order, b"half")
        agent.socket.hang_up()  # an end never comes
        answer = await again
        assert (answer.status, answer.clean) == (200, False)


async def test_row6_a_caller_that_leaves_cancels_and_is_answered_by_silence(rows: Rows) -> None:
    async with rows.agent("row6") as agent:
        for begun in (False, True):
            async with await rows.stage.connect() as client:
                await client.send(rows.stage.request(CHAT, chat("row6", stream=True), BEARER, recorded=None))
                order = await agent.order()
                if begun:
                    await agent.head(order, kind="text/event-stream")
                    await agent.chunk(order, b"data: {}\n\n")
                    await client.until(b"data: {}\n\n")
                await asyncio.sleep(0.1)
                left_s = time.monotonic()
            cancel = await agent.socket.listen()
            assert cancel == {"type": "http_proxy_cancel", "request_id": order["request_id"]}
            assert time.monotonic() - left_s < 1.0
            await agent.chunk(order, b"late")
            assert await agent.socket.silent(0.1)
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row6")))
        await agent.answer(await agent.order(), b"{}")
        assert (await asking).status == 200


async def test_row7_no_concurrency_no_requests(rows: Rows) -> None:
    async with rows.agent("row7-zero") as agent, rows.agent("row7-zero") as other:
        await agent.socket.say(type="status_update", max_concurrency=0, status="draining")
        await asyncio.to_thread(until, lambda: "draining" in _statuses(rows).values(), 5.0, "it drains")
        for _ in range(4):
            asking = asyncio.ensure_future(rows.ask(CHAT, chat("row7-zero")))
            await other.answer(await other.order(), b"{}")
            assert (await asking).status == 200
        assert await agent.socket.silent()


@pytest.mark.parametrize("how", ["end with worker_draining", "end without an error"])
async def test_row7_a_refusal_without_a_body_goes_elsewhere(rows: Rows, how: str) -> None:
    async with rows.agent("row7") as first, rows.agent("row7") as second:

        async def serve(agent: Agent) -> None:
            order = await agent.order()
            if served:
                await agent.answer(order, b'{"from":"the other"}')
            else:
                served.append(1)
                await agent.head(order, 503)
                error = {"code": "worker_draining", "message": "worker is draining"}
                await agent.end(order, **(error if "draining" in how else {}))

        served: list[int] = []
        tasks = [asyncio.ensure_future(serve(agent)) for agent in (first, second)]
        answer = await rows.ask(CHAT, chat("row7"))
        assert (answer.status, answer.body) == (200, b'{"from":"the other"}')
        assert answer.header("x-fleet-retries") == "1"
        await asyncio.gather(*tasks)


async def test_row8_the_same_id_again_supersedes_in_a_storm(rows: Rows) -> None:
    old: Agent | None = None
    sockets: list[GoSocket] = []
    try:
        for _ in range(10):
            socket = await rows.dial()
            sockets.append(socket)
            agent = Agent(socket)
            await agent.register("row8", ["row8"])
            if old is not None:
                assert await old.socket.closed() == (1008, "superseded")
                old.socket.hang_up()
            old = agent
        await rows.listed("row8")
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row8")))
        await agent.answer(await agent.order(), b"{}")
        assert (await asking).status == 200
        assert sum(one["id"] == "row8" for one in (await rows.state())["workers"]) == 1
    finally:
        for socket in sockets:
            socket.hang_up()


def _statuses(rows: Rows) -> dict[str, str]:
    body = rows.service.fetch("GET", "/api/state", None, {"Authorization": f"Bearer {API_KEY}"})[2]
    return {one["id"]: one["status"] for one in json.loads(body)["plugins"]["llm"]["workers"]}


# --- the relay's rows: nfrx-mcp --------------------------------------------------------------------------------------


@asynccontextmanager
async def relay(rows: Rows, relay_id: str = "") -> AsyncIterator[tuple[GoSocket, str]]:
    async with await rows.dial("mcp") as socket:
        await socket.say(client_name="tools", id=relay_id)
        ack = await socket.listen()
        assert set(ack) == {"id"}
        assert len(socket.heard) == 1, "the ack is the very first frame"
        yield socket, ack["id"]


def rpc(identity: Any = 1, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": identity, "method": "tools/list", "params": params}).encode()


async def post(rows: Rows, relay_id: str, body: bytes, token: str = "") -> Answer:
    headers = (("Authorization", f"Bearer {token}"),) if token else ()
    return await rows.stage.ask(f"/api/mcp/id/{relay_id}", body, headers)


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
        assert answer.status in {413, 502, 503}
        said = json.loads(answer.body)["error"]
        assert "32" in said["message"] + json.dumps(said["data"]) or "limit" in said["message"]
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
        assert (await _called(rows, socket, name)).status == 200


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
        assert (await _called(rows, socket, name)).status == 200


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
        assert (await _called(rows, socket, name)).status == 200


async def test_relay8_who_shows_the_key_gets_its_id_at_once(rows: Rows) -> None:
    async with relay(rows, "taken") as (old, _), relay(rows, "taken") as (new, name):
        assert name == "taken"
        assert (await old.closed())[1] == "superseded"
        assert (await _called(rows, new, name)).status == 200


async def _called(rows: Rows, socket: GoSocket, name: str) -> Answer:
    asking = asyncio.ensure_future(post(rows, name, rpc()))
    while (opening := await socket.listen())["t"] != "open":
        pass
    await socket.say(t="open.ok", sid=opening["sid"])
    frame = await socket.listen()
    result = {"jsonrpc": "2.0", "id": frame["payload"]["id"], "result": {}}
    await socket.say(t="rpc", sid=opening["sid"], payload=result)
    return await asking


# --- the clients' rows -----------------------------------------------------------------------------------------------

#: (method, path, body, bearer, status, members of the answer)
Row = tuple[str, str, bytes | None, bool, int, dict[str, Any]]
ANSWERS: list[Row] = [
    ("GET", "/healthz", None, False, 200, {"status": "ok"}),
    ("GET", "/api/llm/v1/models", None, False, 401, {}),
    ("GET", "/api/llm/v1/models", None, True, 200, {"object": "list"}),
    ("GET", "/api/llm/v1/models/nobody-has-it", None, True, 404, {}),
    ("GET", "/api/llm/id/nobody/v1/models", None, True, 404, {}),
    ("POST", "/api/llm/id/nobody/v1/chat/completions", b'{"model":"x"}', True, 404, {}),
    ("POST", CHAT, b'{"model":"x"}', False, 401, {}),
    ("GET", "/api/asr/v1/models", None, True, 200, {"object": "list", "data": []}),
    ("GET", "/api/asr/v1/models/none", None, True, 404, {}),
    ("GET", "/api/state", None, False, 401, {}),
    ("GET", "/api/llm", None, False, 200, {"id": "llm"}),
    ("GET", "/api/asr/", None, False, 200, {"id": "asr"}),
    ("GET", "/api/mcp", None, False, 200, {"id": "mcp"}),
]


@pytest.mark.parametrize("family", ["llm", "asr", "mcp"])
async def test_client1_a_plain_request_to_where_workers_dial_in_is_told_so(rows: Rows, family: str) -> None:
    answer = await rows.stage.look(f"/api/{family}/connect")
    assert (answer.status, answer.header("upgrade")) == (426, "websocket")
    assert (await rows.stage.look(f"/api/{family}/connect", "POST")).status == 405


WORDS = {401: "unauthorized", 404: ("model_not_found", "no_worker", "not_found")}


@pytest.mark.parametrize("row", ANSWERS, ids=[f"{row[0]}-{row[1]}-{row[4]}" for row in ANSWERS])
async def test_client1_statuses_and_bodies(rows: Rows, row: Row) -> None:
    method, path, body, key, status, members = row
    async with await rows.stage.connect() as client:
        recorded = method == "POST"
        sent = rows.stage.request(path, body, BEARER if key else (), method=method, recorded=recorded)
        await client.send(sent)
        answer = await client.answer(method=method)
    assert answer.status == status, answer.body
    value = json.loads(answer.body)
    assert members.items() <= value.items()
    if path.startswith(("/api/llm/", "/api/asr/v1")) and status in WORDS:
        assert value["error"]["code"] in WORDS[status]


async def test_client2_an_empty_list_is_a_list(rows: Rows) -> None:
    answer = await rows.stage.look("/api/asr/v1/models")
    assert answer.status == 401
    async with await rows.stage.connect() as client:
        await client.send(request("GET", "/api/asr/v1/models", None, BEARER))
        assert json.loads((await client.answer()).body) == {"object": "list", "data": []}


async def test_client3_the_queue_event_has_its_bytes(rows: Rows) -> None:
    async with rows.agent("client3") as agent:
        clients: list[RawClient] = []
        for _ in range(2):
            clients.append(await rows.stage.connect())
            await clients[-1].send(rows.stage.request(CHAT, chat("client3", stream=True), BEARER))
            if len(clients) == 1:
                order = await agent.order()
        text = (await clients[1].until(b"\n\n")).decode()
        head, _, event = text.partition("\r\n\r\n")
        if "nfrx.queue" not in event:
            event += (await clients[1].until(b"\n\n")).decode()
        assert "200 OK" in head
        assert "content-type: text/event-stream" in head.lower()
        form = (
            r'event: nfrx\.queue\ndata: \{"type":"nfrx\.queue","request_id":"[^"]+","model":"client3","position":1\}\n'
        )
        assert re.search(form, event), event
        for client in clients:
            await agent.head(order, kind="text/event-stream")
            await agent.chunk(order, b"data: [DONE]\n\n")
            await agent.end(order)
            await client.until(b"data: [DONE]\n\n")
            if client is clients[0]:
                order = await agent.order()
        for client in clients:
            client.close()


async def test_client4_the_state_has_its_names(rows: Rows) -> None:
    async with rows.agent("client4", agent_config={"hostname": "h", "os_name": "linux"}), relay(rows, "client4"):
        await asyncio.to_thread(until, lambda: len(_statuses(rows)) >= 1, 5.0, "shown")
        state = await rows.state()
        assert {
            "now",
            "version",
            "state",
            "uptime_s",
            "jobs_inflight_total",
            "jobs_completed_total",
            "jobs_failed_total",
            "scheduler_queue_len",
            "scheduler_queue_capacity",
        } <= set(state["server"])
        assert set(state["workers_summary"]) >= {"connected", "working", "idle", "not_ready", "gone"}
        worker = next(one for one in state["workers"] if one["host_info"].get("hostname") == "h")
        assert {
            "id",
            "name",
            "version",
            "host_info",
            "input_tokens_total",
            "output_tokens_total",
            "status",
            "connected_at",
            "last_heartbeat",
            "max_concurrency",
            "embedding_batch_size",
            "processed_total",
            "processing_ms_total",
            "avg_processing_ms",
            "inflight",
            "failures_total",
            "queue_len",
            "last_error",
        } <= set(worker)

        def shown() -> Any:
            body = rows.service.fetch("GET", "/api/state", None, {"Authorization": f"Bearer {API_KEY}"})[2]
            return json.loads(body)["plugins"]["mcp"]["clients"]

        clients = await asyncio.to_thread(until, shown, 5.0, "the relay is shown")
        assert set(clients[0]) >= {"id", "name", "status", "inflight", "functions"}
        server = await rows.state("server")
        assert set(server) >= {"drainable_inflight"}


async def test_client5_the_state_stream_begins_at_once_and_goes_on_every_two_seconds(rows: Rows) -> None:
    async with await rows.stage.connect() as client:
        began_s = time.monotonic()
        await client.send(request("GET", "/api/state/stream", None, BEARER))
        head = (await client.until(b"\r\n\r\n")).decode().lower()
        assert "content-type: text/event-stream" in head
        moments = []
        for _ in range(2):
            frame = await client.until(b"\n\n")
            moments.append(time.monotonic() - began_s)
            lines = [line for line in frame.decode().splitlines() if line.startswith("data: ")]
            assert len(lines) == 1
            assert {"llm", "asr", "mcp", "server"} <= set(json.loads(lines[0][6:])["plugins"])
        assert moments[0] < 1.5
        assert moments[1] - moments[0] < 3.5


async def test_client6_transfer_has_its_fields_and_jobs_are_not_served(rows: Rows) -> None:
    answer = await rows.ask("/api/transfer", b"")
    made = json.loads(answer.body)
    assert list(made) == ["channel_id", "expires_at"]
    assert str(UUID(made["channel_id"])) == made["channel_id"] or re.fullmatch(r"[\w-]{22,}", made["channel_id"])
    channel = f"/api/transfer/{made['channel_id']}"
    got, sent = await asyncio.gather(rows.ask(channel, None), rows.ask(channel, b"bytes"))
    assert (got.status, got.body) == (200, b"bytes")
    assert (sent.status, json.loads(sent.body)) == (200, {"status": "ok"})
    unknown = await rows.ask(f"/api/transfer/{uuid4()}", None)
    assert (unknown.status, json.loads(unknown.body)["error"]) == (404, "transfer_not_found")
