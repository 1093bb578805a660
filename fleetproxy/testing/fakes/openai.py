"""The OpenAI dialect of a fake: chat completions, completions, embeddings, models. Ollama's and vLLM's manners."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fleetproxy.testing.fakes import words
from fleetproxy.testing.fakes.call import Call, Refusal, data, image_mark
from fleetproxy.testing.fakes.catalog import Model
from fleetproxy.testing.fakes.compose import Answer, Ask, Step, ToolCall, compose, finish, play
from fleetproxy.testing.fakes.engine import Lease

DONE = b"data: [DONE]\n\n"


async def models(call: Call) -> None:
    await call.json({"object": "list", "data": [_entry(call, model) for model in call.machine.disk.values()]})


async def model(call: Call) -> None:
    await call.json(_entry(call, call.machine.find(call.parts[0])))


async def chat(call: Call) -> None:
    name = call.name("model")
    served = call.machine.find(name)
    messages = call.body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
        raise Refusal(400, "[] is too short - 'messages'")
    if served.embeds_only:
        raise Refusal(400, f'"{served.name}" does not support chat')
    answer_format = call.body.get("response_format") or {}
    schema = (answer_format.get("json_schema") or {}).get("schema")
    ask = Ask(
        model=served,
        prompt="\n".join(f"{message.get('role')}: {_content(message)}" for message in messages),
        last_user=next((_content(made) for made in reversed(messages) if made.get("role") == "user"), ""),
        tool_result=_content(messages[-1]) if messages[-1].get("role") == "tool" else None,
        tools=tuple(tool.get("function") or {} for tool in call.body.get("tools") or [] if isinstance(tool, dict)),
        tool_choice=_choice(call),
        max_tokens=_limit(call),
        stop=_stops(call),
        format=schema or ("json" if answer_format.get("type") == "json_object" else None),
        think="thinking" in served.capabilities and call.body.get("reasoning_effort") != "none",
    )
    async with call.engine.lease(served, call.keep_alive_s()) as lease:
        answer = compose(call.machine.seed, ask)
        call.count(answer.prompt_tokens, answer.output_tokens)
        base = _base(call, f"chatcmpl-{_number(call, answer)}", name)
        if call.flag("stream", False):
            return await call.sse(_chat_events(call, base, answer, lease))
        await finish(call.engine, lease, answer)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.thinking:
            message[_thinking_key(call)] = answer.thought
        if answer.calls:
            message["tool_calls"] = [_tool_call(made) for made in answer.calls]
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        value = {**base, "object": "chat.completion", "choices": [choice], "usage": usage(answer)}
        return await call.json(value)


async def _chat_events(call: Call, base: dict[str, Any], answer: Answer, lease: Lease) -> AsyncIterator[bytes]:
    want_usage = _wants_usage(call)
    base = {**base, "object": "chat.completion.chunk"}
    first = True
    async for step in play(call.engine, lease, answer):
        delta = {**({"role": "assistant"} if first else {}), **_delta(call, step)}
        first = False
        yield data({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    last = {"role": "assistant", "content": ""} if first else {}
    yield data({**base, "choices": [{"index": 0, "delta": last, "finish_reason": answer.finish}]})
    if want_usage:
        yield data({**base, "choices": [], "usage": usage(answer)})
    yield DONE


async def completions(call: Call) -> None:
    name = call.name("model")
    served = call.machine.find(name)
    prompt = call.body.get("prompt", "")
    many = isinstance(prompt, list) and all(isinstance(part, str) for part in prompt)
    if not isinstance(prompt, str) and not (many and call.machine.profile.kind != "ollama"):
        raise Refusal(400, "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    async with call.engine.lease(served, call.keep_alive_s()) as lease:
        answers = [
            compose(
                call.machine.seed,
                Ask(model=served, prompt=text, last_user=text, max_tokens=_limit(call), stop=_stops(call)),
            )
            for text in prompts
        ]
        for answer in answers:
            call.count(answer.prompt_tokens, answer.output_tokens)
        base = {**_base(call, f"cmpl-{_number(call, answers[0])}", name), "object": "text_completion"}
        if call.flag("stream", False):
            return await call.sse(_completion_events(call, base, answers, lease))
        for answer in answers:
            await finish(call.engine, lease, answer)
        choices = [
            {"index": index, "text": answer.text, "finish_reason": answer.finish}
            for index, answer in enumerate(answers)
        ]
        total = [usage(answer) for answer in answers]
        summed = {key: sum(part[key] for part in total) for key in total[0]}
        return await call.json({**base, "choices": choices, "usage": summed})


async def _completion_events(
    call: Call, base: dict[str, Any], answers: list[Answer], lease: Lease
) -> AsyncIterator[bytes]:
    want_usage = _wants_usage(call)
    # With include_usage every chunk of Ollama's completions carries a usage of zeros.
    zero = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}
    every = zero if want_usage and call.machine.profile.kind == "ollama" else {}
    for index, answer in enumerate(answers):
        async for step in play(call.engine, lease, answer):
            yield data({**base, "choices": [{"index": index, "text": step.text, "finish_reason": None}], **every})
        yield data({**base, "choices": [{"index": index, "text": "", "finish_reason": answer.finish}], **every})
    if want_usage:
        total = [usage(answer) for answer in answers]
        yield data({**base, "choices": [], "usage": {key: sum(part[key] for part in total) for key in total[0]}})
    yield DONE


async def embeddings(call: Call) -> None:
    name = call.name("model")
    served = call.machine.find(name, quoting='"')
    inputs = _inputs(call)
    dimensions = int(call.body.get("dimensions") or 0) or served.dimensions
    encode = ENCODINGS.get(str(call.body.get("encoding_format") or "float"))
    if encode is None:
        raise Refusal(400, f"invalid encoding_format: {call.body.get('encoding_format')}")
    tokens = sum(words.count_tokens(text) for text in inputs)
    async with call.engine.lease(served, call.keep_alive_s()):
        await call.engine.pace.until(time.monotonic(), call.engine.pace.prefill_s(tokens))
        call.count(tokens, 0)
        rows = [
            {
                "object": "embedding",
                "embedding": encode(words.vector(call.machine.seed, served.name, text, dimensions)),
                "index": index,
            }
            for index, text in enumerate(inputs)
        ]
        total = {"prompt_tokens": tokens, "total_tokens": tokens}
        await call.json({"object": "list", "data": rows, "model": name, "usage": total})


def usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
    }


# --- reading ----------------------------------------------------------------------------------------------------


def _content(message: dict[str, Any]) -> str:
    """Text of a message; parts of other kinds are stood in for by a mark."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(_part(part) for part in content if isinstance(part, dict))
    made = message.get("tool_calls")
    return f"{content or ''}{made or ''}"


