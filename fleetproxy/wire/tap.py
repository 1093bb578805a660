"""A passive reader of an answer on its way through: has its end marker gone by, what usage did it report?

It looks, never touches, and never raises on what a backend sends. Memory is bounded: the first 4 KiB and the last
64 KiB are kept, the pieces themselves, joined now and then. Everything is decided on whole lines and on exactly these
bytes, so any chunking gives the same result.

A chunk costs a few substring searches (`_HINTS`); only when one hits, lines are looked at, and only those that end in
that chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fleetproxy.core.operation import Endpoint, Marker
from fleetproxy.core.usage import NOTHING, Usage
from fleetproxy.wire import report
from fleetproxy.wire.report import Report

HEAD_BYTES = 4 * 1024
TAIL_BYTES = 64 * 1024
#: Pieces are joined when they and what each costs in memory come to this.
_COMPACT_BYTES = 2 * TAIL_BYTES
_PIECE_COST_BYTES = 64


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What an answer said in passing."""

    usage: Usage
    #: Its end marker has gone by, or the backend's own error, after which nothing comes.
    terminal: bool
    #: The text of an error the backend put into its answer.
    error: str | None


def ends_marked(endpoint: Endpoint, headers: list[tuple[bytes, bytes]], announced_bytes: int | None) -> bool:
    """Whether the answer to a request for a stream has to end with the endpoint's marker to be whole.

    Not when the backend answers with one JSON body after all, and not when it is compressed: what nobody can read here
    is left to HTTP's own framing. `headers` have names in lower case.
    """
    marker = endpoint.marker_stream
    if marker is None:
        return False
    kind = b""
    for name, value in headers:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            return False
    # Lines of JSON go by the name of JSON too, but nobody knows the length of a stream.
    return kind != b"application/json" or (marker.startswith("ndjson") and announced_bytes is None)


