"""The Ollama fake, judged by Ollama's own client and by the words of the real server."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import AsyncIterator

import ollama as sdk
import pytest

from fleetproxy.testing.fakes import Fake, Profile
from fleetproxy.testing.raw import exchange, request

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
        },
    },
}


@pytest.fixture
async def client(ollama: Fake) -> AsyncIterator[sdk.AsyncClient]:
    async with sdk.AsyncClient(host=ollama.url) as made:
        yield made


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_a_stream_says_the_same_as_the_whole_answer(client: sdk.AsyncClient) -> None:
    whole = await client.chat("llama3.2:3b", user("hello"))
    parts = [part async for part in await client.chat("llama3.2:3b", user("hello"), stream=True)]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert len(parts) > 10
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].eval_count, parts[-1].done_reason) == (whole.eval_count, "stop")
    assert parts[-1].eval_count == len(parts) - 1


async def test_generate_streams_by_default_and_ends_with_context_and_durations(ollama: Fake) -> None:
    answer = await exchange(
        "127.0.0.1", ollama.http.port, request("POST", "/api/generate", b'{"model":"llama3.2:3b","prompt":"x"}')
    )
    assert answer.header("content-type") == "application/x-ndjson"
    lines = answer.body.splitlines()
    assert len(lines) == len(answer.pieces)
    last = sdk.GenerateResponse.model_validate_json(lines[-1])
    assert last.done
    assert last.context
    assert last.total_duration == (last.load_duration or 0) + last.prompt_eval_duration + last.eval_duration


async def test_num_predict_limits_and_says_so(client: sdk.AsyncClient) -> None:
    answer = await client.generate("llama3.2:3b", "hello", options={"num_predict": 3})
    assert (answer.eval_count, answer.done_reason) == (3, "length")


async def test_stop_words_stop(client: sdk.AsyncClient) -> None:
    whole = await client.generate("llama3.2:3b", "hello")
    word = whole.response.split()[3]
    answer = await client.generate("llama3.2:3b", "hello", options={"stop": [word]})
    assert answer.response == whole.response[: whole.response.index(word)]


async def test_tools_are_called_when_the_prompt_speaks_of_them(client: sdk.AsyncClient) -> None:
    called = await client.chat("llama3.2:3b", user("get the weather in Berlin"), tools=[WEATHER])
    assert called.message.tool_calls
    function = called.message.tool_calls[0].function
    assert function.name == "get_weather"
    assert set(function.arguments) == {"city", "unit"}
    assert function.arguments["unit"] in {"C", "F"}
    quiet = await client.chat("llama3.2:3b", user("good morning"), tools=[WEATHER])
    assert not quiet.message.tool_calls
    told = await client.chat(
        "llama3.2:3b",
        [*user("get the weather in Berlin"), called.message, {"role": "tool", "content": "17 degrees"}],
        tools=[WEATHER],
    )
    assert "17 degrees" in (told.message.content or "")


async def test_streamed_tool_calls_arrive_whole(client: sdk.AsyncClient) -> None:
    stream = await client.chat("llama3.2:3b", user("get weather"), tools=[WEATHER], stream=True)
    calls = [made for part in [p async for p in stream] for made in part.message.tool_calls or []]
    assert [made.function.name for made in calls] == ["get_weather"]


async def test_thinking_models_think_unless_told_not_to(client: sdk.AsyncClient) -> None:
    assert (await client.chat("qwen3:8b", user("why"))).message.thinking
    assert not (await client.chat("qwen3:8b", user("why"), think=False)).message.thinking
    with pytest.raises(sdk.ResponseError, match="does not support thinking") as caught:
        await client.chat("llama3.2:3b", user("why"), think=True)
    assert caught.value.status_code == 400


async def test_an_image_changes_the_answer_and_must_be_base64(client: sdk.AsyncClient, ollama: Fake) -> None:
    plain = await client.generate("gemma3:4b", "what is this")
    seen = await client.generate("gemma3:4b", "what is this", images=[PNG])
    assert plain.response != seen.response
    broken = request("POST", "/api/generate", b'{"model":"gemma3:4b","prompt":"x","images":["?"]}')
    refused = await exchange("127.0.0.1", ollama.http.port, broken)
    assert (refused.status, b"illegal base64" in refused.body) == (400, True)


async def test_format_gives_json_of_that_schema(client: sdk.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    answer = await client.chat("llama3.2:3b", user("who"), format=schema)
    value = json.loads(answer.message.content or "")
    assert set(value) == {"name", "age"}
    assert isinstance(value["age"], int)


async def test_embed_normalises_and_embeddings_does_not(client: sdk.AsyncClient) -> None:
    many = await client.embed("nomic-embed-text", ["one", "two"])
    one = await client.embed("nomic-embed-text", "one")
    old = await client.embeddings("nomic-embed-text", "one")
    assert [len(vector) for vector in many.embeddings] == [768, 768]
    assert many.embeddings[0] == one.embeddings[0] != many.embeddings[1]
    assert math.isclose(sum(value**2 for value in one.embeddings[0]), 1.0, rel_tol=1e-5)
    assert not math.isclose(sum(value**2 for value in old.embedding), 1.0, rel_tol=0.5)
    assert len((await client.embed("nomic-embed-text", "one", dimensions=64)).embeddings[0]) == 64


async def test_an_empty_prompt_loads_and_keep_alive_zero_unloads(client: sdk.AsyncClient) -> None:
    loaded = await client.generate("llama3.2:3b")
    assert loaded.done_reason == "load"
    assert [model.name for model in (await client.ps()).models] == ["llama3.2:3b"]
    gone = await client.generate("llama3.2:3b", keep_alive=0)
    assert gone.done_reason == "unload"
    assert not (await client.ps()).models


async def test_lists_and_show(client: sdk.AsyncClient) -> None:
    listed = (await client.list()).models
    assert [model.model for model in listed] == ["llama3.2:3b", "qwen3:8b", "gemma3:4b", "nomic-embed-text:latest"]
    assert all(len(model.digest or "") == 64 for model in listed)
    shown = await client.show("nomic-embed-text")
    assert shown.capabilities == ["embedding"]
    assert shown.modelinfo["nomic-bert.embedding_length"] == 768


async def test_pull_copy_and_delete_change_the_disk(client: sdk.AsyncClient) -> None:
    lines = [line async for line in await client.pull("phi", stream=True)]
    assert [lines[0].status, lines[-1].status] == ["pulling manifest", "success"]
    assert max(line.completed or 0 for line in lines) == lines[1].total == 1_600_000_000
    await client.copy("phi", "mine")
    assert "mine:latest" in [model.model for model in (await client.list()).models]
    await client.delete("phi")
    names = [model.model for model in (await client.list()).models]
    assert "phi:latest" not in names
    assert "mine:latest" in names
    with pytest.raises(sdk.ResponseError, match="not found"):
        await client.delete("phi")


async def test_a_pull_of_an_unknown_name_fails_in_the_stream(client: sdk.AsyncClient) -> None:
    with pytest.raises(sdk.ResponseError, match="file does not exist"):
        async for _ in await client.pull("missing-model", stream=True):
            pass


async def test_create_needs_its_blobs(client: sdk.AsyncClient, ollama: Fake) -> None:
    weights = b"GGUF" + bytes(100_000)
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    with pytest.raises(sdk.ResponseError, match="not found"):
        await client.create("own", files={"own.gguf": digest}, stream=False)
    port = ollama.http.port
    assert (await exchange("127.0.0.1", port, request("HEAD", f"/api/blobs/{digest}"), method="HEAD")).status == 404
    for expected in (201, 200):
        sent = await exchange("127.0.0.1", port, request("POST", f"/api/blobs/{digest}", weights))
        assert sent.status == expected
    bad = await exchange("127.0.0.1", port, request("POST", f"/api/blobs/sha256:{'0' * 64}", weights))
    assert bad.status == 400
    assert b"digest mismatch" in bad.body
    assert (await exchange("127.0.0.1", port, request("HEAD", f"/api/blobs/{digest}"), method="HEAD")).status == 200
    assert (await client.create("own", files={"own.gguf": digest}, stream=False)).status == "success"
    assert (await client.chat("own", user("hi"))).message.content


async def test_a_push_needs_a_namespace(client: sdk.AsyncClient) -> None:
    with pytest.raises(sdk.ResponseError, match="not authorized"):
        [line async for line in await client.push("llama3.2:3b", stream=True)]


UNKNOWN = {
    "/api/chat": (b'{"model":"nope","messages":[]}', "model 'nope' not found"),
    "/api/generate": (b'{"model":"nope"}', "model 'nope' not found"),
    "/api/show": (b'{"model":"nope"}', "model 'nope' not found"),
    "/api/embed": (b'{"model":"nope","input":"x"}', 'model \\"nope\\" not found, try pulling it first'),
    "/v1/chat/completions": (b'{"model":"nope","messages":[{"role":"user"}]}', "model 'nope' not found"),
    "/v1/messages": (b'{"model":"nope","max_tokens":1,"messages":[{}]}', "model 'nope' not found"),
}


@pytest.mark.parametrize("path", UNKNOWN)
async def test_unknown_models_are_refused_in_the_dialects_words(ollama: Fake, path: str) -> None:
    body, words = UNKNOWN[path]
    answer = await exchange("127.0.0.1", ollama.http.port, request("POST", path, body))
    assert answer.status == 404
    assert words in answer.body.decode()


async def test_plain_pages(ollama: Fake) -> None:
    port = ollama.http.port
    for method, target, status, body in (
        ("GET", "/", 200, b"Ollama is running"),
        ("HEAD", "/", 200, b""),
        ("HEAD", "/api/tags", 200, b""),
        ("HEAD", "/api/version", 200, b""),
        ("GET", "/api/nothing", 404, b"404 page not found"),
        ("GET", "/api/chat", 405, b"405 method not allowed"),
        ("POST", "/v1/images/generations", 404, b"404 page not found"),
    ):
        answer = await exchange("127.0.0.1", port, request(method, target), method=method)
        assert (answer.status, answer.body, answer.clean) == (status, body, True), (method, target)
    empty = await exchange("127.0.0.1", port, request("POST", "/api/chat", b""))
    assert (empty.status, empty.body) == (400, b'{"error":"missing request body"}')


async def test_foreign_hosts_and_origins_are_refused(ollama: Fake) -> None:
    port = ollama.http.port
    assert (await exchange("127.0.0.1", port, request("GET", "/", host="evil.example"))).status == 403
    assert (await exchange("127.0.0.1", port, request("GET", "/", host="box.local:11434"))).status == 200
    foreign = request("GET", "/api/tags", headers=[("Origin", "https://evil.example")])
    assert (await exchange("127.0.0.1", port, foreign)).status == 403
    ours = await exchange("127.0.0.1", port, request("GET", "/api/tags", headers=[("Origin", "app://x")]))
    assert ours.header("access-control-allow-origin") == "app://x"
    asked = await exchange("127.0.0.1", port, request("OPTIONS", "/api/chat", headers=[("Origin", "http://localhost")]))
    assert asked.status == 204
    assert "x-stainless-lang" in (asked.header("access-control-allow-headers") or "")


async def test_an_account_signs_in() -> None:
    async with Fake(Profile(account="ada")) as signed_in, Fake(Profile()) as signed_out:
        inside = await exchange("127.0.0.1", signed_in.http.port, request("POST", "/api/me"))
        outside = await exchange("127.0.0.1", signed_out.http.port, request("POST", "/api/me"))
    assert (inside.status, b'"name":"ada"' in inside.body) == (200, True)
    assert (outside.status, b"signin_url" in outside.body) == (401, True)


async def test_two_fakes_of_one_seed_give_equal_bytes() -> None:
    profile = Profile(seed=3, epoch_s=1_700_000_000.0, models=("qwen3:8b", "nomic-embed-text"))
    asks = [
        request("POST", "/api/chat", b'{"model":"qwen3:8b","messages":[{"role":"user","content":"a"}]}'),
        request("POST", "/api/generate", b'{"model":"qwen3:8b","prompt":"a","stream":false}'),
        request("POST", "/v1/chat/completions", b'{"model":"qwen3:8b","messages":[{"role":"user"}],"stream":true}'),
        request("POST", "/v1/messages", b'{"model":"qwen3:8b","max_tokens":9,"messages":[{"role":"user"}]}'),
        request("POST", "/v1/responses", b'{"model":"qwen3:8b","input":"a","stream":true}'),
        request("POST", "/api/embed", b'{"model":"nomic-embed-text","input":["a","b"]}'),
    ]
    async with Fake(profile) as one, Fake(profile) as two:
        for ask in asks:
            first = await exchange("127.0.0.1", one.http.port, ask)
            second = await exchange("127.0.0.1", two.http.port, ask)
            assert first.status == 200
            assert first.raw == second.raw
