"""One line of the doctor's report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]
_ORDER: tuple[Level, ...] = ("ok", "warn", "fail")


class Finding(msgspec.Struct, frozen=True):
    level: Level
    #: What was looked at, in a word or two: "python", "server gpu1".
    area: str
    text: str
    #: What to do about it; "" for `ok`.
    fix: str = ""


def ok(area: str, text: str) -> Finding:
    return Finding("ok", area, text)


def warn(area: str, text: str, fix: str) -> Finding:
    return Finding("warn", area, text, fix)


def fail(area: str, text: str, fix: str) -> Finding:
    return Finding("fail", area, text, fix)


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level there is; `ok` of nothing."""
    return max((finding.level for finding in findings), key=_ORDER.index, default="ok")
