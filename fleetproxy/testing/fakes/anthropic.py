"""The Anthropic dialect of a fake: /v1/messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from fleetproxy.testing.fakes import words
from fleetproxy.testing.fakes.call import Call, Refusal, event, image_mark
from fleetproxy.testing.fakes.compose import Answer, Ask, Step, ToolCall, compose, finish, play
from fleetproxy.testing.fakes.engine import Lease

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def messages(call: Call) -> None:
    name = call.name("model")
    served = call.machine.find(name)
    given = call.body.get("messages")
    limit = call.body.get("max_tokens")
    if not isinstance(given, list) or not given or not all(isinstance(message, dict) for message in given):
        raise Refusal(400, "messages: at least one message is required")
    if not isinstance(limit, int) or limit <= 0:
        raise Refusal(400, "max_tokens is required and must be positive")
    thinking = call.body.get("thinking") or {}
    choice = call.body.get("tool_choice") or {}
    last = given[-1]
    results = [part for part in _parts(last) if part.get("type") == "tool_result"]
    ask = Ask(
        model=served,
        prompt="\n".join(
            [_text(call.body.get("system")), *(f"{made.get('role')}: {_text(made.get('content'))}" for made in given)]
        ),
        last_user=_text(last.get("content")),
        tool_result=_text(results[0].get("content")) if results else None,
        tools=tuple(
            {"name": tool.get("name"), "parameters": tool.get("input_schema")} for tool in call.body.get("tools") or []
        ),
        tool_choice=str(choice.get("name") or choice.get("type") or "auto"),
        max_tokens=limit,
        stop=tuple(map(str, call.body.get("stop_sequences") or ())),
        think=thinking.get("type") == "enabled" and "thinking" in served.capabilities,
    )
    async with call.engine.lease(served, call.keep_alive_s()) as lease:
        answer = compose(call.machine.seed, ask)
        call.count(answer.prompt_tokens, answer.output_tokens)
        base = {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "model": name}
        if call.flag("stream", False):
            return await call.sse(_events(call, base, answer, lease))
        await finish(call.engine, lease, answer)
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", "thinking": answer.thought, "signature": ""})
        if answer.tokens:
            content.append({"type": "text", "text": answer.text})
        content += [
            {"type": "tool_use", "id": _id(made), "name": made.name, "input": made.arguments} for made in answer.calls
        ]
        usage = {"input_tokens": answer.prompt_tokens, "output_tokens": answer.output_tokens}
        end = {"stop_reason": STOPS[answer.finish], "stop_sequence": None, "usage": usage}
        return await call.json({**base, "content": content, **end})


async def count_tokens(call: Call) -> None:
    """vLLM has it; Ollama answers 404."""
    call.machine.find(call.name("model"))
    text = "\n".join(_text(message.get("content")) for message in call.body.get("messages") or [])
    await call.json({"input_tokens": words.count_tokens(text) + 4})


async def _events(call: Call, base: dict[str, Any], answer: Answer, lease: Lease) -> AsyncIterator[bytes]:
    usage = {"input_tokens": answer.prompt_tokens, "output_tokens": 0}
    message = {**base, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield event("message_start", {"type": "message_start", "message": message})
    index, kind = -1, ""
    async for step in play(call.engine, lease, answer):
        if step.kind != kind or step.call is not None:
            if index >= 0:
                yield event("content_block_stop", {"type": "content_block_stop", "index": index})
            index, kind = index + 1, step.kind
            start = {"type": "content_block_start", "index": index, "content_block": _opened(step)}
            yield event("content_block_start", start)
        for delta in _deltas(step):
            value = {"type": "content_block_delta", "index": index, "delta": delta}
            yield event("content_block_delta", value)
    if index >= 0:
        yield event("content_block_stop", {"type": "content_block_stop", "index": index})
    end = {"stop_reason": STOPS[answer.finish], "stop_sequence": None}
    done = {"input_tokens": answer.prompt_tokens, "output_tokens": answer.output_tokens}
    yield event("message_delta", {"type": "message_delta", "delta": end, "usage": done})
    yield event("message_stop", {"type": "message_stop"})


def _opened(step: Step) -> dict[str, Any]:
    if step.call is not None:
        return {"type": "tool_use", "id": _id(step.call), "name": step.call.name, "input": {}}
    if step.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _deltas(step: Step) -> Iterable[dict[str, Any]]:
    if step.call is not None:
        text = step.call.arguments_json
        middle = len(text) // 2
        return [{"type": "input_json_delta", "partial_json": part} for part in (text[:middle], text[middle:])]
    if step.kind == "thinking":
        return [{"type": "thinking_delta", "thinking": step.text}]
    return [{"type": "text_delta", "text": step.text}]


def _id(made: ToolCall) -> str:
    return f"toolu_{made.id.removeprefix('call_')}"


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(_part(part) for part in content if isinstance(part, dict))
    return str(content or "")


def _part(part: dict[str, Any]) -> str:
    match part.get("type"):
        case "image":
            return image_mark((part.get("source") or {}).get("data"))
        case "tool_result":
            return _text(part.get("content"))
        case "tool_use":
            return f"{part.get('name')} {part.get('input')}"
    return str(part.get("text") or "")
