"""Where requests go, and that the answer, the headers and the record say why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from fleetproxy.testing.raw import Answer, exchange, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, until

Fleet = dict[str, FakeProcess]
MakeFake = Callable[..., FakeProcess]
MakeService = Callable[..., Service]


async def ask(service: Service, body: dict[str, Any], path: str = "/api/chat", **headers: str) -> Answer:
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    data = request("POST", path, json.dumps(body).encode(), fields)
    return await exchange("127.0.0.1", service.port, data)


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": False, **more}


async def test_a_loaded_model_attracts_its_requests(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="a:1b,b:1b"), fake("two", models="a:1b,b:1b")
    for holder, model in ((one, "a:1b"), (two, "b:1b")):
        body = json.dumps({"model": model, "keep_alive": -1}).encode()
        await exchange("127.0.0.1", holder.port, request("POST", "/api/generate", body))
    service = start({"one": one.url, "two": two.url})
    for _ in range(5):
        for model, name in (("a:1b", "one"), ("b:1b", "two")):
            answer = await ask(service, chat(model))
            assert (answer.status, answer.header("x-fleet-backend")) == (200, name)
            assert answer.header("x-fleet-route") == "model_loaded"


async def test_a_model_on_one_disk_goes_there_and_says_so(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="a:1b"), fake("two", models="b:1b")
    service = start({"one": one.url, "two": two.url})
    for model, name in (("a:1b", "one"), ("b:1b", "two")):
        answer = await ask(service, chat(model))
        assert answer.header("x-fleet-backend") == name
        assert answer.header("x-fleet-route") == "model_available"
        record = service.records([answer.header("x-request-id") or ""]).popitem()[1]
        assert (record["backend"], record["route_reason"]) == (name, "model_available")


@pytest.mark.parametrize("name", ["phi", "phi:latest", "PHI", "library/phi", "registry.ollama.ai/library/phi"])
async def test_spellings_of_one_name_find_one_model_and_are_forwarded_as_written(
    fake: MakeFake, start: MakeService, name: str
) -> None:
    one = fake("one", models="phi")
    service = start({"one": one.url, "two": fake("two", models="other:1b").url})
    answer = await ask(service, chat(name))
    assert (answer.status, answer.header("x-fleet-backend")) == (200, "one")
    assert [row["model"] for row in one.requests()] == [name]


async def test_load_is_spread_over_equals(fake: MakeFake, start: MakeService) -> None:
    fakes = [fake(name, models="a:1b", speed=4) for name in ("one", "two", "three")]
    service = start({made.name: made.url for made in fakes}, processes=2)
    await asyncio.gather(*(ask(service, chat("a:1b")) for _ in range(30)))
    counts = [len(made.requests()) for made in fakes]
    assert sum(counts) == 30
    assert min(counts) >= 5, counts


async def test_limits_hold_over_two_processes_and_waiters_get_their_turn(fake: MakeFake, start: MakeService) -> None:
    one = fake("one", models="a:1b", speed=8, slots=16)
    service = start({"one": {"url": one.url, "max_concurrent": 2}}, processes=2)
    answers = await asyncio.gather(*(ask(service, chat("a:1b")) for _ in range(12)))
    assert {answer.status for answer in answers} == {200}
    # Two processes may claim the last slot at once: one more than the limit is allowed for, no more.
    assert one.ask("GET", "/__fake/state")["peak"] <= 3
    records = service.records([answer.header("x-request-id") or "" for answer in answers])
    assert any(record["queue_ms"] > 0 for record in records.values())


async def test_a_full_line_is_a_busy_503(fake: MakeFake, start: MakeService) -> None:
    one = fake("one", models="a:1b", speed=1)
    service = start({"one": {"url": one.url, "max_concurrent": 1}}, settings={"queue": {"size": 1, "wait_s": 30}})
    answers = await asyncio.gather(*(ask(service, chat("a:1b")) for _ in range(8)))
    statuses = sorted(answer.status or 0 for answer in answers)
    assert statuses.count(200) >= 2
    assert statuses[-1] == 503
    busy = next(answer for answer in answers if answer.status == 503)
    assert busy.header("retry-after")
    assert "server busy" in busy.body.decode()


async def test_pinned_requests_go_where_they_are_told(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="a:1b"), fake("two", models="a:1b")
    service = start({"One": one.url, "two": two.url})
    for pin in ("one", "ONE", " One "):
        answer = await ask(service, chat("a:1b"), X_Ollama_Pin_Server=pin)
        assert (answer.header("x-fleet-backend"), answer.header("x-fleet-route")) == ("One", "pinned_by_header")
    unknown = await ask(service, chat("a:1b"), X_Ollama_Pin_Server="nobody")
    assert unknown.status == 404
    two.kill()
    until(lambda: not all(server["isOnline"] for server in service.admin("GET", "/api/servers")), 10, "offline")
    assert (await ask(service, chat("a:1b"), X_Ollama_Pin_Server="two")).status in {502, 503}


async def test_the_dialect_decides_who_may_serve(fake: MakeFake, start: MakeService) -> None:
    """An OpenAI-compatible server never sees Ollama's own paths."""
    vllm = fake("vllm", kind="openai", models="shared")
    ollama = fake("ollama", models="shared:latest")
    service = start({"vllm": {"url": vllm.url, "kind": "openai"}, "ollama": ollama.url})
    for _ in range(6):
        answer = await ask(service, chat("shared"))
        assert (answer.status, answer.header("x-fleet-backend")) == (200, "ollama")
    assert not vllm.requests()


