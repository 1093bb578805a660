"""Ollama's own generation paths: /api/generate, /api/chat, /api/embed, /api/embeddings."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fleetproxy.testing.fakes import words
from fleetproxy.testing.fakes.call import Call, Refusal, image_mark
from fleetproxy.testing.fakes.catalog import Model
from fleetproxy.testing.fakes.clock import rfc3339
from fleetproxy.testing.fakes.compose import Answer, Ask, Step, Times, ToolCall, compose, finish, play, times
from fleetproxy.testing.fakes.engine import Lease


async def generate(call: Call) -> None:
    name = call.name()
    model = call.machine.find(name)
    prompt = str(call.body.get("prompt") or "")
    suffix = str(call.body.get("suffix") or "")
    _need(model, "completion", "generate")
    if suffix:
        _need(model, "insert", "insert")
    if not prompt and not suffix:
        return await _load_only(call, name, model, {"response": ""})
    images = _images(call.body)
    ask = Ask(
        model=model,
        prompt="\n".join([str(call.body.get("system") or ""), prompt, suffix, *images]),
        last_user=prompt,
        **_common(call, model),
    )
    return await _answer(call, name, ask, _Generate())


async def chat(call: Call) -> None:
    name = call.name()
    model = call.machine.find(name)
    messages = call.body.get("messages") or []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "json: cannot unmarshal messages into Go struct field ChatRequest.messages")
    _need(model, "completion", "chat")
    if call.body.get("tools"):
        _need(model, "tools", "tools")
    if not messages:
        return await _load_only(call, name, model, {"message": {"role": "assistant", "content": ""}})
    lines = []
    for message in messages:
        lines += [f"{message.get('role')}: {message.get('content') or ''}", *_images(message)]
        lines += [str(made) for made in message.get("tool_calls") or []]
    users = [str(message.get("content") or "") for message in messages if message.get("role") == "user"]
    last = messages[-1]
    ask = Ask(
        model=model,
        prompt="\n".join(lines),
        last_user=users[-1] if users else "",
        tool_result=str(last.get("content") or "") if last.get("role") == "tool" else None,
        tools=tuple(tool.get("function") or {} for tool in call.body.get("tools") or [] if isinstance(tool, dict)),
        **_common(call, model),
    )
    return await _answer(call, name, ask, _Chat())


async def embed(call: Call) -> None:
    """One or many inputs; vectors are normalised float32."""
    name = call.name()
    model = call.machine.find(name, quoting='"')
    given = call.body.get("input")
    inputs = [given] if isinstance(given, str) else given
    if given is None:
        inputs = []
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise Refusal(400, "invalid input type")
    dimensions = int(call.body.get("dimensions") or 0) or model.dimensions
    tokens = sum(words.count_tokens(text) for text in inputs)
    async with call.engine.lease(model, call.keep_alive_s(), call.options().get("num_ctx")) as lease:
        took_s = call.engine.pace.prefill_s(tokens)
        await call.engine.pace.until(time.monotonic(), took_s)
        vectors = [words.vector(call.machine.seed, model.name, text, dimensions) for text in inputs]
        call.count(tokens, 0)
        value = {"model": name, "embeddings": vectors, "total_duration": lease.load_ns + int(took_s * 1e9)}
        if lease.load_ns:
            value["load_duration"] = lease.load_ns
        if tokens:
            value["prompt_eval_count"] = tokens
        await call.json(value)


async def embeddings(call: Call) -> None:
    """The legacy form: one prompt, a vector that is not normalised."""
    model = call.machine.find(call.name())
    prompt = str(call.body.get("prompt") or "")
    async with call.engine.lease(model, call.keep_alive_s(), call.options().get("num_ctx")):
        tokens = words.count_tokens(prompt)
        await call.engine.pace.until(time.monotonic(), call.engine.pace.prefill_s(tokens))
        call.count(tokens, 0)
        value = words.vector(call.machine.seed, model.name, prompt, model.dimensions, normalise=False) if prompt else []
        await call.json({"embedding": value})


# --- the two shapes ---------------------------------------------------------------------------------------------


class _Generate:
    """`response` and `thinking` at top level."""

    def step(self, step: Step) -> dict[str, Any]:
        if step.kind == "thinking":
            return {"response": "", "thinking": step.text}
        return {"response": step.text}

    def whole(self, answer: Answer) -> dict[str, Any]:
        return {"response": answer.text, **({"thinking": answer.thought} if answer.thinking else {})}

    def last(self, answer: Answer) -> dict[str, Any]:
        numbers = words.draw(answer.id, "context")
        context = [next(numbers) % 128_000 for _ in range(min(answer.prompt_tokens + answer.output_tokens, 64))]
        return {"context": context}


class _Chat:
    """A `message` with content, thinking or tool calls."""

    def step(self, step: Step) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": step.text if step.kind == "text" else ""}
        if step.kind == "thinking":
            message["thinking"] = step.text
        if step.call is not None:
            message["tool_calls"] = [_tool_call(step.call)]
        return {"message": message}

    def whole(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.thinking:
            message["thinking"] = answer.thought
        if answer.calls:
            message["tool_calls"] = [_tool_call(made) for made in answer.calls]
        return {"message": message}

    def last(self, answer: Answer) -> dict[str, Any]:
        return {}


def _tool_call(made: ToolCall) -> dict[str, Any]:
    return {"id": made.id, "function": {"index": made.index, "name": made.name, "arguments": made.arguments}}


async def _answer(call: Call, name: str, ask: Ask, shape: _Generate | _Chat) -> None:
    engine = call.engine
    async with engine.lease(ask.model, call.keep_alive_s(), call.options().get("num_ctx")) as lease:
        answer = compose(call.machine.seed, ask)
        call.count(answer.prompt_tokens, answer.output_tokens)
        took = times(engine, lease, answer)
        began_ns = call.machine.clock.now_ns()
        if call.flag("stream", True):
            await call.ndjson(_lines(call, answer, lease, shape, began_ns))
            return
        await finish(engine, lease, answer)
        await call.json(
            {
                "model": name,
                "created_at": rfc3339(began_ns + took.total),
                **shape.whole(answer),
                "done": True,
                "done_reason": _reason(answer),
                **shape.last(answer),
                **_figures(took, answer),
            }
        )


async def _lines(
    call: Call, answer: Answer, lease: Lease, shape: _Generate | _Chat, began_ns: int
) -> AsyncIterator[dict[str, Any]]:
    name = call.name()
    async for step in play(call.engine, lease, answer):
        yield {
            "model": name,
            "created_at": rfc3339(began_ns + step.elapsed_ns),
            **shape.step(step),
            "done": False,
        }
    took = times(call.engine, lease, answer)
    yield {
        "model": name,
        "created_at": rfc3339(began_ns + took.total),
        **shape.step(Step("text", "", None, 0)),
        "done": True,
        "done_reason": _reason(answer),
        **shape.last(answer),
        **_figures(took, answer),
    }


def _reason(answer: Answer) -> str:
    return "length" if answer.finish == "length" else "stop"


def _figures(took: Times, answer: Answer) -> dict[str, int]:
    """Ollama leaves zero values out."""
    values = {
        "total_duration": took.total,
        "load_duration": took.load,
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": took.prompt,
        "eval_count": answer.output_tokens,
        "eval_duration": took.generate,
    }
    return {key: value for key, value in values.items() if value}


async def _load_only(call: Call, name: str, model: Model, empty: dict[str, Any]) -> None:
    """An empty prompt loads the model; with keep_alive 0 it unloads it."""
    keep_alive_s = call.keep_alive_s()
    if keep_alive_s == 0:
        await call.engine.unload(model)
        reason = "unload"
    else:
        await call.engine.preload(model, keep_alive_s, call.options().get("num_ctx"))
        reason = "load"
    created = rfc3339(call.machine.clock.now_ns())
    await call.json({"model": name, "created_at": created, **empty, "done": True, "done_reason": reason})


def _common(call: Call, model: Model) -> dict[str, Any]:
    options = call.options()
    limit = options.get("num_predict")
    stop = options.get("stop") or ()
    think = call.body.get("think")
    if think and "thinking" not in model.capabilities:
        raise Refusal(400, f'"{model.name}" does not support thinking')
    return {
        "max_tokens": limit if isinstance(limit, int) and limit >= 0 else None,
        "stop": (stop,) if isinstance(stop, str) else tuple(map(str, stop)),
        "format": call.body.get("format") or None,
        "think": "thinking" in model.capabilities if think is None else bool(think),
    }


def _images(holder: dict[str, Any]) -> list[str]:
    return [image_mark(image) for image in holder.get("images") or []]


def _need(model: Model, capability: str, what: str) -> None:
    if capability not in model.capabilities:
        raise Refusal(400, f'"{model.name}" does not support {what}')
