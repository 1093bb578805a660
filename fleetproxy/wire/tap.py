"""A passive reader of an answer on its way through: has its end marker gone by, what usage did it report?

It looks, never touches. Memory is bounded: the first 4 KiB and the last 64 KiB are kept, by reference. Any chunking
gives the same result, and garbage gives none; nothing here raises on what a backend sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from fleetproxy.core.operation import Endpoint, Marker
from fleetproxy.core.usage import NOTHING, Usage

HEAD_BYTES = 4 * 1024
TAIL_BYTES = 64 * 1024


class Seen(msgspec.Struct, frozen=True):
    """What an answer said in passing."""

    usage: Usage
    #: Its end marker has gone by.
    terminal: bool
    #: The text of an error the backend put into the stream.
    error: str | None


class Tap:
    """Reads one answer. `streamed`: it should end with the endpoint's marker."""

    __slots__ = (
        "_head",
        "_head_size",
        "_hints",
        "_line",
        "_seen",
        "_size",
        "_streamed",
        "_tail",
        "_verdict",
        "error",
        "terminal",
    )

    def __init__(self, endpoint: Endpoint, streamed: bool) -> None:
        marker = endpoint.marker_stream if streamed else None
        self._streamed = streamed
        self._hints, self._verdict = _MARKERS[marker]
        self._head: list[bytes] = []
        self._head_size = 0
        self._tail: deque[bytes] = deque()
        #: Bytes kept in the tail, and bytes seen.
        self._size = 0
        self._seen = 0
        #: The unfinished line before the next chunk.
        self._line = b""
        self.terminal = False
        self.error: str | None = None

    def see(self, chunk: bytes) -> bool:
        """The next bytes. True exactly when the end marker has just gone by."""
        size = len(chunk)
        tail = self._tail
        tail.append(chunk)
        self._size += size
        self._seen += size
        if self._head_size < HEAD_BYTES:
            self._head.append(chunk)
            self._head_size += size
        while self._size - len(tail[0]) >= TAIL_BYTES:
            self._size -= len(tail.popleft())
        hints = self._hints
        if not hints or self.terminal:
            return False
        if self._line:
            chunk = self._line + chunk
        for hint in hints:
            if hint in chunk:
                self._judge(chunk)
                break
        if chunk.endswith(b"\n"):
            self._line = b""
        else:
            self._line = chunk[chunk.rfind(b"\n") + 1 :][-TAIL_BYTES:]
        return self.terminal

    @property
    def mid_line(self) -> bool:
        """The last byte seen was not the end of a line."""
        return bool(self._line)

    def end(self) -> Seen:
        """Everything known now. May be called before the body has ended."""
        whole = self._seen == self._size
        tail = self._tail[0] if len(self._tail) == 1 else b"".join(self._tail)
        try:
            usage = self._usage(tail, whole)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
            usage = NOTHING
        return Seen(usage, self.terminal, self.error)

    def _judge(self, text: bytes) -> None:
        """A hint was seen: read the lines for what they really say."""
        for line in text.splitlines():
            if any(hint in line for hint in self._hints):
                terminal, error = self._verdict(line)
                if error is not None:
                    self.error = error
                if terminal:
                    self.terminal = True
                    return

    def _usage(self, tail: bytes, whole: bool) -> Usage:
        if not self._streamed:
            return _report(tail) if whole else _last_report(tail)
        first = _first_report(b"".join(self._head)[:HEAD_BYTES]) if self._seen > self._size else NOTHING
        found = _stream_reports(tail)
        merged = first
        for usage in found:
            merged = _over(usage, merged)
        return merged


# --- end markers ---------------------------------------------------------------------------------------------------

Verdict = Callable[[bytes], tuple[bool, str | None]]
_UNDECIDED: tuple[bool, str | None] = (False, None)


class _Line(msgspec.Struct):
    """The fields of a stream's line that decide."""

    done: bool | None = None
    done_reason: str | None = None
    status: object = None
    error: object = None
    type: str | None = None
    message: object = None


_LINE = msgspec.json.Decoder(_Line)


def _decode(text: bytes) -> _Line | None:
    try:
        return _LINE.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _data(line: bytes) -> bytes:
    """What a `data:` line of an event stream carries; nothing for other lines."""
    return line[5:].strip() if line.startswith(b"data:") else b""


def _text_of(error: object) -> str:
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)[:512]


def _ndjson_done(line: bytes) -> tuple[bool, str | None]:
    seen = _decode(line)
    if seen is None:
        return _UNDECIDED
    if seen.error is not None:
        return True, _text_of(seen.error)
    return bool(seen.done or seen.done_reason), None


def _ndjson_status(line: bytes) -> tuple[bool, str | None]:
    seen = _decode(line)
    if seen is None:
        return _UNDECIDED
    if seen.error is not None:
        return True, _text_of(seen.error)
    return seen.status == "success", None


def _sse_done(line: bytes) -> tuple[bool, str | None]:
    data = _data(line)
    if data == b"[DONE]":
        return True, None
    seen = _decode(data) if data else None
    if seen is not None and seen.error is not None:
        return True, _text_of(seen.error)
    return _UNDECIDED


def _sse_typed(*types: str) -> Verdict:
    def verdict(line: bytes) -> tuple[bool, str | None]:
        data = _data(line)
        seen = _decode(data) if data else None
        if seen is None:
            return _UNDECIDED
        if seen.type in types:
            return True, None
        if seen.error is not None or seen.type == "error":
            return True, _text_of(seen.error if seen.error is not None else seen.message)
        return _UNDECIDED

    return verdict