class Tap:
    """Reads one answer. `streamed`: it should end with the endpoint's marker."""

    __slots__ = (
        "_append",
        "_cut",
        "_edge",
        "_error",
        "_head",
        "_hinted",
        "_hints",
        "_last_line",
        "_marker",
        "_over",
        "_pieces",
        "_room",
    )

    def __init__(self, endpoint: Endpoint, streamed: bool) -> None:
        self._marker: Marker | None = endpoint.marker_stream if streamed else None
        self._hints = _HINTS[self._marker]
        self._pieces: list[bytes] = []
        self._append = self._pieces.append
        self._room = _COMPACT_BYTES
        #: The first bytes, once pieces have been dropped (`_cut`).
        self._head = b""
        self._cut = False
        #: The end of the chunk before, where a hint may have begun.
        self._edge = b""
        #: Hints seen in the line that has not ended yet.
        self._hinted: tuple[bytes, ...] = ()
        self._over = False
        self._error: str | None = None
        #: The line that ended the stream.
        self._last_line: bytes | None = None

    def see(self, chunk: bytes) -> bool:
        """The next bytes. True exactly when the line with the end marker has just gone by."""
        if self._room < 0:
            self._compact()
        self._append(chunk)
        self._room -= len(chunk) + _PIECE_COST_BYTES
        edge = self._edge
        data = edge + chunk if edge else chunk
        find = data.find  # twice as fast as `in`, which takes bytes for a number first
        for hint in self._hints:
            if find(hint) >= 0:
                return self._look(chunk, data)
        if self._hinted:
            return self._look(chunk, data)
        self._edge = b"" if data[-1:] == b"\n" else data[-_EDGE_BYTES:]
        return False

    @property
    def terminal(self) -> bool:
        """The end marker has gone by; its line may lack its line end, if nothing more comes."""
        return self._over or (bool(self._hints) and self._verdict(self._rest(), self._hinted) is not None)

    @property
    def error(self) -> str | None:
        return self._error

    @property
    def mid_line(self) -> bool:
        """The last byte seen was not the end of a line."""
        last = next((piece for piece in reversed(self._pieces) if piece), b"\n")
        return not last.endswith((b"\n", b"\r"))

    def end(self) -> Seen:
        """Everything known now. May be called before the body has ended, and again."""
        line, error = self._last_line, self._error
        if not self._over and self._hints:
            rest = self._rest()
            found = self._verdict(rest, self._hinted)
            if found is not None:
                return Seen(_USAGES[self._marker](self, rest), True, found or None)
        return Seen(_USAGES[self._marker](self, line), self._over, error)

    # --- lines ---------------------------------------------------------------------------------------------------

    def _look(self, chunk: bytes, data: bytes) -> bool:
        """A hint was seen in this chunk, or before in the same line: judge the lines that end in this chunk."""
        self._edge = b"" if data.endswith(b"\n") else data[-_EDGE_BYTES:]
        if b"\n" not in chunk and b"\r" not in chunk:
            self._hinted = self._hints_in(data, self._hinted)
            return False
        kept = b"".join(self._pieces)
        start = max(kept.rfind(b"\n", 0, len(kept) - len(chunk)), kept.rfind(b"\r", 0, len(kept) - len(chunk))) + 1
        end = max(kept.rfind(b"\n"), kept.rfind(b"\r")) + 1
        before = self._hinted
        for line in kept[start:end].splitlines():
            error = self._verdict(line, before)
            before = _NO_HINTS
            if error is not None:
                self._error = error or None
                self._last_line = line[-TAIL_BYTES:]
                self._over = True
                self._hints = self._hinted = _NO_HINTS
                return True
        self._hinted = self._hints_in(kept[end:], _NO_HINTS)
        return False

    def _hints_in(self, text: bytes, before: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return tuple(hint for hint in self._hints if hint in before or hint in text)

    def _verdict(self, line: bytes, before: tuple[bytes, ...]) -> str | None:
        """None: the stream goes on after this line. Otherwise it is over: "" well, else with the error given.

        `before`: hints seen in a part of the line that is gone.
        """
        if len(line) <= TAIL_BYTES:
            for hint in self._hints:
                if hint in line:
                    return _VERDICTS[self._marker](line)
            return None
        # Too long to be kept whole: only ends of answers that repeat what was said before get so long.
        hints = self._hints_in(line, before)
        return "" if _OVERLONG[self._marker](line[-TAIL_BYTES:], hints) else None

    def _rest(self) -> bytes:
        """The line that has not ended; no more than its last 64 KiB and a byte."""
        kept = b"".join(self._pieces)
        return kept[max(kept.rfind(b"\n"), kept.rfind(b"\r")) + 1 :][-TAIL_BYTES - 1 :]

    # --- what is kept --------------------------------------------------------------------------------------------

    def _compact(self) -> None:
        kept = b"".join(self._pieces)
        if len(kept) > TAIL_BYTES + 1:
            if not self._cut:
                self._head = kept[:HEAD_BYTES]
                self._cut = True
            # One byte more than is used: it tells a line of exactly 64 KiB from a longer one.
            kept = kept[-TAIL_BYTES - 1 :]
        self._pieces = [kept]
        self._append = self._pieces.append
        self._room = _COMPACT_BYTES - len(kept)

    def head(self) -> bytes:
        """The first 4 KiB."""
        return self._head if self._cut else b"".join(self._pieces)[:HEAD_BYTES]

    def tail(self) -> tuple[bytes, bool]:
        """The last 64 KiB, and whether they are all there was."""
        kept = b"".join(self._pieces)
        return kept[-TAIL_BYTES:], not self._cut and len(kept) <= TAIL_BYTES


# --- end markers ---------------------------------------------------------------------------------------------------

_NO_HINTS: tuple[bytes, ...] = ()
_ERROR = b'"error"'

#: Marker -> byte strings of which each deciding line has at least one, and few others have any.
_HINTS: dict[Marker | None, tuple[bytes, ...]] = {
    None: _NO_HINTS,
    "ndjson_done": (b"true", b'"done_reason"', _ERROR),
    "ndjson_status": (b'"success"', _ERROR),
    "sse_done": (b"[DONE]", _ERROR),
    "sse_message_stop": (b"message_stop", _ERROR),
    "sse_response_completed": (b"response.completed", b"response.incomplete", b"response.failed", _ERROR),
}
_EDGE_BYTES = max(len(hint) for hints in _HINTS.values() for hint in hints) - 1
_RESPONSE_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})


