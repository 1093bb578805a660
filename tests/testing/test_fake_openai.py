"""The OpenAI and Anthropic dialects of the fakes, judged by the vendors' own clients."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletionToolParam

from fleetproxy.testing.fakes import Fake
from fleetproxy.testing.raw import exchange, request

TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(params=["ollama", "vllm", "llamacpp"])
def fake(request: pytest.FixtureRequest) -> Fake:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Fake)
    return found


@pytest.fixture
async def client(fake: Fake) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def claude(fake: Fake) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=fake.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def model(fake: Fake) -> str:
    return next(iter(fake.machine.disk.values())).name


async def test_chat_streams_what_it_says_whole(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.chat.completions.create(model=model, messages=HELLO)
    stream = await client.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_comes_only_when_asked_for(client: openai.AsyncOpenAI, model: str) -> None:
    stream = await client.chat.completions.create(model=model, messages=HELLO, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in [chunk async for chunk in stream])


async def test_tools(client: openai.AsyncOpenAI, model: str) -> None:
    asked = [{"role": "user", "content": "please get weather"}]
    called = await client.chat.completions.create(model=model, messages=asked, tools=[TOOL])
    choice = called.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    async with client.chat.completions.stream(model=model, messages=asked, tools=[TOOL]) as stream:
        final = await stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls
    assert streamed
    assert streamed[0].function.arguments == choice.message.tool_calls[0].function.arguments
    answer = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "rain"}
    told = await client.chat.completions.create(
        model=model, messages=[*asked, choice.message.model_dump(), answer], tools=[TOOL]
    )
    assert "rain" in (told.choices[0].message.content or "")


async def test_images_change_the_answer(client: openai.AsyncOpenAI, model: str) -> None:
    def ask(data: bytes) -> list[dict[str, object]]:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts = [{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": parts}]

    one = await client.chat.completions.create(model=model, messages=ask(b"one"))
    two = await client.chat.completions.create(model=model, messages=ask(b"two"))
    assert one.choices[0].message.content != two.choices[0].message.content


async def test_completions(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.completions.create(model=model, prompt="once upon", max_tokens=5)
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 5)
    stream = await client.completions.create(model=model, prompt="once upon", max_tokens=5, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text


async def test_embeddings_as_floats_and_as_base64_are_the_same_numbers(fake: Fake, client: openai.AsyncOpenAI) -> None:
    model = list(fake.machine.disk.values())[-1].name
    floats = await client.embeddings.create(model=model, input=["a", "b"], encoding_format="float", dimensions=8)
    packed = await exchange(
        "127.0.0.1",
        fake.http.port,
        request(
            "POST",
            "/v1/embeddings",
            b'{"model":"%b","input":["a","b"],"encoding_format":"base64","dimensions":8}' % model.encode(),
        ),
    )
    rows = json.loads(packed.body)["data"]
    for index, row in enumerate(rows):
        numbers = struct.unpack("<8f", base64.b64decode(row["embedding"]))
        assert list(numbers) == pytest.approx(floats.data[index].embedding)
    assert [row.index for row in floats.data] == [0, 1]


async def test_models(fake: Fake, client: openai.AsyncOpenAI, model: str) -> None:
    listed = [entry.id async for entry in client.models.list()]
    assert listed == [entry.name for entry in fake.machine.disk.values()]
    assert (await client.models.retrieve(model)).id == model


async def test_unknown_models_are_404(fake: Fake, client: openai.AsyncOpenAI) -> None:
    if fake.profile.kind == "llamacpp":  # it has one model and answers to any name
        answer = await client.chat.completions.create(model="nope", messages=HELLO)
        assert answer.choices[0].message.content
        return
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nope", messages=HELLO)


async def test_responses(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.responses.create(model=model, input="hello")
    assert whole.output_text
    events = [event async for event in await client.responses.create(model=model, input="hello", stream=True)]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    tool = {"type": "function", **TOOL["function"]}
    called = await client.responses.create(model=model, input="get weather", tools=[tool])
    assert called.output[0].type == "function_call"


async def test_messages(claude: anthropic.AsyncAnthropic, model: str) -> None:
    whole = await claude.messages.create(model=model, max_tokens=50, messages=HELLO)
    async with claude.messages.stream(model=model, max_tokens=50, messages=HELLO) as stream:
        final = await stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    short = await claude.messages.create(model=model, max_tokens=2, messages=HELLO)
    assert short.stop_reason == "max_tokens"


async def test_messages_with_tools(claude: anthropic.AsyncAnthropic, model: str) -> None:
    tool = {"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}
    asked = [{"role": "user", "content": "get weather"}]
    whole = await claude.messages.create(model=model, max_tokens=50, messages=asked, tools=[tool])
    assert whole.stop_reason == "tool_use"
    async with claude.messages.stream(model=model, max_tokens=50, messages=asked, tools=[tool]) as stream:
        final = await stream.get_final_message()
    assert final.content[0].input == whole.content[0].input
    result = {"type": "tool_result", "tool_use_id": whole.content[0].id, "content": "hail"}
    told = await claude.messages.create(
        model=model,
        max_tokens=50,
        messages=[*asked, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}],
        tools=[tool],
    )
    assert "hail" in told.content[0].text


async def test_vllm_pages(vllm: Fake) -> None:
    port = vllm.http.port
    for target, status in (("/health", 200), ("/version", 200), ("/load", 200), ("/api/tags", 404), ("/", 404)):
        assert (await exchange("127.0.0.1", port, request("GET", target))).status == status, target
    metrics = await exchange("127.0.0.1", port, request("GET", "/metrics"))
    assert b'vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-8B"} 0' in metrics.body


async def test_llamacpp_pages(llamacpp: Fake) -> None:
    port = llamacpp.http.port
    for target in ("/health", "/props", "/slots", "/metrics", "/models"):
        assert (await exchange("127.0.0.1", port, request("GET", target))).status == 200, target
    body = b'{"prompt":"x","n_predict":4,"stream":true}'
    answer = await exchange("127.0.0.1", port, request("POST", "/completion", body))
    assert answer.body.count(b"data: ") == 5
    assert b'"stop":true' in answer.pieces[-1][1]
