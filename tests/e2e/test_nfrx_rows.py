"""Rows 1-8 of nfrx's interop checklist (`nfrx_rows.py`): what serves the stock nfrx-llm and nfrx-asr.

Two processes: the peer's socket and its callers meet in the hub.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from fleetproxy.testing.spawned import until
from tests.e2e.go_socket import BINARY, GoSocket, Refused
from tests.e2e.nfrx_rows import BEARER, CHAT, Agent, Rows, chat, statuses

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: The keys of an `http_proxy_request`, `body` and `stream` left out when empty or false.
REQUEST_KEYS = {"type", "request_id", "method", "path", "headers"}
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection", "host"}


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
        await asyncio.to_thread(until, lambda: statuses(rows).get("row2") == "not_ready", 5.0, "shown as not ready")
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
    """Told within 100 ms (W-15); a machine that is busy elsewhere may need a second look."""
    async with rows.agent("row6") as agent:
        for begun in (False, True):
            took_s: list[float] = []
            while not took_s or (min(took_s) > 0.1 and len(took_s) < 4):
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
                took_s.append(time.monotonic() - left_s)
                assert cancel == {"type": "http_proxy_cancel", "request_id": order["request_id"]}
                await agent.chunk(order, b"late")
                assert await agent.socket.silent(0.1)
            assert min(took_s) <= 0.1
        asking = asyncio.ensure_future(rows.ask(CHAT, chat("row6")))
        await agent.answer(await agent.order(), b"{}")
        assert (await asking).status == 200


async def test_row7_no_concurrency_no_requests(rows: Rows) -> None:
    async with rows.agent("row7-zero") as agent, rows.agent("row7-zero") as other:
        await agent.socket.say(type="status_update", max_concurrency=0, status="draining")
        await asyncio.to_thread(until, lambda: "draining" in statuses(rows).values(), 5.0, "it drains")
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
