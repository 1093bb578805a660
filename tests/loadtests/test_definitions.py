"""What TTFT, ITL, TOKENS and E2E mean, and which answers are none."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.definitions import Answer, Broken, Measured, Reservoir

TEXTS = st.lists(st.text(max_size=5), min_size=1, max_size=20).filter(any)
GAPS = st.floats(0.001, 2.0)


def ollama(texts: list[str], eval_count: int | None = None) -> list[bytes]:
    lines = [{"message": {"role": "assistant", "content": text}, "done": False} for text in texts]
    end: dict[str, object] = {"message": {"content": ""}, "done": True}
    return [
        json.dumps(line).encode() + b"\n" for line in [*lines, end | ({"eval_count": eval_count} if eval_count else {})]
    ]


def openai(texts: list[str], tokens: int | None = None) -> list[bytes]:
    values: list[dict[str, object]] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    values += [{"choices": [{"delta": {"content": text}}]} for text in texts]
    values += [{"choices": [], "usage": {"completion_tokens": tokens}}] if tokens else []
    lines = [b": a comment\n", b"\n"]
    for value in values:
        lines += [b"data: " + json.dumps(value).encode() + b"\n", b"\n"]
    return [*lines, b"data: [DONE]\n", b"\n"]


def read(lines: list[bytes], gap_s: float, began_s: float = 100.0) -> Measured:
    """Line n comes n gaps after the request; the end one gap after the last."""
    answer = Answer(began_s)
    for number, line in enumerate(lines, 1):
        answer.see(line, began_s + number * gap_s)
    return answer.end(began_s + (len(lines) + 1) * gap_s)


@pytest.mark.parametrize("dialect", [ollama, openai])
@given(texts=TEXTS, gap_s=GAPS)
def test_the_first_token_is_the_first_piece_with_text_in_it(dialect, texts: list[str], gap_s: float) -> None:  # type: ignore[no-untyped-def]
    lines = dialect(texts)
    first = next(text for text in texts if text)
    place = next(n for n, line in enumerate(lines, 1) if json.dumps(first).encode() in line and b"content" in line)
    measured = read(lines, gap_s)
    assert measured.ttft_ms == pytest.approx(place * gap_s * 1000)
    assert measured.e2e_ms == pytest.approx((len(lines) + 1) * gap_s * 1000)


@given(texts=TEXTS, gap_s=GAPS, reported=st.none() | st.integers(1, 500))
def test_time_between_tokens_is_what_follows_the_first_over_one_less(
    texts: list[str], gap_s: float, reported: int | None
) -> None:
    for dialect in (ollama, openai):
        measured = read(dialect(texts, reported), gap_s)
        assert measured.tokens == (reported or sum(map(bool, texts)))
        if measured.tokens == 1:
            assert measured.itl_ms is None
        else:
            assert measured.itl_ms is not None
            assert measured.itl_ms * (measured.tokens - 1) + measured.ttft_ms == pytest.approx(measured.e2e_ms)


@pytest.mark.parametrize("dialect", [ollama, openai])
@given(texts=TEXTS, cut=st.integers(1, 1000))
def test_a_stream_cut_before_its_marker_is_broken(dialect, texts: list[str], cut: int) -> None:  # type: ignore[no-untyped-def]
    lines = dialect(texts)
    marker = max(n for n, line in enumerate(lines) if b"[DONE]" in line or b'"done": true' in line)
    with pytest.raises(Broken, match="end marker"):
        read(lines[: min(cut, marker)], 0.01)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"error":"the model fell over"}\n', "fell over"),
        (b'data: {"error":{"message":"lost","code":"backend_lost"}}\n', "backend_lost"),
        (b'{"message":{"content":"ha', "not JSON"),
        (b"data: 7\n", "not an object"),
    ],
)
def test_an_error_or_half_a_line_in_a_stream_is_broken(line: bytes, why: str) -> None:
    with pytest.raises(Broken, match=why):
        Answer(0.0).see(line, 1.0)


def test_an_answer_without_text_is_broken() -> None:
    with pytest.raises(Broken, match="no text"):
        read(ollama([""]), 0.01)


def test_thinking_is_text() -> None:
    assert read([b'{"message":{"content":"","thinking":"hm"}}\n', *ollama(["x"])], 1.0).ttft_ms == 1000.0
    assert read([b'data: {"choices":[{"delta":{"reasoning":"hm"}}]}\n', *openai(["x"])], 1.0).ttft_ms == 1000.0


@given(values=st.lists(st.floats(0, 1e6), max_size=300), most=st.integers(1, 100))
def test_a_reservoir_keeps_all_up_to_its_size_and_then_some_of_them(values: list[float], most: int) -> None:
    kept = Reservoir(most, random.Random(1))
    for value in values:
        kept.add(value)
    assert kept.seen == len(values)
    if not values:
        assert kept.quantile(0.5) is None
    elif len(values) <= most:
        assert (kept.quantile(0.0), kept.quantile(1.0)) == (min(values), max(values))
    else:
        assert {kept.quantile(n / 10) for n in range(11)} <= set(values)
