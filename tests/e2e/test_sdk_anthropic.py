"""The Anthropic client through the proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess

Fleet = dict[str, FakeProcess]
Ask = Callable[[anthropic.AsyncAnthropic, str], Awaitable[Any]]

SERVED = {"big": "qwen3:8b", "vllm": "meta-llama/Llama-3.1-8B", "cpp": "tiny-1b"}
HELLO: Any = [{"role": "user", "content": "hello over there"}]
WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


async def final(made: anthropic.AsyncAnthropic, model: str, **fields: Any) -> Any:
    async with made.messages.stream(model=model, max_tokens=60, **fields) as stream:
        events = [event.type async for event in stream]
        return events, (await stream.get_final_message()).model_dump()


ASKS: dict[str, Ask] = {
    "message": lambda c, m: c.messages.create(model=m, max_tokens=60, messages=HELLO),
    "message streamed": lambda c, m: final(c, m, messages=HELLO),
    "tools": lambda c, m: c.messages.create(
        model=m, max_tokens=60, messages=[{"role": "user", "content": "get weather"}], tools=[WEATHER]
    ),
    "tools streamed": lambda c, m: final(c, m, messages=[{"role": "user", "content": "get weather"}], tools=[WEATHER]),
    "thinking streamed": lambda c, m: final(c, m, messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024}),
}


@pytest.mark.parametrize("server", SERVED)
@pytest.mark.parametrize("what", ASKS)
async def test_answers_are_the_same_as_straight_from_the_server(
    service: Service, fleet: Fleet, what: str, server: str
) -> None:
    async with client(fleet[server].url) as straight, client(service.url) as through:
        expected = await ASKS[what](straight, SERVED[server])
        assert await ASKS[what](through, SERVED[server]) == expected


async def test_unknown_models_are_a_404_in_anthropics_shape(service: Service) -> None:
    async with client(service.url) as through:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await through.messages.create(model="no-such-model", max_tokens=5, messages=HELLO)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    assert caught.value.request_id
