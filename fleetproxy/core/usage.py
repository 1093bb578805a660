"""Token usage as the backends report it: a monoid, so that slices of one request can be summed."""

from __future__ import annotations

from typing import TypeVar

import msgspec

_N = TypeVar("_N", int, float)


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Prompt and completion tokens, and Ollama's durations in milliseconds. None: not reported."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    load_ms: float | None = None
    prompt_eval_ms: float | None = None
    eval_ms: float | None = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            _sum(self.tokens_in, other.tokens_in),
            _sum(self.tokens_out, other.tokens_out),
            _sum(self.load_ms, other.load_ms),
            _sum(self.prompt_eval_ms, other.prompt_eval_ms),
            _sum(self.eval_ms, other.eval_ms),
        )


def _sum(a: _N | None, b: _N | None) -> _N | None:
    if a is None:
        return b
    return a if b is None else a + b


NOTHING = Usage()
