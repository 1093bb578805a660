"""HTTP/1.1 messages for the test servers: one strict request, one encoded head. No sockets here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Iterable
from http import HTTPStatus
from typing import Protocol

Headers = Iterable[tuple[str, str]]
#: Characters of methods and header names.
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Source(Protocol):
    """Where a request's body comes from."""

    def write(self, data: bytes) -> None: ...
    async def line(self) -> bytes: ...
    def counted(self, count: int) -> AsyncIterator[bytes]: ...


class BadMessage(Exception):
    """The peer sent something that is not one clear HTTP/1.1 message; `status` is the answer it gets."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Request:
    """One request as it came: target and header lines are not normalised."""

    def __init__(self, source: Source, method: str, target: str, version: str, headers: list[tuple[str, str]]) -> None:
        self._source = source
        self.method = method
        #: The request target, byte for byte (latin-1).
        self.target = target
        self.path, _, self.query = target.partition("?")
        self.version = version
        self.headers = headers
        #: `time.monotonic()` when the head was complete.
        self.arrived_s = time.monotonic()
        self.received_bytes = 0
        self.sha256 = hashlib.sha256()
        self.length, self.chunked = _framing(self)
        self.complete = self.length == 0 and not self.chunked
        self._body: bytes | None = None

    def header(self, name: str, default: str = "") -> str:
        """The first value of a header, any case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), default)

    @property
    def keep_alive(self) -> bool:
        words = {word.strip().lower() for word in self.header("connection").split(",")}
        return "close" not in words if self.version == "1.1" else "keep-alive" in words

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Can be walked once."""
        if self.complete:
            return
        if self.header("expect").lower() == "100-continue":
            self._source.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        source = self._chunks() if self.chunked else self._source.counted(self.length)
        async for piece in source:
            self.received_bytes += len(piece)
            self.sha256.update(piece)
            yield piece
        self.complete = True

    async def body(self, limit_bytes: int = 1 << 30) -> bytes:
        """The whole body; BadMessage(413) past the limit."""
        if self._body is None:
            parts = []
            async for piece in self.pieces():
                if self.received_bytes > limit_bytes:
                    raise BadMessage("request body too large", 413)
                parts.append(piece)
            self._body = b"".join(parts)
        return self._body

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await self._source.line()
            digits = line.partition(b";")[0].strip(b" \t")
            if not digits or len(digits) > 16 or not all(c in b"0123456789abcdefABCDEF" for c in digits):
                raise BadMessage("malformed chunk size")
            size = int(digits, 16)
            if size == 0:
                while await self._source.line():
                    pass
                return
            async for piece in self._source.counted(size):
                yield piece
            if await self._source.line():
                raise BadMessage("chunk without its line end")


def _framing(request: Request) -> tuple[int, bool]:
    """(body length, chunked); strict, so that a proxy which copies framing headers is caught here."""
    codings = [value.strip().lower() for name, value in request.headers if name.lower() == "transfer-encoding"]
    lengths = [value.strip() for name, value in request.headers if name.lower() == "content-length"]
    if codings:
        if codings != ["chunked"]:
            raise BadMessage(f"transfer-encoding {codings} is not one plain chunked", 501)
        if lengths:
            raise BadMessage("both content-length and transfer-encoding")
        return 0, True
    if not lengths:
        return 0, False
    if len(lengths) > 1 or not lengths[0].isascii() or not lengths[0].isdigit():
        raise BadMessage("malformed content-length")
    return int(lengths[0]), False


def head(status: int, fields: Headers) -> bytes:
    """An encoded status line with its header fields and the empty line."""
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")
