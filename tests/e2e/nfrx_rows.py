"""nfrx's interop checklist (its wire protocol's section 13), row by row and byte for byte: the hand-written peers.

test_nfrx_rows.py           row 1-8     what serves the stock nfrx-llm and nfrx-asr   (docling is not served)
test_nfrx_rows_relays.py    relay 1-8   what serves the stock nfrx-mcp, in the order the checklist says it
test_nfrx_rows_clients.py   client 1-6  what serves real clients; the Jobs API is not served
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from fleetproxy.testing.raw import Answer
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import until
from fleetproxy.testing.stage import Stage
from tests.e2e.go_socket import GoSocket

API_KEY, CLIENT_KEY = "rows-api-key", "rows-client-key"
BEARER = (("Authorization", f"Bearer {API_KEY}"),)
CHAT = "/api/llm/v1/chat/completions"


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


def chat(model: str, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi <é>"}], **more}).encode()


def statuses(rows: Rows) -> dict[str, str]:
    body = rows.service.fetch("GET", "/api/state", None, {"Authorization": f"Bearer {API_KEY}"})[2]
    return {one["id"]: one["status"] for one in json.loads(body)["plugins"]["llm"]["workers"]}


# --- relays -----------------------------------------------------------------------------------------------------------


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


async def called(rows: Rows, socket: GoSocket, name: str) -> Answer:
    asking = asyncio.ensure_future(post(rows, name, rpc()))
    while (opening := await socket.listen())["t"] != "open":
        pass
    await socket.say(t="open.ok", sid=opening["sid"])
    frame = await socket.listen()
    result = {"jsonrpc": "2.0", "id": frame["payload"]["id"], "result": {}}
    await socket.say(t="rpc", sid=opening["sid"], payload=result)
    return await asking
