"""nfrx's surface as its users have it: the OpenAI client, stock agents and ours, a configured server, the state."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from fleetproxy.testing.relay import FakeRelay
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, fetch, until
from tests.e2e.conftest import SAME
from tests.e2e.stock_agent import StockAgent
from tests.e2e.test_workers import WorkerProcess

KEY = "nfrx-api-key"
BEARER = {"Authorization": f"Bearer {KEY}"}
CHAT, VECTORS = "llama3.2:3b", "nomic-embed-text"
HELLO: Any = [{"role": "user", "content": "hello over there"}]
TEXTS = [f"text number {number}" for number in range(61)]


class House:
    """A service, a server it is configured with, one worker of ours and one stock agent."""

    def __init__(self, service: Service, fakes: dict[str, FakeProcess], ours: WorkerProcess, stock: StockAgent) -> None:
        self.service = service
        self.fakes = fakes
        self.ours = ours
        self.stock = stock

    def client(self, key: str = KEY, path: str = "/api/llm/v1") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.service.url + path, api_key=key, max_retries=0)

    def get(self, path: str) -> Any:
        status, _, body = self.service.fetch("GET", path, headers=BEARER)
        assert status == 200, body
        return json.loads(body)

    def state(self) -> Any:
        return self.get("/api/state")["plugins"]


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("nfrx")
    # Equal seeds: whoever computes it, an input has one vector, so a split answer can be compared with a whole one.
    names = {"box": f"{CHAT},{VECTORS}", "ours": f"{CHAT},{VECTORS}", "stock": f"{CHAT},{VECTORS},solo:1b"}
    fakes = {name: FakeProcess(folder, name, kind="ollama", models=models, **SAME) for name, models in names.items()}
    for fake in fakes.values():
        fake.start()
    settings = {"auth": {"api_key": KEY, "client_key": "worker-key"}, "hub": {}}
    servers = {"box": {"url": fakes["box"].url, "embedding_batch_size": 5}}
    service = Service(folder / "service", servers, processes=request.param, settings=settings)
    ours: WorkerProcess | None = None
    try:
        service.start()
        ours = WorkerProcess(
            folder, service.url, fakes["ours"].url, "gpu", EMBEDDING_BATCH_SIZE="7", MAX_CONCURRENCY="3"
        )
        ours.spawn()
        config = {"agent_config": {"embedding_batch_size": "4", "hostname": "attic"}, "client_key": "worker-key"}
        models = [CHAT, VECTORS, "solo:1b"]
        with StockAgent(service.url, fakes["stock"].url, "w-stock", models, max_concurrency=1, **config) as stock:
            made = House(service, fakes, ours, stock)
            until(lambda: _everybody(made), 20, "all workers are routed to, by every process")
            yield made
        ours.signal(signal.SIGTERM)
        assert ours.wait(20) == 0
        assert service.stop() == 0
        assert not service.bad_lines()
    finally:
        if ours is not None:
            ours.kill()
        service.kill()
        for fake in fakes.values():
            fake.kill()


def _everybody(house: House) -> bool:
    """Any of the processes may answer: ask often enough to meet them all."""
    owners = [{entry["id"]: entry["owned_by"] for entry in house.get("/api/llm/v1/models")["data"]} for _ in range(8)]
    return all(found.get(CHAT) == "box,gpu,w-stock" and "solo:1b" in found for found in owners)


async def test_the_openai_client_does_everything_through_it(house: House) -> None:
    async with house.client() as through:
        answer = await through.chat.completions.create(model=CHAT, messages=HELLO)
        assert answer.choices[0].message.content
        pieces = [
            piece async for piece in await through.chat.completions.create(model=CHAT, messages=HELLO, stream=True)
        ]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert (await through.completions.create(model=CHAT, prompt="once")).choices[0].text
        assert (await through.responses.create(model=CHAT, input="hello")).output_text
        listed = {model.id: model async for model in through.models.list()}
        assert listed["solo:1b"].owned_by == "w-stock"
        assert listed[CHAT].owned_by == "box,gpu,w-stock"
        assert (await through.models.retrieve(CHAT)) == listed[CHAT]
        with pytest.raises(openai.NotFoundError) as missing:
            await through.models.retrieve("no-such-model")
        assert missing.value.code == "model_not_found"


async def test_the_key_is_asked_for(house: House) -> None:
    for key in ("wrong", ""):
        async with house.client(key or "none") as through:
            with pytest.raises(openai.AuthenticationError) as refused:
                await through.chat.completions.create(model=CHAT, messages=HELLO)
            assert refused.value.code == "unauthorized"
    for path in ("/api/state", "/api/state/stream", "/api/llm/v1/models"):
        assert house.service.fetch("GET", path)[0] == 401, path
    for path in ("/state", "/api/llm", "/api/client/openapi.json", "/healthz"):
        assert house.service.fetch("GET", path)[0] == 200, path


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_of_the_whole_fleet_are_the_vectors_of_one_server(house: House, encoding: Any) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{house.fakes['box'].url}/v1", api_key="x") as straight,
        house.client() as through,
    ):
        expected = await straight.embeddings.create(model=VECTORS, input=TEXTS, encoding_format=encoding)
        for _ in range(3):
            found = await through.embeddings.create(model=VECTORS, input=TEXTS, encoding_format=encoding)
            assert found == expected
    row = house.service.rows(
        "select * from requests where endpoint = '/api/llm/v1/embeddings' order by started_at desc"
    )[0]
    assert (row["status"], row["outcome"], row["tokens_in"]) == (200, "ok", expected.usage.prompt_tokens)
    tries = house.service.rows(f"select backend, status from attempts where request_id = '{row['request_id']}'")
    assert len(tries) >= len(TEXTS) // 7
    assert {one["status"] for one in tries} == {200}


def test_every_surface_gives_the_same_vectors(house: House) -> None:
    body = json.dumps({"model": VECTORS, "input": TEXTS}).encode()
    straight = fetch(house.fakes["box"].url, "POST", "/api/embed", body)[2]
    status, headers, answer = house.service.fetch("POST", "/api/embed", body)
    assert status == 200
    expected, found = json.loads(straight), json.loads(answer)
    assert found["embeddings"] == expected["embeddings"]
    assert found["prompt_eval_count"] == expected["prompt_eval_count"]
    assert int(headers["x-fleet-slices"]) > 1
    assert set(headers["x-fleet-backend"].split(", ")) <= {"box", "gpu"}, "a stock agent has no /api/embed"


async def test_a_path_may_name_the_worker_or_the_server(house: House) -> None:
    for name in ("w-stock", "id-gpu", "box"):
        before = len(house.stock.orders)
        async with house.client(path=f"/api/llm/id/{name}/v1") as through:
            answer = await through.chat.completions.with_raw_response.create(model=CHAT, messages=HELLO)
            assert answer.headers["x-fleet-backend"] == {"id-gpu": "gpu"}.get(name, name)
            assert {model.owned_by async for model in through.models.list()} == {{"id-gpu": "gpu"}.get(name, name)}
        assert len(house.stock.orders) - before == (name == "w-stock")
    assert house.stock.orders[-1]["path"] == "/chat/completions"
    async with house.client(path="/api/llm/id/nobody/v1") as through:
        with pytest.raises(openai.NotFoundError) as missing:
            await through.chat.completions.create(model=CHAT, messages=HELLO)
        assert missing.value.code == "no_worker"


async def test_who_stands_in_line_is_told_his_place(house: House) -> None:
    """The stock agent takes one request at once, and nobody else has this model."""
    house.stock.hold.clear()
    body = json.dumps({"model": "solo:1b", "messages": HELLO, "stream": True})
    first, second = (http.client.HTTPConnection(house.service.host, house.service.port, timeout=20) for _ in range(2))
    try:
        before = len(house.stock.orders)
        first.request("POST", "/api/llm/v1/chat/completions", body, BEARER | {"Content-Type": "application/json"})
        await asyncio.to_thread(until, lambda: len(house.stock.orders) > before, 5, "the first one is being served")
        second.request("POST", "/api/llm/v1/chat/completions", body, BEARER | {"Content-Type": "application/json"})
        answer = await asyncio.to_thread(second.getresponse)
        assert (answer.status, answer.getheader("content-type")) == (200, "text/event-stream")
        lines = [await asyncio.to_thread(answer.readline) for _ in range(3)]
        assert lines[0] == b"event: nfrx.queue\n"
        said = json.loads(lines[1].removeprefix(b"data: "))
        assert said == {
            "type": "nfrx.queue",
            "request_id": answer.getheader("x-request-id"),
            "model": "solo:1b",
            "position": 1,
        }
        in_line = lambda: house.state()["llm"]["server"]["scheduler_queue_len"] == 1  # noqa: E731
        await asyncio.to_thread(until, in_line, 5, "the state says so, within a second or two")
        house.stock.hold.set()
        rest = await asyncio.to_thread(answer.read)
        assert rest.rstrip().endswith(b"data: [DONE]")
        assert (await asyncio.to_thread(lambda: first.getresponse().read())).rstrip().endswith(b"data: [DONE]")
    finally:
        house.stock.hold.set()
        first.close()
        second.close()


def test_the_state_shows_who_is_there_and_what_was_done(house: House) -> None:
    for _ in range(3):
        house.service.fetch(
            "POST", "/v1/chat/completions", json.dumps({"model": CHAT, "messages": HELLO}).encode(), BEARER
        )
    house.service.rows("select 1")  # rows are loaded before it answers

    def counted() -> bool:
        llm = house.state()["llm"]
        return sum(one["processed_total"] for one in [*llm["workers"], *llm["servers"]]) >= 3

    until(counted, 10, "work is counted")
    llm = house.state()["llm"]
    assert llm["server"]["state"] == "ready"
    assert {worker["id"]: worker["name"] for worker in llm["workers"]} == {"id-gpu": "gpu", "w-stock": "w-stock"}
    stock = next(worker for worker in llm["workers"] if worker["id"] == "w-stock")
    assert (stock["max_concurrency"], stock["embedding_batch_size"]) == (1, 4)
    assert stock["host_info"]["hostname"] == "attic"
    assert stock["status"] in ("idle", "working")
    models = {model["id"]: model for model in llm["models"]}
    assert models["solo:1b"] == {"id": "solo:1b", "workers": ["w-stock"], "servers": []}
    assert models[CHAT]["servers"] == ["box"]
    assert [server["name"] for server in llm["servers"]] == ["box"]


def test_watchers_see_a_worker_come_and_go(house: House) -> None:
    seen: list[set[str]] = []
    connection = http.client.HTTPConnection(house.service.host, house.service.port, timeout=20)
    connection.request("GET", "/api/state/stream", headers=BEARER)
    answer = connection.getresponse()
    assert answer.status == 200

    def read() -> None:
        while line := answer.readline():
            if line.startswith(b"data: "):
                workers = json.loads(line[6:])["plugins"]["llm"]["workers"]
                seen.append({worker["name"] for worker in workers})
                if len(seen) > 1 and "w-new" not in seen[-1] and any("w-new" in names for names in seen):
                    return

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    until(lambda: seen, 5, "the first frame")
    with StockAgent(house.service.url, house.fakes["stock"].url, "w-new", ["new:1b"], client_key="worker-key"):
        until(lambda: "w-new" in seen[-1], 5, "it has come")
    reading.join(10)
    connection.close()
    assert not reading.is_alive(), "its leaving was not seen"


def test_descriptors_and_document_are_there(house: House) -> None:
    for family in ("llm", "asr", "mcp"):
        assert house.get(f"/api/{family}")["id"] == family
    document = house.get("/api/client/openapi.json")
    assert {"/api/llm/v1/chat/completions", "/api/servers", "/api/chat", "/api/state/stream"} <= set(document["paths"])
    assert set(house.get("/api/state/descriptors")) == {"asr", "llm", "mcp"}


async def test_many_inputs_for_one_busy_worker_wait_their_turn(house: House) -> None:
    """It takes one slice at once: slices of several requests stand in line, and none is lost or doubled."""
    async with house.client(path="/api/llm/id/w-stock/v1") as through:
        asked = [through.embeddings.create(model=VECTORS, input=TEXTS[:17], encoding_format="float") for _ in range(3)]
        answers = await asyncio.gather(*asked)
    assert answers[0] == answers[1] == answers[2]
    assert [row.index for row in answers[0].data] == list(range(17))


async def test_a_relay_and_its_calls_are_in_the_state(house: House) -> None:
    url = house.service.url.replace("http", "ws", 1) + "/api/mcp/connect"
    async with await FakeRelay.dial(url, relay_id="tools", key="worker-key"):
        await asyncio.to_thread(until, lambda: house.state()["mcp"]["clients"], 10, "the relay is shown")
        [client] = house.state()["mcp"]["clients"]
        assert (client["id"], client["status"], client["inflight"]) == ("tools", "idle", 0)
    await asyncio.to_thread(until, lambda: not house.state()["mcp"]["clients"], 10, "the relay has gone")
