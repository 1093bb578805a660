"""Forms with files (multipart/form-data) as they go by: the few fields that routing needs, wherever they stand.

Bytes in, fields out; nothing is kept but those fields and the end of the last piece. The body itself goes on untouched,
so what is read here must be what any backend reads: what two parsers could read differently is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

MAX_BOUNDARY_BYTES = 200
MAX_PART_HEAD_BYTES = 16 * 1024
MAX_PARTS = 1000
MAX_VALUE_BYTES = 4 * 1024

_BOUNDARY_BYTES = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]*[0-9A-Za-z'()+_,./:=?-]\Z")
#: One parameter of a header: a name, and a token or a quoted text.
_PARAMETER = re.compile(
    rb"""\s*;\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))""", re.DOTALL
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
#: Encodings of a part that leave it as it is.
_PLAIN = frozenset({b"7bit", b"8bit", b"binary"})


class BadForm(ValueError):
    """The body is not a form, or not one that everybody would read the same way."""


class Field(NamedTuple):
    """A field's value, and where in the body it stands."""

    value: bytes
    start: int
    end: int


def boundary_of(content_type: bytes) -> bytes:
    """The boundary a Content-Type names. Raises BadForm when there is none that can be used."""
    kind, parameters = _parameters(content_type)
    boundary = parameters.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise BadForm("the Content-Type is not multipart/form-data with a boundary")
    if len(boundary) > MAX_BOUNDARY_BYTES or not _BOUNDARY_BYTES.match(boundary):
        raise BadForm("the boundary is too long, or has characters that may not be in one")
    return boundary


class FormReader:
    """Reads one body, fed in pieces cut anywhere.

    `fields` holds the wanted fields met so far. The same field twice with different values raises BadForm: whoever
    decides by the first would be deceived by a backend that takes the last.
    """

    __slots__ = ("_at", "_delimiter", "_held", "_name", "_parts", "_start", "_state", "_wanted", "fields")

    def __init__(self, boundary: bytes, wanted: Collection[str]) -> None:
        self._delimiter = b"\n--" + boundary
        self._wanted = frozenset(wanted)
        #: Bytes not yet decided upon, and where in the body they begin. A line end before the first line is made up.
        self._held = b"\r\n"
        self._at = -2
        self._state = "preamble"
        self._parts = 0
        #: The wanted field whose value is passing; "" for any other part.
        self._name = ""
        #: Where its value began.
        self._start = 0
        self.fields: dict[str, Field] = {}

    @property
    def ended(self) -> bool:
        """The closing boundary has gone by."""
        return self._state == "epilogue"

    def feed(self, data: bytes) -> None:
        """The next bytes of the body. Raises BadForm; the reader is of no use after that."""
        if self._state == "epilogue":
            return
        self._held = held = self._held + data if self._held else data
        at = 0
        while self._state != "epilogue":
            step = self._head(held, at) if self._state == "head" else self._content(held, at)
            if step < 0:
                break
            at = step
        if self._state == "epilogue":
            self._held = b""
            return
        keep = self._keep_from(held, at)
        self._held = held[keep:]
        self._at += keep

    def finish(self) -> None:
        """The body has ended. Raises BadForm when the form has not."""
        if self._state != "epilogue":
            raise BadForm("the form ends before its closing boundary")

    # --- inside ------------------------------------------------------------------------------------------------------

    def _content(self, held: bytes, at: int) -> int:
        """Up to and over the next boundary line; -1 when more bytes are needed."""
        found = held.find(self._delimiter, at)
        if found < 0:
            return -1
        after = found + len(self._delimiter)
        if len(held) < after + 2:
            return -1
        if found == 0 or held[found - 1 : found] != b"\r":
            raise BadForm("a boundary stands after a bare line feed")
        if held.startswith(b"--", after):
            self._close(held, found - 1)
            self._state = "epilogue"
            return after + 2
        line = held.find(b"\n", after)
        if line < 0:
            if len(held) - after > MAX_PART_HEAD_BYTES:
                raise BadForm("a boundary line does not end")
            return -1
        if held[after : line + 1].strip(b" \t") != b"\r\n":
            raise BadForm("a boundary is followed by something else")
        self._close(held, found - 1)
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadForm(f"the form has more than {MAX_PARTS} parts")
        self._state = "head"
        return line + 1

    def _head(self, held: bytes, at: int) -> int:
        """Over a part's head; -1 when more bytes are needed."""
        end = at if held.startswith(b"\r\n", at) else held.find(b"\r\n\r\n", at)
        if end < 0 or (end == at and len(held) < at + 2):
            if len(held) - at > MAX_PART_HEAD_BYTES:
                raise BadForm("a part's head is too long")
            return -1
        head = held[at:end]
        if len(head) > MAX_PART_HEAD_BYTES:
            raise BadForm("a part's head is too long")
        self._name = _field_name(head, self._wanted)
        start = end + (2 if end == at else 4)
        self._start = self._at + start
        self._state = "content"
        # The line end before a boundary may be the one that ended the head.
        return start - 2

    def _close(self, held: bytes, end: int) -> None:
        """A part's content ends at `end` of what is held."""
        if self._state != "content" or not self._name:
            return
        begin = self._start - self._at
        field = Field(held[begin : max(begin, end)], self._start, self._at + max(begin, end))
        if len(field.value) > MAX_VALUE_BYTES:
            raise BadForm(f"the field {self._name!r} is too long")
        known = self.fields.get(self._name)
        if known is not None and known.value != field.value:
            raise BadForm(f"the field {self._name!r} is there twice")
        if known is None:
            self.fields[self._name] = field

    def _keep_from(self, held: bytes, at: int) -> int:
        """What need not be held any longer ends here."""
        if self._state == "head":
            return at
        if self._state == "content" and self._name:
            begin = self._start - self._at
            if len(held) - begin > MAX_VALUE_BYTES + len(self._delimiter) + 4:
                raise BadForm(f"the field {self._name!r} is too long")
            return min(at, begin - 2)
        # A boundary, and the byte before it, may have begun in the last bytes.
        found = held.find(self._delimiter, at)
        if found >= 0:
            return max(at, found - 1)
        return max(at, len(held) - len(self._delimiter))


