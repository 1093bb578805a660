"""What is measured of one streamed answer, and what makes it a good one. Lines and times in, numbers out; no I/O.

TTFT     from sending the request to the first piece with text in it; empty first pieces do not count
E2E      from sending the request to the end of the answer
ITL      (E2E - TTFT) / (output tokens - 1)
TOKENS   output tokens, as the server reports them, else one for each piece with text in it
"""

from __future__ import annotations

import json
import random
from array import array
from typing import Any, NamedTuple


class Broken(Exception):
    """The answer is not whole, or is an error; the text says which."""


class Measured(NamedTuple):
    """One whole answer. Times in milliseconds."""

    ttft_ms: float
    e2e_ms: float
    tokens: int
    #: None with fewer than two tokens: there is nothing between them.
    itl_ms: float | None


class Answer:
    """One streamed answer, read line by line: newline-delimited JSON, or server-sent events with JSON in them."""

    def __init__(self, began_s: float) -> None:
        """`began_s`: when the request was sent, on the clock of all other times here."""
        self._began_s = began_s
        self._first_s: float | None = None
        self._pieces = 0
        self._reported: int | None = None
        self._terminal = False

    def see(self, line: bytes, now_s: float) -> None:
        """A line of the body, as it came. Raises Broken on an error event and on what is no line of such a stream."""
        text = bytes(line).strip()
        if not text or text.startswith((b":", b"event:", b"id:", b"retry:")):
            return
        text = text.removeprefix(b"data:").strip()
        if text == b"[DONE]":
            self._terminal = True
            return
        try:
            value = json.loads(text)
        except ValueError:
            raise Broken(f"not JSON: {text[:80]!r}") from None
        if not isinstance(value, dict):
            raise Broken(f"not an object: {text[:80]!r}")
        if value.get("error"):
            raise Broken(f"an error in the stream: {str(value['error'])[:200]}")
        if text_of(value):
            self._pieces += 1
            if self._first_s is None:
                self._first_s = now_s
        self._reported = tokens_of(value) or self._reported
        self._terminal = self._terminal or value.get("done") is True

    def end(self, now_s: float) -> Measured:
        """The body has ended. Raises Broken when the stream had not."""
        if not self._terminal:
            raise Broken("it ended without its end marker")
        if self._first_s is None:
            raise Broken("there was no text in it")
        ttft_s, e2e_s = self._first_s - self._began_s, now_s - self._began_s
        tokens = self._reported or self._pieces
        itl_ms = (e2e_s - ttft_s) * 1000 / (tokens - 1) if tokens > 1 else None
        return Measured(ttft_s * 1000, e2e_s * 1000, tokens, itl_ms)


def text_of(value: dict[str, Any]) -> str:
    """The text of one piece, thinking included: Ollama's chat and generate, OpenAI's chat and completions."""
    message = value.get("message")
    if isinstance(message, dict):
        return str(message.get("content") or message.get("thinking") or "")
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        delta = choices[0].get("delta")
        if isinstance(delta, dict):
            return str(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or "")
        return str(choices[0].get("text") or "")
    return str(value.get("response") or value.get("thinking") or "")


def tokens_of(value: dict[str, Any]) -> int | None:
    """The output tokens a piece reports, if it does."""
    usage = value.get("usage")
    found = usage.get("completion_tokens") if isinstance(usage, dict) else value.get("eval_count")
    return found if isinstance(found, int) else None


class Reservoir:
    """A fair sample of numbers without an end: all of them up to `most`, then each new one takes a random place."""

    def __init__(self, most: int, rng: random.Random) -> None:
        self.seen = 0
        self._most = most
        self._rng = rng
        self._values = array("d")

    def add(self, value: float) -> None:
        self.seen += 1
        if len(self._values) < self._most:
            self._values.append(value)
            return
        place = self._rng.randrange(self.seen)
        if place < self._most:
            self._values[place] = value

    def quantile(self, share: float) -> float | None:
        """The value below which this share (0..1) of them lies; None without any."""
        ordered = sorted(self._values)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None
