"""Ollama's own client through the proxy: the same answers as straight from the server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import ollama
import pytest

from fleetproxy.testing.raw import exchange, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess

Fleet = dict[str, FakeProcess]
Ask = Callable[[ollama.AsyncClient], Awaitable[Any]]

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
HELLO = [{"role": "user", "content": "hello over there"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
#: Reckoned from whether the model was loaded: the only thing that differs between two servers of one seed.
VARIES = {"load_duration", "total_duration", "created_at"}


def plain(value: Any) -> Any:
    """A reply as JSON without what depends on the server's load state."""
    if isinstance(value, list):
        return [plain(part) for part in value]
    fields = value.model_dump() if hasattr(value, "model_dump") else value
    return {key: part for key, part in fields.items() if key not in VARIES}


async def gathered(stream: Any) -> list[Any]:
    return [part async for part in await stream]


ASKS: dict[str, Ask] = {
    "chat": lambda client: client.chat("llama3.2:3b", HELLO),
    "chat streamed": lambda client: gathered(client.chat("llama3.2:3b", HELLO, stream=True)),
    "chat of a model by its short name": lambda client: client.chat("phi", HELLO),
    "chat with options": lambda client: client.chat("llama3.2:3b", HELLO, options={"num_predict": 5}),
    "chat with tools": lambda client: client.chat(
        "llama3.2:3b", [{"role": "user", "content": "get weather"}], tools=[WEATHER]
    ),
    "chat with tools streamed": lambda client: gathered(
        client.chat("llama3.2:3b", [{"role": "user", "content": "get weather"}], tools=[WEATHER], stream=True)
    ),
    "chat thinking": lambda client: gathered(client.chat("qwen3:8b", HELLO, think=True, stream=True)),
    "chat with an image": lambda client: client.chat(
        "gemma3:4b", [{"role": "user", "content": "what is this", "images": [PNG]}]
    ),
    "chat in JSON": lambda client: client.chat("llama3.2:3b", HELLO, format="json"),
    "generate": lambda client: client.generate("llama3.2:3b", "once upon a time"),
    "generate streamed": lambda client: gathered(client.generate("llama3.2:3b", "once upon a time", stream=True)),
    "embed one": lambda client: client.embed("nomic-embed-text", "one"),
    "embed many": lambda client: client.embed("nomic-embed-text", [f"text {number}" for number in range(23)]),
    "embed shortened": lambda client: client.embed("nomic-embed-text", ["a", "b"], dimensions=16),
    "embeddings": lambda client: client.embeddings("nomic-embed-text", "one"),
    "show": lambda client: client.show("qwen3:8b"),
}


@pytest.mark.parametrize("what", ASKS)
async def test_answers_are_the_same_as_straight_from_the_server(service: Service, fleet: Fleet, what: str) -> None:
    source = fleet["small"] if "short name" in what else fleet["big"]
    async with ollama.AsyncClient(host=source.url) as straight, ollama.AsyncClient(host=service.url) as through:
        expected = plain(await ASKS[what](straight))
        assert plain(await ASKS[what](through)) == expected


async def test_the_list_is_the_whole_fleet(service: Service) -> None:
    async with ollama.AsyncClient(host=service.url) as client:
        names = [model.model for model in (await client.list()).models]
    assert {"llama3.2:3b", "qwen3:8b", "gemma3:4b", "nomic-embed-text:latest", "phi:latest"} <= set(names)
    assert len(names) == len(set(names))


async def test_ps_lists_what_is_loaded(service: Service) -> None:
    async with ollama.AsyncClient(host=service.url) as client:
        await client.generate("qwen3:8b", "load it", keep_alive="10m")
        service.listed("qwen3:8b", path="/api/ps")
        assert "qwen3:8b" in [model.model for model in (await client.ps()).models]


async def test_loading_and_unloading(service: Service, fleet: Fleet) -> None:
    async with ollama.AsyncClient(host=service.url) as client:
        assert (await client.generate("gemma3:4b")).done_reason == "load"
        assert "gemma3:4b" in fleet["big"].ask("GET", "/__fake/state")["resident"]
        assert (await client.generate("gemma3:4b", keep_alive=0)).done_reason == "unload"
        assert "gemma3:4b" not in fleet["big"].ask("GET", "/__fake/state")["resident"]


async def test_unknown_models_are_a_404_in_ollamas_shape(service: Service) -> None:
    async with ollama.AsyncClient(host=service.url) as client:
        with pytest.raises(ollama.ResponseError, match="not found") as caught:
            await client.chat("no-such-model", HELLO)
    assert caught.value.status_code == 404


