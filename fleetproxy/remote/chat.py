"""One chat over the fleet, in whichever dialect the servers that have the model speak."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from fleetproxy.remote.call import CallError, Fleet, Stream, error_text

#: A model may load for minutes before its first word.
SILENCE_S = 600.0
Dialect = Literal["ollama", "openai"]
PATHS: dict[Dialect, str] = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}


class Piece(msgspec.Struct, frozen=True):
    """Words of the answer, or of the thoughts before it."""

    text: str
    thinking: bool = False


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended."""

    reason: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    load_ms: float | None = None
    prompt_ms: float | None = None
    answer_ms: float | None = None


class Talk(msgspec.Struct, frozen=True):
    """An answer on its way. `parts` are pieces, then the totals, once."""

    dialect: Dialect
    #: The server that answers; "" where the fleet does not tell.
    server: str
    headers: Mapping[str, str]
    parts: Iterator[Piece | Totals]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a model."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    think: bool | None = None
    json_answer: bool = False
    keep_alive: str | None = None
    most_tokens: int | None = None


@contextmanager
def chat(
    fleet: Fleet, wish: Wish, *, server: str | None = None, dialect: Dialect | None = None, silence_s: float = SILENCE_S
) -> Generator[Talk]:
    """Ask; leaving the block stops the answer. Without a dialect Ollama's is tried first. Raises CallError."""
    first: Dialect = dialect or "ollama"
    try:
        opened = _open(fleet, wish, server, first, silence_s)
        stream = opened.__enter__()
    except CallError as error:
        if error.status != 404 or dialect is not None:
            raise
        first, opened = "openai", _open(fleet, wish, server, "openai", silence_s)
        try:
            stream = opened.__enter__()
        except CallError:
            raise error from None
    try:
        read = _ollama if first == "ollama" else _openai
        yield Talk(first, stream.headers.get("x-fleet-backend", ""), stream.headers, read(stream.lines))
    finally:
        opened.__exit__(None, None, None)


@contextmanager
def _open(fleet: Fleet, wish: Wish, server: str | None, dialect: Dialect, silence_s: float) -> Generator[Stream]:
    body = _ollama_body(wish) if dialect == "ollama" else _openai_body(wish)
    with fleet.stream("POST", PATHS[dialect], body, server=server, timeout_s=silence_s) as stream:
        yield stream


def _ollama_body(wish: Wish) -> dict[str, Any]:
    body: dict[str, Any] = {"model": wish.model, "messages": list(wish.messages), "stream": True}
    if wish.think is not None:
        body["think"] = wish.think
    if wish.json_answer:
        body["format"] = "json"
    if wish.keep_alive is not None:
        body["keep_alive"] = wish.keep_alive
    if wish.most_tokens is not None:
        body["options"] = {"num_predict": wish.most_tokens}
    return body


def _openai_body(wish: Wish) -> dict[str, Any]:
    body: dict[str, Any] = {"model": wish.model, "messages": list(wish.messages), "stream": True}
    body["stream_options"] = {"include_usage": True}
    if wish.json_answer:
        body["response_format"] = {"type": "json_object"}
    if wish.most_tokens is not None:
        body["max_tokens"] = wish.most_tokens
    return body


def _ollama(lines: Iterable[bytes]) -> Iterator[Piece | Totals]:
    for line in lines:
        if not line:
            continue
        value = _object(line)
        _refuse_error(value)
        message = value.get("message") or {}
        if message.get("thinking"):
            yield Piece(str(message["thinking"]), thinking=True)
        if message.get("content"):
            yield Piece(str(message["content"]))
        if value.get("done"):
            yield Totals(
                reason=str(value.get("done_reason") or "stop"),
                tokens_in=value.get("prompt_eval_count", 0),
                tokens_out=value.get("eval_count", 0),
                load_ms=_ms(value.get("load_duration")),
                prompt_ms=_ms(value.get("prompt_eval_duration")),
                answer_ms=_ms(value.get("eval_duration")),
            )
            return
    raise CallError("failed", "the answer broke off before its end")


def _openai(lines: Iterable[bytes]) -> Iterator[Piece | Totals]:
    reason = ""
    usage: dict[str, Any] = {}
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            yield Totals(reason=reason, tokens_in=usage.get("prompt_tokens"), tokens_out=usage.get("completion_tokens"))
            return
        value = _object(data)
        _refuse_error(value)
        usage = value.get("usage") or usage
        for choice in value.get("choices") or ():
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                yield Piece(str(thought), thinking=True)
            if delta.get("content"):
                yield Piece(str(delta["content"]))
            reason = choice.get("finish_reason") or reason
    raise CallError("failed", "the answer broke off before its end")


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CallError("failed", f"the answer holds what is no JSON object: {text[:80]!r}")
    return value


def _refuse_error(value: Mapping[str, Any]) -> None:
    if text := error_text(dict(value)):
        raise CallError("failed", text)


def _ms(nanoseconds: Any) -> float | None:
    return nanoseconds / 1e6 if isinstance(nanoseconds, int | float) else None