def _field_name(head: bytes, wanted: frozenset[str]) -> str:
    """The name of a part by its head, when it is wanted; else "". Raises BadForm on what is no head."""
    fields: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        if not line:
            continue
        field, colon, value = line.partition(b":")
        if not colon or not field or field != field.strip() or b"\n" in line or b"\r" in line or b"\0" in line:
            raise BadForm("a part's head is malformed")
        if field.lower() in fields:
            raise BadForm("a part's head says something twice")
        fields[field.lower()] = value
    _, parameters = _parameters(fields.get(b"content-disposition", b""))
    raw = parameters.get(b"name", b"")
    if b"\\" in raw:
        raise BadForm("a part's name has a backslash")
    name = raw.decode("utf-8", "replace")
    if name not in wanted:
        return ""
    if fields.get(b"content-transfer-encoding", b"binary").strip().lower() not in _PLAIN:
        raise BadForm(f"the field {name!r} is encoded")
    return name


def _parameters(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """A header's first word and its parameters, both in lower case but for the values. Raises BadForm."""
    word, semicolon, rest = value.partition(b";")
    rest = semicolon + rest
    found: dict[bytes, bytes] = {}
    at = 0
    while rest[at:].strip(b" \t;"):
        match = _PARAMETER.match(rest, at)
        if match is None:
            raise BadForm("a header's parameters are malformed")
        name = match[1].lower()
        if name in found:
            raise BadForm("a header says a parameter twice")
        text = match[3] if match[2] is None else match[2]
        found[name] = _ESCAPED.sub(rb"\1", text) if name == b"boundary" else text
        at = match.end()
    return word.strip().lower(), found