async def test_pull_copy_and_delete(service: Service, fleet: Fleet) -> None:
    """Writes go to one server; a poll later the fleet knows the model."""
    name, twin = f"pulled-{uuid4().hex[:8]}:1b", f"twin-{uuid4().hex[:8]}:1b"
    async with ollama.AsyncClient(host=service.url) as client:
        lines = [line async for line in await client.pull(name, stream=True)]
        assert [lines[0].status, lines[-1].status] == ["pulling manifest", "success"]
        pulls = [fake for fake in fleet.values() if any(row["model"] == name for row in fake.requests())]
        assert len(pulls) == 1
        service.listed(name)
        assert (await client.chat(name, HELLO)).message.content
        await client.copy(name, twin)
        service.listed(twin)
        assert (await client.show(twin)).details
        for gone in (name, twin):
            await client.delete(gone)
            service.listed(gone, present=False)
        assert not {name, twin} & {model.model for model in (await client.list()).models}
        with pytest.raises(ollama.ResponseError, match="not found"):
            await client.delete(name)


async def test_a_failed_pull_fails_as_it_does_straight(service: Service) -> None:
    async with ollama.AsyncClient(host=service.url) as client:
        with pytest.raises(ollama.ResponseError, match="file does not exist"):
            async for _ in await client.pull(f"missing-{uuid4().hex[:8]}", stream=True):
                pass


async def test_blobs_and_the_create_that_follows_meet_on_one_server(service: Service, fleet: Fleet) -> None:
    weights = b"GGUF" + uuid4().bytes * 20_000
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    name = f"created-{uuid4().hex[:8]}"
    at = ("127.0.0.1", service.port)
    assert (await exchange(*at, request("HEAD", f"/api/blobs/{digest}"), method="HEAD")).status == 404
    assert (await exchange(*at, request("POST", f"/api/blobs/{digest}", weights))).status == 201
    assert (await exchange(*at, request("HEAD", f"/api/blobs/{digest}"), method="HEAD")).status == 200
    async with ollama.AsyncClient(host=service.url) as client:
        lines = [line async for line in await client.create(name, files={"own.gguf": digest}, stream=True)]
        assert lines[-1].status == "success"
        service.listed(f"{name}:latest")
        assert (await client.chat(name, HELLO)).message.content
        await client.delete(name)
    holders = [
        fake.name
        for fake in fleet.values()
        if any(row["target"].startswith("/api/blobs/") and digest in row["target"] for row in fake.requests())
    ]
    assert len(holders) == 1


STREAMS = {
    "/api/chat": b'{"model":"llama3.2:3b","messages":[{"role":"user","content":"equal"}]}',
    "/api/generate": b'{"model":"llama3.2:3b","prompt":"equal"}',
    "/v1/chat/completions": b'{"model":"llama3.2:3b","messages":[{"role":"user","content":"equal"}],"stream":true,'
    b'"stream_options":{"include_usage":true}}',
    "/v1/completions": b'{"model":"llama3.2:3b","prompt":"equal","stream":true}',
    "/v1/responses": b'{"model":"llama3.2:3b","input":"equal","stream":true}',
    "/v1/messages": b'{"model":"llama3.2:3b","max_tokens":40,"stream":true,"messages":[{"role":"user","content":"x"}]}',
}


@pytest.mark.parametrize("path", STREAMS)
async def test_streams_are_equal_byte_for_byte(service: Service, fleet: Fleet, path: str) -> None:
    data = request("POST", path, STREAMS[path])
    for name in ("big", "small"):  # loaded on both: no load time in any answer
        await exchange("127.0.0.1", fleet[name].port, data)
    straight = await exchange("127.0.0.1", fleet["big"].port, data)
    through = await exchange("127.0.0.1", service.port, data)
    assert (through.status, through.clean) == (200, True)
    assert through.body == straight.body
    assert through.header("content-type") == straight.header("content-type")
    assert through.header("x-fleet-backend") in {"big", "small"}
    assert service.records([through.header("x-request-id") or ""])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("HEAD", "/", 200), ("HEAD", "/api/tags", 200), ("HEAD", "/api/version", 200),
     ("GET", "/api/version", 200), ("GET", "/api/status", 200), ("GET", "/v1/models", 200), ("GET", "/api/ps", 200)],
)  # fmt: skip
async def test_plain_pages(service: Service, method: str, path: str, status: int) -> None:
    answer = await exchange("127.0.0.1", service.port, request(method, path), method=method)
    assert (answer.status, answer.clean) == (status, True)
    if path == "/" and method == "GET":
        assert answer.body == b"Ollama is running"
