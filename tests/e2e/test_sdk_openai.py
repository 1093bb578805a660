"""The OpenAI client through the proxy, at an Ollama, a vLLM-like and a llama.cpp-like server."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess

Fleet = dict[str, FakeProcess]
Ask = Callable[[openai.AsyncOpenAI, str], Awaitable[Any]]

SERVED = {"big": "llama3.2:3b", "vllm": "meta-llama/Llama-3.1-8B", "cpp": "tiny-1b"}
EMBEDDING = {"big": "nomic-embed-text", "vllm": "bge-embed"}
HELLO: Any = [{"role": "user", "content": "hello over there"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
IMAGE: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what"},
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{base64.b64encode(bytes(50)).decode()}"},
            },
        ],
    }
]


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def gathered(stream: Awaitable[Any]) -> list[Any]:
    return [part.model_dump() async for part in await stream]


ASKS: dict[str, Ask] = {
    "chat": lambda c, m: c.chat.completions.create(model=m, messages=HELLO),
    "chat streamed": lambda c, m: gathered(c.chat.completions.create(model=m, messages=HELLO, stream=True)),
    "chat streamed with usage": lambda c, m: gathered(
        c.chat.completions.create(model=m, messages=HELLO, stream=True, stream_options={"include_usage": True})
    ),
    "chat with tools": lambda c, m: c.chat.completions.create(
        model=m, messages=[{"role": "user", "content": "get weather"}], tools=[WEATHER]
    ),
    "chat with tools streamed": lambda c, m: gathered(
        c.chat.completions.create(
            model=m, messages=[{"role": "user", "content": "get weather"}], tools=[WEATHER], stream=True
        )
    ),
    "chat with an image": lambda c, m: c.chat.completions.create(model=m, messages=IMAGE),
    "completions": lambda c, m: c.completions.create(model=m, prompt="once", max_tokens=6),
    "completions streamed": lambda c, m: gathered(c.completions.create(model=m, prompt="once", stream=True)),
    "responses": lambda c, m: c.responses.create(model=m, input="hello"),
    "responses streamed": lambda c, m: gathered(c.responses.create(model=m, input="hello", stream=True)),
}


@pytest.mark.parametrize("server", SERVED)
@pytest.mark.parametrize("what", ASKS)
async def test_answers_are_the_same_as_straight_from_the_server(
    service: Service, fleet: Fleet, what: str, server: str
) -> None:
    model = SERVED[server]
    # The clock of every fake stands still, so even `created` is the same.
    async with client(fleet[server].url) as straight, client(service.url) as through:
        expected = await ASKS[what](straight, model)
        found = await ASKS[what](through, model)
    assert found == expected


@pytest.mark.parametrize("server", EMBEDDING)
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_keep_order_and_numbers(service: Service, fleet: Fleet, server: str, encoding: Any) -> None:
    inputs = [f"text {number}" for number in range(19)]
    async with client(fleet[server].url) as straight, client(service.url) as through:
        answers = [
            await made.embeddings.create(model=EMBEDDING[server], input=inputs, encoding_format=encoding)
            for made in (straight, through)
        ]
    assert answers[1].data == answers[0].data
    assert [row.index for row in answers[1].data] == list(range(19))
    assert answers[1].usage == answers[0].usage


async def test_models_lists_the_fleet_once_each_and_gives_single_ones(service: Service) -> None:
    async with client(service.url) as through:
        names = [model.id async for model in through.models.list()]
        assert len(names) == len(set(names))
        assert {*SERVED.values(), "bge-embed", "phi:latest"} <= set(names)
        for name in SERVED.values():
            assert (await through.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError):
            await through.models.retrieve("no-such-model")


async def test_unknown_models_are_a_404_in_openais_shape(service: Service) -> None:
    """One server is asked all the same (what we know of it may be stale), and its 404 is the answer."""
    async with client(service.url) as through:
        with pytest.raises(openai.NotFoundError, match="not found") as caught:
            await through.chat.completions.create(model="no-such-model", messages=HELLO)
    assert caught.value.type == "not_found_error"
    assert service.records([caught.value.request_id or ""]).popitem()[1]["status"] == 404


async def test_bad_requests_come_back_as_the_server_words_them(service: Service, fleet: Fleet) -> None:
    async with client(fleet["big"].url) as straight, client(service.url) as through:
        texts = []
        for made in (straight, through):
            with pytest.raises(openai.BadRequestError) as caught:
                await made.chat.completions.create(model="nomic-embed-text", messages=HELLO)
            texts.append(caught.value.message)
    assert texts[0] == texts[1]
