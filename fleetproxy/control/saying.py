"""A model's answer to a prompt of control's own, taken as it comes: Ollama's lines, or an OpenAI server's events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Protocol

import msgspec

from fleetproxy.control.server_calls import Refused
from fleetproxy.core.backend import Backend
from fleetproxy.errors import BadResponse

#: Characters of an answer that are taken; the call is ended where one says more.
MAX_CHARACTERS = 2000
MAX_LINE_BYTES = 64 * 1024
#: Statuses of servers that know no `stream_options`: they are asked again without.
_UNWILLING = frozenset({400, 422})


class Answering(Protocol):
    """`transport.httpx_client.Streamed`."""

    @property
    def status(self) -> int: ...
    @property
    def pieces(self) -> AsyncGenerator[bytes, None]: ...


class Streamer(Protocol):
    """`transport.httpx_client.HttpxClient`. Failures are BackendErrors."""

    def stream(
        self, backend: Backend, method: str, path: str, timeout_s: float, *, json: bytes | None = None
    ) -> AbstractAsyncContextManager[Answering]: ...


class Piece(msgspec.Struct, frozen=True):
    """What one line of an answer says."""

    text: str = ""
    #: It said something to itself.
    thought: bool = False
    done: bool = False
    tokens: int | None = None
    #: Nanoseconds it took to make them, where it says so.
    tokens_ns: int | None = None
    error: str | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, and its pace."""

    text: str
    #: Milliseconds to the first token, thoughts included; None: there was none.
    first_token_ms: float | None
    tokens: int | None
    tokens_per_second: float | None
    #: It had more to say than `MAX_CHARACTERS`.
    truncated: bool


class Question(msgspec.Struct, frozen=True):
    """What is asked, and how long all of the answer may take."""

    model: str
    prompt: str
    timeout_s: float


class _Unwilling(Refused):
    """It did not like how it was asked, perhaps."""


async def say(
    client: Streamer,
    backend: Backend,
    question: Question,
    tell: Callable[[Piece], None],
    clock: Callable[[], float] = time.monotonic,
) -> Said:
    """Ask a model; `tell` hears each piece with text, and the first thought. Raises Refused or BackendError."""
    hearing = _Hearing(tell, clock)
    body: dict[str, Any] = {"model": question.model, "stream": True}
    if backend.kind == "ollama":
        body["prompt"] = question.prompt
        return await hearing.ask(client, backend, body, question.timeout_s)
    body["messages"] = [{"role": "user", "content": question.prompt}]
    try:
        counted = {**body, "stream_options": {"include_usage": True}}
        return await hearing.ask(client, backend, counted, question.timeout_s)
    except _Unwilling:
        return await hearing.ask(client, backend, body, question.timeout_s)


class _Hearing:
    """One answer, as far as it is heard."""

    def __init__(self, tell: Callable[[Piece], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._text: list[str] = []
        self._left = MAX_CHARACTERS
        self._first_s: float | None = None
        self._known = Piece()

    async def ask(self, client: Streamer, backend: Backend, body: dict[str, Any], timeout_s: float) -> Said:
        path, read = _SPOKEN[backend.kind == "ollama"]
        began_s = self._clock()
        async with (
            client.stream(backend, "POST", path, timeout_s, json=msgspec.json.encode(body)) as answer,
            aclosing(answer.pieces) as pieces,
            aclosing(_lines(pieces)) as lines,
        ):
            if not 200 <= answer.status < 300:
                error = _Unwilling if answer.status in _UNWILLING and "stream_options" in body else Refused
                raise error(await _reason(answer.status, pieces))
            async for line in lines:
                piece = read(line)
                if piece is not None:
                    self._hear(piece)
                if not self._left:
                    break
        known = self._known
        if not known.done and self._left:
            raise BadResponse("its answer broke off" if self._text else "its answer cannot be read")
        first_s = self._first_s
        return Said(
            text="".join(self._text),
            first_token_ms=None if first_s is None else round((first_s - began_s) * 1000, 1),
            tokens=known.tokens,
            tokens_per_second=_pace(known, 0.0 if first_s is None else self._clock() - first_s),
            truncated=not known.done,
        )

    def _hear(self, piece: Piece) -> None:
        """Raises Refused."""
        if piece.error is not None:
            raise Refused(piece.error)
        if self._first_s is None and (piece.text or piece.thought):
            self._first_s = self._clock()
            if not piece.text:
                self._tell(Piece(thought=True))
        if piece.text:
            text = piece.text[: self._left]
            self._text.append(text)
            self._left -= len(text)
            self._tell(Piece(text))
        known = self._known
        self._known = Piece(
            done=known.done or piece.done,
            tokens=known.tokens if piece.tokens is None else piece.tokens,
            tokens_ns=piece.tokens_ns or known.tokens_ns,
        )


def of_ollama(line: bytes) -> Piece | None:
    """A line of `/api/generate`; None when it is none."""
    value = _object(line)
    if value is None:
        return None
    return Piece(
        text=_text(value.get("response")),
        thought=bool(_text(value.get("thinking"))),
        done=value.get("done") is True,
        tokens=_count(value.get("eval_count")),
        tokens_ns=_count(value.get("eval_duration")),
        error=_error(value),
    )


def of_openai(line: bytes) -> Piece | None:
    """A line of `/v1/chat/completions`, or the whole of one that does not stream; None when it says nothing."""
    line = line.removeprefix(b"data:").strip()
    if line == b"[DONE]":
        return Piece(done=True)
    value = _object(line)
    if value is None:
        return None
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("delta") or choice.get("message")
    message = message if isinstance(message, dict) else {}
    usage = value.get("usage")
    return Piece(
        text=_text(message.get("content")),
        thought=bool(_text(message.get("reasoning_content")) or _text(message.get("reasoning"))),
        done=isinstance(choice.get("finish_reason"), str),
        tokens=_count(usage.get("completion_tokens")) if isinstance(usage, dict) else None,
        error=_error(value),
    )


#: Whether it is Ollama's -> where it is asked, how its lines are read.
_SPOKEN = {True: ("/api/generate", of_ollama), False: ("/v1/chat/completions", of_openai)}


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > MAX_LINE_BYTES:
            raise BadResponse(f"a line of the server's answer is longer than {MAX_LINE_BYTES} bytes")
    if rest.strip():
        yield rest


async def _reason(status: int, pieces: AsyncIterator[bytes]) -> str:
    """What a refusal says, as far as it is short."""
    body = b""
    async for piece in pieces:
        body += piece
        if len(body) > MAX_LINE_BYTES:
            break
    value = _object(body)
    return (_error(value) if value else None) or f"the server answered {status}"


def _pace(done: Piece, span_s: float) -> float | None:
    """Tokens per second: as the server measured it, else from its first token to its end."""
    if not done.tokens:
        return None
    if done.tokens_ns:
        return round(done.tokens * 1e9 / done.tokens_ns, 1)
    return round((done.tokens - 1) / span_s, 1) if done.tokens > 1 and span_s > 0 else None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _error(value: dict[str, Any]) -> str | None:
    error = value.get("error")
    if isinstance(error, dict):
        error = error.get("message") or "the server failed"
    return error[:MAX_CHARACTERS] if isinstance(error, str) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