async def test_embeddings_are_split_and_come_back_in_order(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="nomic-embed-text"), fake("two", models="nomic-embed-text")
    inputs = [f"text {number}" for number in range(40)]
    body = {"model": "nomic-embed-text", "input": inputs}
    for made in (two, one):  # loaded on both
        straight = await exchange("127.0.0.1", made.port, request("POST", "/v1/embeddings", json.dumps(body).encode()))
        made.ask("DELETE", "/__fake/requests")
    batch = {"embedding_batch_size": 8}
    service = start({"one": {"url": one.url, **batch}, "two": {"url": two.url, **batch}})
    answer = await ask(service, body, "/v1/embeddings")
    assert json.loads(answer.body)["data"] == json.loads(straight.body)["data"]
    assert json.loads(answer.body)["usage"] == json.loads(straight.body)["usage"]
    sizes = [len(json.loads(row["body"])["input"]) for made in (one, two) for row in made.requests()]
    assert sum(sizes) == 40
    assert max(sizes) <= 8
    assert one.requests()
    assert two.requests()
    native = await ask(service, body, "/api/embed")
    assert json.loads(native.body)["embeddings"] == [row["embedding"] for row in json.loads(straight.body)["data"]]
    assert len(service.records([answer.header("x-request-id") or "", native.header("x-request-id") or ""])) == 2


async def test_a_failed_slice_alone_is_asked_elsewhere(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="nomic-embed-text"), fake("two", models="nomic-embed-text")
    batch = {"embedding_batch_size": 8}
    service = start({"one": {"url": one.url, **batch}, "two": {"url": two.url, **batch}})
    one.fault("reset_before", next=1, path="/v1/embeddings")
    body = {"model": "nomic-embed-text", "input": [f"text {number}" for number in range(32)]}
    answer = await ask(service, body, "/v1/embeddings")
    assert answer.status == 200
    assert [row["index"] for row in json.loads(answer.body)["data"]] == list(range(32))
    assert len(one.requests()) + len(two.requests()) <= 6


async def test_drained_and_disabled_servers_get_nothing_new(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="a:1b"), fake("two", models="a:1b")
    service = start({"one": one.url, "two": two.url})
    identity = next(server["id"] for server in service.admin("GET", "/api/servers") if server["name"] == "one")
    pin = {"X-Ollama-Pin-Server": "one"}

    def pinned() -> int:
        return service.fetch("POST", "/api/chat", json.dumps(chat("a:1b")).encode(), pin)[0]

    service.admin("PATCH", f"/api/servers/{identity}", {"isDisabled": True})
    until(lambda: pinned() == 503, 2, "the change has reached the proxies")
    one.ask("DELETE", "/__fake/requests")
    for _ in range(6):
        assert (await ask(service, chat("a:1b"))).header("x-fleet-backend") == "two"
    assert pinned() == 503
    assert not one.requests()
    service.admin("PATCH", f"/api/servers/{identity}", {"isDisabled": False})
    until(lambda: pinned() == 200, 2, "and back")


async def test_lists_answer_at_once_with_a_dead_server_in_the_fleet(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="a:1b"), fake("two", models="b:1b")
    service = start({"one": one.url, "two": two.url})
    two.kill()
    loop = asyncio.get_running_loop()
    for path in ("/api/tags", "/api/ps", "/v1/models", "/api/version"):
        began_s = loop.time()
        answer = await exchange("127.0.0.1", service.port, request("GET", path))
        assert (answer.status, answer.clean) == (200, True)
        assert loop.time() - began_s < 1.0


async def test_reload_adds_and_removes_servers_without_a_failed_request(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="a:1b"), fake("two", models="a:1b")
    service = start({"one": one.url}, processes=2)
    statuses: list[int | None] = []
    done = asyncio.Event()

    async def traffic() -> None:
        while not done.is_set():
            statuses.append((await ask(service, chat("a:1b"))).status)

    running = asyncio.gather(*(traffic() for _ in range(4)))
    entry = {"name": "two", "url": two.url}
    service.reload(servers=[{"name": "one", "url": one.url}, entry])
    # Pinned: unpinned ones go on to the first, which has the model in memory by now.
    async with asyncio.timeout(15):
        while (await ask(service, chat("a:1b"), **{"X-Ollama-Pin-Server": "two"})).status != 200:
            await asyncio.sleep(0.05)
    service.reload(servers=[entry])
    await asyncio.sleep(1.5)
    one.ask("DELETE", "/__fake/requests")
    await asyncio.sleep(0.5)
    done.set()
    await running
    assert set(statuses) == {200}
    assert not one.requests()
