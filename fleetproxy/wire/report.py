"""What a backend reports in its answers: usage, timings, errors, in any dialect, whole or torn. Never raises."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from fleetproxy.core.usage import NOTHING, Usage

MAX_TEXT_CHARACTERS = 512
#: More tokens or milliseconds than this are a lie or a mistake.
_MAX_COUNT = 2**53
#: Bodies up to this are read whole; of longer ones the two ends.
_WHOLE_BYTES = 64 * 1024
#: Places looked at, from the end, for a report.
_PLACES = 16

_Number = int | float | None


class Counts(msgspec.Struct, gc=False):
    """`usage` of OpenAI (prompt/completion), Anthropic and the responses API (input/output)."""

    prompt_tokens: _Number = None
    completion_tokens: _Number = None
    input_tokens: _Number = None
    output_tokens: _Number = None
    cache_creation_input_tokens: _Number = None
    cache_read_input_tokens: _Number = None


class Timings(msgspec.Struct, gc=False):
    """llama.cpp's `timings`. Tokens found in its cache are not in `prompt_n`."""

    prompt_n: _Number = None
    cache_n: _Number = None
    predicted_n: _Number = None
    prompt_ms: _Number = None
    predicted_ms: _Number = None


class Report(msgspec.Struct):
    """One JSON object of an answer: a whole body, a line, an event. Everything else in it is passed over.

    An absent raw field is empty.
    """

    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: _Number = None
    eval_count: _Number = None
    load_duration: _Number = None
    prompt_eval_duration: _Number = None
    eval_duration: _Number = None
    usage: Counts | None = None
    timings: Timings | None = None
    type: str | None = None
    status: Any = None
    error: Raw = Raw()
    #: An object in Anthropic's first event, and in Ollama's chat; a text in some errors.
    message: Raw = Raw()
    #: An object in the responses API's last event, a text in Ollama's completions.
    response: Raw = Raw()


_report = msgspec.json.Decoder(Report).decode
_counts = msgspec.json.Decoder(Counts | None).decode
_timings = msgspec.json.Decoder(Timings | None).decode
_anything = msgspec.json.Decoder().decode
_NO_ERROR = (b"", b"null", b"false", b'""')
_DAMAGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_OBJECT = rb"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})"
_USAGE = re.compile(rb'"usage"' + _OBJECT)
_TIMINGS = re.compile(rb'"timings"' + _OBJECT)
_OLLAMA = re.compile(
    rb'"(prompt_eval_count|eval_count|load_duration|prompt_eval_duration|eval_duration)"\s*:\s*(\d{1,18})'
)


def read(text: bytes) -> Report | None:
    """A JSON object; None for anything else."""
    try:
        return _report(text)
    except _DAMAGE:
        return None


def data(line: bytes) -> bytes:
    """What a `data:` line of an event stream carries; b"" for other lines."""
    return line[5:].strip() if line.startswith(b"data:") else b""


def inner(said: Report) -> Report:
    """The object inside an event: `response` of the responses API, `message` of Anthropic's first."""
    for raw in (said.response, said.message):
        found = read(bytes(raw)) if raw else None
        if found is not None:
            return found
    return Report()


def error_text(said: Report) -> str | None:
    """The text of its error; None when it has none."""
    if bytes(said.error) in _NO_ERROR:
        # Only events of this type are errors by their type alone.
        return (_text(said.message) or "error") if said.type == "error" else None
    return _text(said.error) or "error"


def usage(said: Report) -> Usage:
    """What it reports. Ollama leaves zeros out, so its last line without counts says zero."""
    counts = said.usage
    if counts is None and said.type is not None:
        counts = inner(said).usage
    timings = said.timings
    tokens_in, tokens_out = _count(said.prompt_eval_count), _count(said.eval_count)
    prompt_ms, eval_ms = _ms(said.prompt_eval_duration), _ms(said.eval_duration)
    if said.done:
        tokens_in, tokens_out = tokens_in or 0, tokens_out or 0
    if timings is not None:
        prompt_n = _count(timings.prompt_n)
        tokens_in = prompt_n + (_count(timings.cache_n) or 0) if prompt_n is not None else None
        tokens_out = _count(timings.predicted_n)
        prompt_ms, eval_ms = _measure(timings.prompt_ms), _measure(timings.predicted_ms)
    if counts is not None:
        given_in, given_out = _given(counts)
        tokens_in = given_in if given_in is not None else tokens_in
        tokens_out = given_out if given_out is not None else tokens_out
    return Usage(tokens_in, tokens_out, _ms(said.load_duration), prompt_ms, eval_ms)