#: Marker -> byte strings one of which is in every deciding line (cheap to look for), and the judge of such lines.
_MARKERS: dict[Marker | None, tuple[tuple[bytes, ...], Verdict]] = {
    None: ((), _ndjson_done),
    "ndjson_done": ((b'"done":true', b'"done_reason"', b'"done": true', b'"error"'), _ndjson_done),
    "ndjson_status": ((b'"success"', b'"error"'), _ndjson_status),
    "sse_done": ((b"[DONE]", b'"error"'), _sse_done),
    "sse_message_stop": ((b"message_stop", b'"error"'), _sse_typed("message_stop")),
    "sse_response_completed": (
        (b"response.completed", b"response.incomplete", b"response.failed", b'"error"'),
        _sse_typed("response.completed", "response.incomplete", "response.failed"),
    ),
}


# --- usage -----------------------------------------------------------------------------------------------------------


class _Counts(msgspec.Struct):
    """`usage` of OpenAI (prompt/completion), of Anthropic and of the responses API (input/output)."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Timings(msgspec.Struct):
    """llama.cpp's `timings`."""

    prompt_n: int | None = None
    predicted_n: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class _Inner(msgspec.Struct):
    """`message` of Anthropic's message_start, `response` of the responses API's last event."""

    usage: _Counts | None = None


class _Report(msgspec.Struct):
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    load_duration: int | None = None
    prompt_eval_duration: int | None = None
    eval_duration: int | None = None
    usage: _Counts | None = None
    timings: _Timings | None = None
    response: _Inner | str | None = None
    #: Undecoded: Ollama's chat message, or Anthropic's message_start.
    message: msgspec.Raw = msgspec.Raw()
    type: str | None = None


_REPORT = msgspec.json.Decoder(_Report)
_COUNTS = msgspec.json.Decoder(_Counts)
_INNER = msgspec.json.Decoder(_Inner)
_REPORT_HINTS = (b'"usage"', b'"prompt_eval_count"', b'"eval_count"', b'"timings"', b'"load_duration"')


def _report(text: bytes) -> Usage:
    """The usage of one JSON object. Raises msgspec's errors on what is none."""
    report = _REPORT.decode(text)
    counts = report.usage
    if counts is None and isinstance(report.response, _Inner):
        counts = report.response.usage
    if counts is None and report.type == "message_start" and bytes(report.message):
        counts = _INNER.decode(report.message).usage
    tokens_in, tokens_out = report.prompt_eval_count, report.eval_count
    prompt_ms, eval_ms = _ms(report.prompt_eval_duration), _ms(report.eval_duration)
    timings = report.timings
    if timings is not None:
        tokens_in, tokens_out = timings.prompt_n, timings.predicted_n
        prompt_ms, eval_ms = timings.prompt_ms, timings.predicted_ms
    if counts is not None:
        given_in = counts.prompt_tokens if counts.prompt_tokens is not None else counts.input_tokens
        given_out = counts.completion_tokens if counts.completion_tokens is not None else counts.output_tokens
        tokens_in = given_in if given_in is not None else tokens_in
        tokens_out = given_out if given_out is not None else tokens_out
    return Usage(tokens_in, tokens_out, _ms(report.load_duration), prompt_ms, eval_ms)


def _ms(nanoseconds: int | None) -> float | None:
    return nanoseconds / 1e6 if nanoseconds is not None else None


def _lines(text: bytes) -> Iterator[bytes]:
    """The JSON objects of a stream's lines, NDJSON or SSE, that report something."""
    for line in text.splitlines():
        if any(hint in line for hint in _REPORT_HINTS):
            yield _data(line) or line


def _stream_reports(text: bytes) -> Iterator[Usage]:
    for line in _lines(text):
        try:
            yield _report(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue


def _first_report(head: bytes) -> Usage:
    """What the beginning said, when the kept tail no longer holds it (Anthropic gives input_tokens first)."""
    merged = NOTHING
    for usage in _stream_reports(head):
        merged = _over(usage, merged)
    return merged


def _last_report(tail: bytes) -> Usage:
    """Usage from the end of a JSON body too large to keep: the last `usage` object, or Ollama's own counts."""
    at = tail.rfind(b'"usage"')
    if at >= 0:
        start = tail.find(b"{", at)
        end = tail.find(b"}", start)
        while 0 <= start < end:
            try:
                counts = _COUNTS.decode(tail[start : end + 1])
            except msgspec.MsgspecError:
                end = tail.find(b"}", end + 1)
                continue
            return _report(b'{"usage":' + tail[start : end + 1] + b"}") if counts is not None else NOTHING
    comma = tail.rfind(b"]")
    if comma >= 0 and b'"prompt_eval_count"' in tail[comma:]:
        fields = tail[comma + 1 :].lstrip(b"], \t\r\n")
        return _report(b"{" + fields)
    return NOTHING


def _over(newer: Usage, older: Usage) -> Usage:
    """Later reports replace earlier ones, field by field."""
    return Usage(
        newer.tokens_in if newer.tokens_in is not None else older.tokens_in,
        newer.tokens_out if newer.tokens_out is not None else older.tokens_out,
        newer.load_ms if newer.load_ms is not None else older.load_ms,
        newer.prompt_eval_ms if newer.prompt_eval_ms is not None else older.prompt_eval_ms,
        newer.eval_ms if newer.eval_ms is not None else older.eval_ms,
    )