def _part(part: dict[str, Any]) -> str:
    if part.get("type") == "image_url":
        image = part.get("image_url")
        url = str(image.get("url") if isinstance(image, dict) else image)
        if not url.startswith("data:image/"):
            raise Refusal(400, "invalid image input")
        return image_mark(url.partition("base64,")[2])
    return str(part.get("text") or "")


def _choice(call: Call) -> str:
    """Ollama does not read tool_choice; vLLM and llama.cpp do."""
    choice = call.body.get("tool_choice")
    if call.machine.profile.kind == "ollama" or choice is None:
        return "auto"
    if isinstance(choice, dict):
        return str((choice.get("function") or {}).get("name"))
    return str(choice)


def _limit(call: Call) -> int | None:
    keys = ("max_tokens",) if call.machine.profile.kind == "ollama" else ("max_completion_tokens", "max_tokens")
    for key in keys:
        value = call.body.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _stops(call: Call) -> tuple[str, ...]:
    stop = call.body.get("stop") or ()
    return (stop,) if isinstance(stop, str) else tuple(map(str, stop))


def _inputs(call: Call) -> list[str]:
    """Strings; token arrays only where the real server takes them."""
    given = call.body.get("input")
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(part, str) for part in given):
        return given
    if call.machine.profile.kind != "ollama" and isinstance(given, list):
        if all(isinstance(part, int) for part in given):
            return [" ".join(map(str, given))]
        if all(isinstance(part, list) for part in given):
            return [" ".join(map(str, part)) for part in given]
    raise Refusal(400, "invalid input")


def _wants_usage(call: Call) -> bool:
    options = call.body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


# --- writing ----------------------------------------------------------------------------------------------------


def _number(call: Call, answer: Answer) -> str:
    """Ollama's ids are three digits and collide; others are long."""
    return str(int(answer.id[:8], 16) % 999) if call.machine.profile.kind == "ollama" else answer.id


def _base(call: Call, identity: str, name: str) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": identity,
        "object": "",
        "created": int(call.machine.clock.now_s()),
        "model": name,
    }
    if call.machine.profile.kind == "ollama":
        base["system_fingerprint"] = "fp_ollama"
    return base


def _thinking_key(call: Call) -> str:
    return "reasoning_content" if call.machine.profile.kind == "llamacpp" else "reasoning"


def _delta(call: Call, step: Step) -> dict[str, Any]:
    if step.kind == "thinking":
        return {"content": "", _thinking_key(call): step.text}
    if step.call is not None:
        return {"content": "", "tool_calls": [_tool_call(step.call)]}
    return {"content": step.text}


def _tool_call(made: ToolCall) -> dict[str, Any]:
    function = {"name": made.name, "arguments": made.arguments_json}
    return {"index": made.index, "id": made.id, "type": "function", "function": function}


def _entry(call: Call, model: Model) -> dict[str, Any]:
    if call.machine.profile.kind == "ollama":
        return {"id": model.name, "object": "model", "created": 1_768_469_400, "owned_by": "library"}
    owner = "vllm" if call.machine.profile.kind == "openai" else "llamacpp"
    return {
        "id": model.name,
        "object": "model",
        "created": 1_768_469_400,
        "owned_by": owner,
        "root": model.name,
        "parent": None,
        "max_model_len": model.context_length,
    }


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ENCODINGS: dict[str, Callable[[list[float]], list[float] | str]] = {"float": list, "base64": _base64}
