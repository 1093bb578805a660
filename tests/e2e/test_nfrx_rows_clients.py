"""The clients' rows of nfrx's interop checklist (`nfrx_rows.py`): what serves real clients, at two processes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any
from uuid import UUID, uuid4

import pytest

from fleetproxy.testing.raw import RawClient, request
from fleetproxy.testing.spawned import until
from tests.e2e.nfrx_rows import API_KEY, BEARER, CHAT, Rows, chat, relay, statuses

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
        await asyncio.to_thread(until, lambda: len(statuses(rows)) >= 1, 5.0, "shown")
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
