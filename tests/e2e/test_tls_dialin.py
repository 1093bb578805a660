"""Dialling in over TLS, at `hub.listen` and at the public port: stock agents and ours."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, until
from tests.e2e.go_socket import GoSocket, free_port
from tests.e2e.test_workers import WorkerProcess

MODEL = "llama3.2:3b"


class Place:
    def __init__(self, folder: Path, service: Service, fake: FakeProcess, hub_port: int) -> None:
        self.folder = folder
        self.service = service
        self.fake = fake
        self.hub_port = hub_port
        self.ca = str(folder / "ca.pem")
        self.trusting = ssl.create_default_context(cafile=self.ca)

    def fetch(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.service.port, timeout=20, context=self.trusting)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def owner(self, model: str) -> str:
        entries = self.fetch("GET", "/api/llm/v1/models")[1]["data"]
        return next((str(entry["owned_by"]) for entry in entries if entry["id"] == model), "")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    made = authority.issue_cert("127.0.0.1", "localhost")
    for blob in made.cert_chain_pems:
        blob.write_to_path(str(folder / "cert.pem"), append=True)
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    port = free_port()
    settings = {
        "tls": {"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem")},
        "hub": {"listen": f"127.0.0.1:{port}"},
        "auth": {"client_key": "worker-key"},
    }
    service = Service(folder / "service", {}, processes=2, settings=settings)
    with FakeProcess(folder, "fake", kind="ollama", models=MODEL, seed=7, speed=0) as fake:
        try:
            service.start(ready=False)
            assert service.url.startswith("https://")
            yield Place(folder, service, fake, port)
            assert service.stop() == 0
            assert not service.bad_lines()
        finally:
            service.kill()


@pytest.mark.parametrize("where", ["hub.listen", "public port"])
def test_our_worker_dials_in_and_serves(place: Place, where: str) -> None:
    port = place.hub_port if where == "hub.listen" else place.service.port
    url = f"wss://127.0.0.1:{port}"
    agent = WorkerProcess(place.folder, url, place.fake.url, f"ours-{port}", SSL_CERT_FILE=place.ca)
    try:
        agent.spawn()
        until(lambda: place.owner(MODEL) == f"ours-{port}", 20, "it is there")
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        status, answer = place.fetch("POST", "/api/chat", body | {"stream": False})
        assert (status, answer["done"]) == (200, True)
    finally:
        agent.kill()
    until(lambda: not place.owner(MODEL), 10, "it has left")


@pytest.mark.parametrize("where", ["hub.listen", "public port"])
async def test_a_stock_agent_dials_in_and_serves(place: Place, where: str) -> None:
    port = place.hub_port if where == "hub.listen" else place.service.port
    dialling = GoSocket.dial("127.0.0.1", port, "/api/llm/connect", key="worker-key", ssl=place.trusting)
    async with await dialling as socket:
        await socket.say(type="register", worker_id="stock", worker_name="stock", models=["s:1b"], max_concurrency=1)
        await asyncio.to_thread(until, lambda: place.owner("s:1b") == "stock", 10, "it is there")
        asking = asyncio.create_task(
            asyncio.to_thread(place.fetch, "POST", "/api/llm/v1/chat/completions", {"model": "s:1b", "messages": []})
        )
        order = await socket.listen()
        identity, big = order["request_id"], json.dumps({"object": "chat.completion", "x": "y" * 300_000}).encode()
        headers = {"Content-Type": "application/json"}
        await socket.say(type="http_proxy_response_headers", request_id=identity, status=200, headers=headers)
        for at in range(0, len(big), 32 * 1024):
            data = base64.b64encode(big[at : at + 32 * 1024]).decode()
            await socket.say(type="http_proxy_response_chunk", request_id=identity, data=data)
        await socket.say(type="http_proxy_response_end", request_id=identity)
        assert await asking == (200, json.loads(big))


def test_a_certificate_that_is_not_trusted_is_said_to_be_so(place: Place) -> None:
    agent = WorkerProcess(place.folder, f"wss://127.0.0.1:{place.hub_port}", place.fake.url, "doubting")
    try:
        agent.spawn()
        until(lambda: "certificate" in agent.text(), 20, "it says why")
        assert "Traceback" not in agent.text()
        assert not place.owner(MODEL)
    finally:
        agent.kill()


async def test_plain_sockets_get_nowhere(place: Place) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", place.hub_port)
    writer.write(b"GET /api/llm/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    async with asyncio.timeout(10):
        assert b"101" not in await reader.read()
    writer.close()
