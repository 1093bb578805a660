"""A model's answer as it comes: what lines mean, where it is cut, what is said when it breaks off."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from fleetproxy.control.saying import MAX_CHARACTERS, MAX_LINE_BYTES, Piece, Question, Said, of_ollama, of_openai, say
from fleetproxy.control.server_calls import Refused
from fleetproxy.core.backend import Backend
from fleetproxy.errors import BadResponse
from fleetproxy.transport.httpx_client import Streamed


class Scripted:
    """Answers in turn; keeps what it was asked."""

    def __init__(self, *answers: tuple[int, list[bytes]]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, object]]] = []

    @asynccontextmanager
    async def stream(
        self, backend: Backend, method: str, path: str, timeout_s: float, *, json: bytes | None = None
    ) -> AsyncIterator[Streamed]:
        assert json is not None
        self.asked.append((path, msgspec.json.decode(json)))
        status, pieces = self.answers.pop(0)

        async def body() -> AsyncGenerator[bytes, None]:
            for piece in pieces:
                yield piece

        yield Streamed(status, body())


async def said(client: Scripted, kind: str) -> tuple[Said, list[Piece]]:
    heard: list[Piece] = []
    backend = Backend(name="box", id=1, column=0, kind=kind)  # type: ignore[arg-type]
    seconds = itertools.count()
    question = Question("phi", "hello", 5.0)
    return await say(client, backend, question, heard.append, lambda: float(next(seconds))), heard


SSE = [
    b": OPENROUTER PROCESSING\n\n",
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\ndata: {"choices":[{"delta":{"reason',
    b'ing_content":"hm"}}]}\r\n\r\n',
    b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\ndata: {"choices":[{"delta":{"content":"lo"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"completion_tokens":5}}\n\ndata: [DONE]\n\n',
]


async def test_events_of_an_openai_server_are_pieces_wherever_they_are_cut() -> None:
    whole = b"".join(SSE)
    for pieces in (SSE, [whole], [whole[at : at + 1] for at in range(len(whole))]):
        answer, heard = await said(Scripted((200, pieces)), "openai")
        assert heard == [Piece(thought=True), Piece("Hel"), Piece("lo")]
        assert answer == Said(text="Hello", first_token_ms=1000.0, tokens=5, tokens_per_second=4.0, truncated=False)


async def test_ollama_measures_its_own_pace() -> None:
    lines = [
        b'{"thinking":"hm","response":""}\n{"response":"Hi"}\n',
        b'{"response":"","done":true,"eval_count":50,"eval_duration":2000000000}\n',
    ]
    answer, heard = await said(Scripted((200, lines)), "ollama")
    assert heard == [Piece(thought=True), Piece("Hi")]
    assert (answer.text, answer.tokens, answer.tokens_per_second) == ("Hi", 50, 25.0)


async def test_a_server_without_stream_options_is_asked_again_without() -> None:
    client = Scripted((400, [b'{"error":{"message":"unknown field"}}']), (200, SSE))
    answer, _ = await said(client, "openai")
    assert answer.text == "Hello"
    assert ["stream_options" in body for _, body in client.asked] == [True, False]
    with pytest.raises(Refused, match="no such field"):
        await said(Scripted(*[(400, [b'{"error":{"message":"no such field"}}'])] * 2), "openai")


async def test_an_answer_that_does_not_stream_is_one_piece() -> None:
    body = b'{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}'
    answer, heard = await said(Scripted((200, [body])), "openai")
    assert (heard, answer.tokens) == ([Piece("Hello")], 2)


async def test_who_never_stops_is_cut_off() -> None:
    line = b'{"response":"' + b"x" * 700 + b'"}\n'
    answer, heard = await said(Scripted((200, [line] * 1000)), "ollama")
    assert len(answer.text) == sum(len(piece.text) for piece in heard) == MAX_CHARACTERS
    assert answer.truncated
    assert answer.tokens is None


@pytest.mark.parametrize(
    ("pieces", "error", "why"),
    [
        ([b'{"response":"Hel"}\n'], BadResponse, "broke off"),
        ([b"<html>\n"], BadResponse, "cannot be read"),
        ([b"x" * (MAX_LINE_BYTES + 1)], BadResponse, "longer than"),
        ([b'{"response":"Hel"}\n{"error":"out of memory"}\n'], Refused, "out of memory"),
    ],
)
async def test_what_went_wrong_is_said(pieces: list[bytes], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        await said(Scripted((200, pieces)), "ollama")


_WORDS = (
    "response", "thinking", "done", "error", "eval_count", "choices", "delta", "message", "content", "usage",
    "completion_tokens",
)  # fmt: skip
_JSON = some.recursive(
    some.none() | some.booleans() | some.integers(0, 2**60) | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
def test_no_line_is_beyond_reading(value: object) -> None:
    line = msgspec.json.encode(value)
    of_ollama(line)
    of_openai(b"data: " + line)