def _ndjson_done(line: bytes) -> str | None:
    said = report.read(line)
    if said is None:
        return None
    # Some backends end with a reason alone (faults: terminal `done_reason` without `done`).
    return "" if said.done or (said.done is None and said.done_reason) else report.error_text(said)


def _ndjson_status(line: bytes) -> str | None:
    said = report.read(line)
    if said is None:
        return None
    return "" if said.status == "success" else report.error_text(said)


def _sse_done(line: bytes) -> str | None:
    data = report.data(line)
    if data == b"[DONE]":
        return ""
    return _data_error(report.read(data))


def _sse_message_stop(line: bytes) -> str | None:
    said = report.read(report.data(line))
    return "" if said is not None and said.type == "message_stop" else _data_error(said)


def _sse_response(line: bytes) -> str | None:
    said = report.read(report.data(line))
    if said is not None and said.type in _RESPONSE_ENDS:
        return report.error_text(report.inner(said)) or ""
    return _data_error(said)


def _data_error(said: Report | None) -> str | None:
    return report.error_text(said) if said is not None else None


_VERDICTS: dict[Marker | None, Callable[[bytes], str | None]] = {
    "ndjson_done": _ndjson_done,
    "ndjson_status": _ndjson_status,
    "sse_done": _sse_done,
    "sse_message_stop": _sse_message_stop,
    "sse_response_completed": _sse_response,
}


def _never(end: bytes, hints: tuple[bytes, ...]) -> bool:
    return False


#: Marker -> whether a line of more than 64 KiB, of which this is the end, ends the stream.
_OVERLONG: dict[Marker | None, Callable[[bytes, tuple[bytes, ...]], bool]] = {
    # Ollama's last line repeats the context, after `done` and before the counts that only the last line has.
    "ndjson_done": lambda end, hints: bool(hints) and hints != (_ERROR,) and b'"total_duration"' in end[-1024:],
    "ndjson_status": _never,
    "sse_done": _never,
    "sse_message_stop": _never,
    # The last event repeats the whole answer.
    "sse_response_completed": lambda end, hints: bool(hints) and hints != (_ERROR,) and b'"usage"' in end,
}


# --- usage -----------------------------------------------------------------------------------------------------------


def _of_last_line(tap: Tap, line: bytes | None) -> Usage:
    if line is None:
        return NOTHING
    said = report.read(report.data(line) or line)
    return report.usage(said) if said is not None else report.last_usage(line)


def _of_chunks(tap: Tap, line: bytes | None) -> Usage:
    """The last chunk that says something: usage, or llama.cpp's timings."""
    text, _ = tap.tail()
    return report.last_reported(text)


def _of_message(tap: Tap, line: bytes | None) -> Usage:
    """Anthropic: the prompt's tokens come with the first event, the answer's with the last but one."""
    text, _ = tap.tail()
    return report.over(report.last_reported(text), report.first_reported(tap.head()))


def _of_body(tap: Tap, line: bytes | None) -> Usage:
    text, whole = tap.tail()
    said = report.read(text) if whole else None
    if said is not None:
        return report.usage(said)
    return report.over(report.last_usage(text), report.last_usage(tap.head()))


def _none(tap: Tap, line: bytes | None) -> Usage:
    return NOTHING


_USAGES: dict[Marker | None, Callable[[Tap, bytes | None], Usage]] = {
    None: _of_body,
    "ndjson_done": _of_last_line,
    "ndjson_status": _none,
    "sse_done": _of_chunks,
    "sse_message_stop": _of_message,
    "sse_response_completed": _of_last_line,
}
