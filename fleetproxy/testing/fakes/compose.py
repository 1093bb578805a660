"""What a fake answers: one `Ask` in, one `Answer` out, for every dialect. Pure, but for `play`, which paces it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
import orjson

from fleetproxy.testing.fakes import words
from fleetproxy.testing.fakes.catalog import Model
from fleetproxy.testing.fakes.engine import Engine, Lease


class ToolCall(msgspec.Struct, frozen=True):
    #: Its place among the calls of one answer.
    index: int
    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def arguments_json(self) -> str:
        return orjson.dumps(self.arguments).decode()


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One generation request, whatever its dialect."""

    model: Model
    #: Everything the model reads, as one text.
    prompt: str
    #: The last thing the user said: tools are called when it speaks of them.
    last_user: str = ""
    #: The last message is a tool's result: answer from it instead of calling again.
    tool_result: str | None = None
    #: JSON-schema functions: `{"name", "parameters"}`.
    tools: tuple[dict[str, Any], ...] = ()
    #: "required", a tool's name, "none", or "auto".
    tool_choice: str = "auto"
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    #: None, "json" or a JSON schema.
    format: Any = None
    think: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the model says, before it is said in a dialect."""

    id: str
    thinking: list[str]
    tokens: list[str]
    calls: list[ToolCall]
    prompt_tokens: int
    #: "stop", "length" or "tool_calls".
    finish: Literal["stop", "length", "tool_calls"]

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def thought(self) -> str:
        return "".join(self.thinking)

    @property
    def output_tokens(self) -> int:
        return len(self.thinking) + len(self.tokens) + sum(len(call.arguments_json) // 4 + 2 for call in self.calls)


def compose(seed: int, ask: Ask) -> Answer:
    """The answer to an ask; nothing but the seed and the ask decides it."""
    name = ask.model.name
    key = words.identifier(seed, name, ask.prompt, orjson.dumps([list(ask.tools), ask.format, ask.think]).decode())
    thinking = words.tokens(seed, name, f"think {ask.prompt}", 8) if ask.think else []
    calls = _calls(seed, ask, key)
    tokens: list[str] = []
    finish: Literal["stop", "length", "tool_calls"] = "tool_calls" if calls else "stop"
    if not calls:
        tokens = _said(seed, ask)
        limit = ask.max_tokens
        if limit is not None and 0 <= limit < len(tokens):
            tokens, finish = tokens[:limit], "length"
        tokens = _stopped(tokens, ask.stop)
    return Answer(
        id=key,
        thinking=thinking,
        tokens=tokens,
        calls=calls,
        prompt_tokens=words.count_tokens(ask.prompt) + 4,
        finish=finish,
    )


def _said(seed: int, ask: Ask) -> list[str]:
    name = ask.model.name
    if ask.format:
        numbers = words.draw(seed, name, ask.prompt, "format")
        schema = ask.format if isinstance(ask.format, dict) else {"type": "object", "properties": {"answer": {}}}
        return words.split_text(orjson.dumps(words.from_schema(schema, numbers)).decode())
    if ask.tool_result is not None:
        return words.split_text(f"The tool says: {ask.tool_result[:400]}")
    wanted = words.natural_length(seed, name, ask.prompt)
    if ask.max_tokens is not None and ask.max_tokens > 256:
        wanted = max(wanted, min(ask.max_tokens, 100_000) if "at length" in ask.last_user else wanted)
    return words.tokens(seed, name, ask.prompt, wanted)


def _calls(seed: int, ask: Ask, key: str) -> list[ToolCall]:
    if not ask.tools or ask.tool_choice == "none" or ask.tool_result is not None:
        return []
    chosen = [tool for tool in ask.tools if ask.tool_choice == tool.get("name")]
    if not chosen:
        low = ask.last_user.lower()
        chosen = [tool for tool in ask.tools if _named(str(tool.get("name", "")), low)]
    if not chosen and ask.tool_choice in {"required", "any"}:
        chosen = [ask.tools[0]]
    return [
        ToolCall(
            index=index,
            id=f"call_{key[:16]}{index}",
            name=str(tool.get("name", "")),
            arguments=words.from_schema(
                tool.get("parameters") or {"type": "object"}, words.draw(seed, key, tool.get("name"))
            ),
        )
        for index, tool in enumerate(chosen)
    ]


def _named(tool: str, text: str) -> bool:
    """The prompt asks for a tool: it has the name, or every word of it."""
    return bool(tool) and (tool.lower() in text or all(word in text for word in tool.lower().split("_") if word))


def _stopped(tokens: list[str], stops: tuple[str, ...]) -> list[str]:
    text = "".join(tokens)
    cuts = [text.find(stop) for stop in stops if stop and stop in text]
    return words.split_text(text[: min(cuts)]) if cuts else tokens


class Step(msgspec.Struct, frozen=True):
    """One thing said, and its reckoned moment in nanoseconds after the request began."""

    kind: Literal["thinking", "text", "call"]
    text: str
    call: ToolCall | None
    elapsed_ns: int


class Times(msgspec.Struct, frozen=True):
    """Reckoned durations of a whole answer, in nanoseconds, as Ollama reports them."""

    load: int
    prompt: int
    generate: int

    @property
    def total(self) -> int:
        return self.load + self.prompt + self.generate


def times(engine: Engine, lease: Lease, answer: Answer) -> Times:
    model = lease.resident.model
    return Times(
        lease.load_ns,
        int(engine.pace.prefill_s(answer.prompt_tokens) * 1e9),
        int(engine.pace.token_s(model) * answer.output_tokens * 1e9),
    )


async def play(engine: Engine, lease: Lease, answer: Answer) -> AsyncIterator[Step]:
    """The answer piece by piece, at the model's pace."""
    start_s = time.monotonic()
    token_s = engine.pace.token_s(lease.resident.model)
    elapsed_s = engine.pace.prefill_s(answer.prompt_tokens)
    for kind, tokens in (("thinking", answer.thinking), ("text", answer.tokens)):
        for token in tokens:
            await engine.pace.until(start_s, elapsed_s)
            yield Step(kind, token, None, lease.load_ns + int(elapsed_s * 1e9))  # type: ignore[arg-type]
            elapsed_s += token_s
    for call in answer.calls:
        elapsed_s += token_s * (len(call.arguments_json) // 4 + 2)
        await engine.pace.until(start_s, elapsed_s)
        yield Step("call", "", call, lease.load_ns + int(elapsed_s * 1e9))
    await engine.pace.until(start_s, elapsed_s)


async def finish(engine: Engine, lease: Lease, answer: Answer) -> None:
    """Take the time the whole answer takes, without saying it piece by piece."""
    took = times(engine, lease, answer)
    await engine.pace.until(time.monotonic(), (took.prompt + took.generate) / 1e9)
