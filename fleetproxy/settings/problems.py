"""A mistake in the configuration, its place, and the error that carries all of them."""

from __future__ import annotations

import msgspec


class Origin(msgspec.Struct, frozen=True):
    """Where a value was written: a file with line and column (from 1; 0 unknown), a variable, a flag."""

    text: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.text
        return f"{self.text}:{self.line}" + (f":{self.column}" if self.column else "")


Origins = dict[tuple[str | int, ...], Origin]


class Problem(msgspec.Struct, frozen=True):
    """One mistake. `key` is dotted, "servers[1].url"; empty when the file as a whole is meant."""

    key: str
    origin: Origin
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.key}: {self.text}" if self.key else f"{self.origin}: {self.text}"


class ConfigError(Exception):
    """The configuration cannot be used; `str` is one line per mistake."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))