def over(newer: Usage, older: Usage) -> Usage:
    """The newer report, and the older one where it says nothing."""
    return Usage(
        newer.tokens_in if newer.tokens_in is not None else older.tokens_in,
        newer.tokens_out if newer.tokens_out is not None else older.tokens_out,
        newer.load_ms if newer.load_ms is not None else older.load_ms,
        newer.prompt_eval_ms if newer.prompt_eval_ms is not None else older.prompt_eval_ms,
        newer.eval_ms if newer.eval_ms is not None else older.eval_ms,
    )


def last_reported(text: bytes) -> Usage:
    """The report nearest to the end of an event stream."""
    for name in (b'"usage"', b'"timings"'):
        at = len(text)
        for _ in range(_PLACES):
            at = text.rfind(name, 0, at)
            if at < 0:
                break
            said = read(data(_line_at(text, at)))
            if said is not None:
                found = usage(said)
                if found != NOTHING:
                    return found
    return NOTHING


def first_reported(text: bytes) -> Usage:
    """The report nearest to the beginning of an event stream."""
    at = text.find(b'"usage"')
    said = read(data(_line_at(text, at))) if at >= 0 else None
    return usage(said) if said is not None else NOTHING


def of_body(body: bytes) -> Usage:
    """The usage of a whole body at hand: what a tap would have read in passing, for less."""
    said = read(body) if len(body) <= _WHOLE_BYTES else None
    return usage(said) if said is not None else over(last_usage(body[-_WHOLE_BYTES:]), last_usage(body[:4096]))


def last_usage(torn: bytes) -> Usage:
    """The last report in a piece of a JSON body that was too long to be kept whole."""
    found = NOTHING
    counts = _last_object(_USAGE, torn)
    timings = _last_object(_TIMINGS, torn)
    if counts is not None or timings is not None:
        try:
            found = usage(Report(usage=_counts(counts or b"null"), timings=_timings(timings or b"null")))
        except _DAMAGE:
            found = NOTHING
    if found != NOTHING:
        return found
    told = {name.decode(): int(number) for name, number in _OLLAMA.findall(torn)}
    return usage(Report(**told))  # type: ignore[arg-type]


def _last_object(pattern: re.Pattern[bytes], text: bytes) -> bytes | None:
    last = None
    for found in pattern.finditer(text):
        last = found[1]
    return last


def _line_at(text: bytes, at: int) -> bytes:
    start = max(text.rfind(b"\n", 0, at), text.rfind(b"\r", 0, at)) + 1
    ends = [end for end in (text.find(b"\n", at), text.find(b"\r", at)) if end >= 0]
    return text[start : min(ends, default=len(text))]


def _given(counts: Counts) -> tuple[int | None, int | None]:
    tokens_in, tokens_out = _count(counts.prompt_tokens), _count(counts.completion_tokens)
    if tokens_in is None:
        tokens_in = _count(counts.input_tokens)
        if tokens_in is not None:  # Anthropic counts what went through its cache apart
            tokens_in += _count(counts.cache_creation_input_tokens) or 0
            tokens_in += _count(counts.cache_read_input_tokens) or 0
    return tokens_in, tokens_out if tokens_out is not None else _count(counts.output_tokens)


def _count(number: _Number) -> int | None:
    return int(number) if number is not None and 0 <= number <= _MAX_COUNT else None


def _measure(milliseconds: _Number) -> float | None:
    return float(milliseconds) if milliseconds is not None and 0 <= milliseconds <= _MAX_COUNT else None


def _ms(nanoseconds: _Number) -> float | None:
    return nanoseconds / 1e6 if nanoseconds is not None and 0 <= nanoseconds <= _MAX_COUNT else None


def _text(raw: Raw) -> str:
    """A text, or the message of an object."""
    try:
        found = _anything(raw) if raw else None
    except _DAMAGE:
        return ""
    if isinstance(found, dict):
        found = found.get("message")
    return found[:MAX_TEXT_CHARACTERS] if isinstance(found, str) else ""
