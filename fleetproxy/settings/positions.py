"""Where each key of a TOML text stands. The text is known to be valid: this looks for places only, and never fails."""

from __future__ import annotations

import re
import tomllib
from typing import NamedTuple

Path = tuple[str | int, ...]


class Position(NamedTuple):
    """Both count from 1."""

    line: int
    column: int


_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*(\.?)""")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE = re.compile(r"[^,\]}#\n]*")


def positions(text: str) -> dict[Path, Position]:
    """Path of each key and table -> where it is written first. Array items are counted from 0."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found: dict[Path, Position] = {}
        #: Arrays of tables -> how many tables they have so far.
        self._tables: dict[Path, int] = {}

    def scan(self) -> dict[Path, Position]:
        prefix: Path = ()
        while True:
            self._skip_blank()
            if self._at >= len(self._text):
                return self._found
            before = self._at
            if self._text[self._at] == "[":
                prefix = self._header()
            else:
                self._pair(prefix)
            if self._at == before:  # not TOML after all
                return self._found

    def _header(self) -> Path:
        start = self._at
        many = self._text.startswith("[[", self._at)
        self._at += 2 if many else 1
        path: Path = ()
        parts = self._key()
        for place, part in enumerate(parts):
            path = (*path, part)
            self._note(path, start)
            if place == len(parts) - 1:
                break
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
        if many:
            self._tables[path] = self._tables.get(path, 0) + 1
            path = (*path, self._tables[path] - 1)
        elif path in self._tables:
            path = (*path, self._tables[path] - 1)
        self._note(path, start)
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end
        return path

    def _pair(self, prefix: Path) -> None:
        start = self._at
        path = (*prefix, *self._key())
        for length in range(len(prefix) + 1, len(path) + 1):
            self._note(path[:length], start)
        if self._text[self._at : self._at + 1] == "=":
            self._at += 1
        while self._text[self._at : self._at + 1] in {" ", "\t"}:
            self._at += 1
        self._value(path)

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while found := _KEY.match(self._text, self._at):
            self._at = found.end()
            word = found[1]
            parts.append(_plain(word) if word[0] in "\"'" else word)
            if not found[2]:
                break
        return tuple(parts)

    def _value(self, path: Path) -> None:
        match self._text[self._at : self._at + 1]:
            case "[":
                self._array(path)
            case "{":
                self._inline(path)
            case '"' | "'":
                found = _STRING.match(self._text, self._at)
                self._at = found.end() if found else len(self._text)
            case _:
                found = _BARE.match(self._text, self._at)
                self._at = found.end() if found else len(self._text)

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while self._more("]"):
            before = self._at
            self._note((*path, index), before)
            self._value((*path, index))
            self._must_have_moved(before)
            index += 1

    def _inline(self, path: Path) -> None:
        self._at += 1
        while self._more("}"):
            before = self._at
            self._pair(path)
            self._must_have_moved(before)

    def _more(self, end: str) -> bool:
        """Go to the next item of an array or inline table; False behind its end."""
        self._skip_blank()
        while self._text[self._at : self._at + 1] == ",":
            self._at += 1
            self._skip_blank()
        if self._at >= len(self._text):
            return False
        if self._text[self._at] == end:
            self._at += 1
            return False
        return True

    def _must_have_moved(self, before: int) -> None:
        if self._at == before:  # not TOML after all: go to the end
            self._at = len(self._text)

    def _skip_blank(self) -> None:
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _note(self, path: Path, at: int) -> None:
        if path not in self._found:
            line_start = self._text.rfind("\n", 0, at) + 1
            self._found[path] = Position(self._text.count("\n", 0, at) + 1, at - line_start + 1)


def _plain(word: str) -> str:
    """A quoted key without its quotes and escapes."""
    return str(next(iter(tomllib.loads(f"{word} = 0"))))
