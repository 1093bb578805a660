"""The Responses dialect of a fake: /v1/responses, without stored state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fleetproxy.testing.fakes import words
from fleetproxy.testing.fakes.call import Call, Refusal, event, image_mark
from fleetproxy.testing.fakes.compose import Answer, Ask, ToolCall, compose, finish, play
from fleetproxy.testing.fakes.engine import Lease


async def responses(call: Call) -> None:
    name = call.name("model")
    served = call.machine.find(name)
    if call.body.get("previous_response_id"):
        raise Refusal(400, "previous_response_id is not supported")
    items = call.body.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise Refusal(400, "input is required")
    last = items[-1]
    effort = (call.body.get("reasoning") or {}).get("effort")
    limit = call.body.get("max_output_tokens")
    ask = Ask(
        model=served,
        prompt="\n".join([str(call.body.get("instructions") or ""), *map(_text, items)]),
        last_user=next((_text(item) for item in reversed(items) if item.get("role") == "user"), ""),
        tool_result=str(last.get("output")) if last.get("type") == "function_call_output" else None,
        tools=tuple(tool for tool in call.body.get("tools") or [] if tool.get("type") == "function"),
        max_tokens=limit if isinstance(limit, int) else None,
        format=((call.body.get("text") or {}).get("format") or {}).get("schema"),
        think="thinking" in served.capabilities and effort not in {None, "none"},
    )
    async with call.engine.lease(served, call.keep_alive_s()) as lease:
        answer = compose(call.machine.seed, ask)
        call.count(answer.prompt_tokens, answer.output_tokens)
        if call.flag("stream", False):
            return await call.sse(_events(call, answer, lease))
        await finish(call.engine, lease, answer)
        output = _output(answer)
        return await call.json(_response(call, answer, status="completed", output=output, usage=_usage(answer)))


async def _events(call: Call, answer: Answer, lease: Lease) -> AsyncIterator[bytes]:
    made = _Numbered()
    for word in ("created", "in_progress"):
        yield made(f"response.{word}", response=_response(call, answer, status="in_progress", output=[], usage=None))
    steps = play(call.engine, lease, answer)
    at = 0
    if not answer.calls:
        item = _message(answer, "in_progress", [])
        where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        yield made("response.output_item.added", output_index=0, item=item)
        yield made("response.content_part.added", **where, part=empty)
        async for step in steps:
            if step.kind == "text":
                yield made("response.output_text.delta", **where, delta=step.text, logprobs=[])
        part = {**empty, "text": answer.text}
        yield made("response.output_text.done", **where, text=answer.text, logprobs=[])
        yield made("response.content_part.done", **where, part=part)
        yield made("response.output_item.done", output_index=0, item=_message(answer, "completed", [part]))
    else:
        async for step in steps:
            if step.call is None:
                continue
            item = _function_call(step.call, "in_progress", "")
            yield made("response.output_item.added", output_index=at, item=item)
            where = {"item_id": item["id"], "output_index": at}
            yield made("response.function_call_arguments.delta", **where, delta=step.call.arguments_json)
            done = step.call.arguments_json
            yield made("response.function_call_arguments.done", **where, name=step.call.name, arguments=done)
            item = _function_call(step.call, "completed", done)
            yield made("response.output_item.done", output_index=at, item=item)
            at += 1
    whole = _response(call, answer, status="completed", output=_output(answer), usage=_usage(answer))
    yield made("response.completed", response=whole)


class _Numbered:
    """Writes events with their running number."""

    def __init__(self) -> None:
        self.number = -1

    def __call__(self, kind: str, **fields: Any) -> bytes:
        self.number += 1
        return event(kind, {"type": kind, "sequence_number": self.number, **fields})


def _response(
    call: Call, answer: Answer, *, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    kind = call.machine.profile.kind
    identity = str(int(answer.id[:8], 16) % 999) if kind == "ollama" else answer.id
    return {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": int(call.machine.clock.now_s()),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": call.body.get("instructions"),
        "max_output_tokens": call.body.get("max_output_tokens"),
        "model": call.body["model"],
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": call.body.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "metadata": {},
    }


def _output(answer: Answer) -> list[dict[str, Any]]:
    if answer.calls:
        return [_function_call(made, "completed", made.arguments_json) for made in answer.calls]
    part = {"type": "output_text", "text": answer.text, "annotations": []}
    return [_message(answer, "completed", [part])]


def _message(answer: Answer, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    identity = words.identifier(0, answer.id, "message")
    return {"id": f"msg_{identity}", "type": "message", "status": status, "role": "assistant", "content": content}


def _function_call(made: ToolCall, status: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"fc_{made.id.removeprefix('call_')}",
        "type": "function_call",
        "status": status,
        "call_id": made.id,
        "name": made.name,
        "arguments": arguments,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": len(answer.thinking)},
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
    }


def _text(item: dict[str, Any]) -> str:
    content = item.get("content", item.get("output", item.get("arguments")))
    if not isinstance(content, list):
        return f"{item.get('role', item.get('type'))}: {content or ''}"
    return f"{item.get('role')}: {' '.join(map(_part, content))}"


def _part(part: dict[str, Any]) -> str:
    if part.get("type") == "input_image":
        return image_mark(str(part.get("image_url")).partition("base64,")[2])
    return str(part.get("text") or "")
