"""A raw HTTP/1.1 client for tests: byte-exact requests, and an answer that says how it ended.

    async with await connect("127.0.0.1", port) as client:
        await client.send(request("POST", "/api/chat", body))
        answer = await client.answer()
        assert answer.status == 200 and answer.clean

Nothing is normalised, decoded or retried. `Answer.clean` is True only when HTTP's own framing says that the answer is
whole; everything a client library would guess is left to the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Literal, Self

import msgspec

#: How an answer ended: by its framing, by FIN or RST before it was whole, or not within the time given.
End = Literal["framed", "fin", "reset", "silent"]


class Answer(msgspec.Struct, kw_only=True):
    """One response as it came."""

    status: int | None = None
    reason: str = ""
    #: Names as sent, in order.
    headers: list[tuple[str, str]] = []
    body: bytes = b""
    #: Body pieces as separate chunks (chunked) or reads, each with `time.monotonic()`.
    pieces: list[tuple[float, bytes]] = []
    #: Everything received for this answer, framing included.
    raw: bytes = b""
    end: End = "silent"
    #: Length not given by framing: closed by FIN is the only end it can have.
    until_close: bool = False
    ended_s: float = 0.0
    #: Interim (1xx) statuses that came before.
    interim: list[int] = []
    trailers: list[tuple[str, str]] = []

    @property
    def clean(self) -> bool:
        return self.end == "framed" or (self.until_close and self.end == "fin")

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


def request(
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Iterable[tuple[str, str]] = (),
    *,
    host: str | None = "localhost",
) -> bytes:
    """A plain request. A body gets a Content-Length and, unless given, `application/json`."""
    fields = [("Host", host)] if host is not None else []
    fields += headers
    names = {name.lower() for name, _ in fields}
    if body is not None:
        if "content-type" not in names:
            fields.append(("Content-Type", "application/json"))
        if not {"content-length", "transfer-encoding"} & names:
            fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1") + (body or b"")


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A body in chunked framing, each piece a chunk."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


async def connect(host: str, port: int, *, receive_buffer_bytes: int | None = None) -> RawClient:
    """A connected client; a small receive buffer makes a slow reader felt at the other end."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return RawClient(sock)


async def exchange(host: str, port: int, data: bytes, *, method: str = "GET", within_s: float = 10.0) -> Answer:
    """Connect, send these bytes, read one answer, close."""
    async with await connect(host, port) as client:
        await client.send(data)
        return await client.answer(method=method, within_s=within_s)


class RawClient:
    """A connected socket. Leave it by `close` (FIN), `reset` (RST) or the end of its `async with`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._taken = bytearray()
        self._over: End | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # --- sending ------------------------------------------------------------------------------------------------

    async def send(self, data: bytes, *, splits: Sequence[int] = (), gap_s: float = 0.0) -> None:
        """Send bytes, as one write or cut at the given offsets with a pause between the parts."""
        edges = [0, *sorted(set(splits)), len(data)]
        for start, end in itertools.pairwise(edges):
            await self._loop.sock_sendall(self.sock, data[start:end])
            if end != len(data):
                await asyncio.sleep(gap_s)

    async def drip(self, data: bytes, bytes_per_s: float) -> None:
        """Send one byte at a time."""
        for index in range(len(data)):
            await self._loop.sock_sendall(self.sock, data[index : index + 1])
            await asyncio.sleep(1.0 / bytes_per_s)

    def half_close(self) -> None:
        """Say that no more will be sent, and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close with FIN (with RST if bytes lie unread: that is the kernel's rule)."""
        self.sock.close()

    # --- receiving ----------------------------------------------------------------------------------------------

    async def answer(self, *, method: str = "GET", within_s: float = 10.0) -> Answer:
        """The next answer on this connection, whole or as far as it came within the time."""
        found = Answer()
        self._taken = bytearray()
        try:
            async with asyncio.timeout(within_s):
                await self._read(found, method)
            found.end = "framed"
        except TimeoutError:
            found.end = "silent"
        except _Over:
            found.end = self._over or "fin"
        found.raw = bytes(self._taken)
        found.ended_s = time.monotonic()
        found.body = b"".join(piece for _, piece in found.pieces)
        return found

    async def head(self, *, within_s: float = 10.0) -> Answer:
        """Status and headers only; read the rest with `receive`."""
        found = Answer()
        self._taken = bytearray()
        try:
            async with asyncio.timeout(within_s):
                await self._head(found)
        except TimeoutError:
            found.end = "silent"
        except _Over:
            found.end = self._over or "fin"
        return found

    async def receive(self, *, within_s: float = 10.0) -> bytes:
        """Some bytes as they come; b"" when the other side has ended (see `over`) or stayed silent."""
        try:
            async with asyncio.timeout(within_s):
                if not self._buffer:
                    await self._fill()
        except (TimeoutError, _Over):
            return b""
        return self._take(len(self._buffer))

    async def until(self, mark: bytes, *, within_s: float = 10.0) -> bytes:
        """Bytes up to and with a mark; AssertionError when it does not come."""
        async with asyncio.timeout(within_s):
            while mark not in self._buffer:
                try:
                    await self._fill()
                except _Over:
                    raise AssertionError(f"ended by {self._over} before {mark!r}: {bytes(self._buffer)!r}") from None
        return self._take(self._buffer.index(mark) + len(mark))

    async def closed(self, *, within_s: float = 10.0) -> End:
        """Wait for the other side to end the connection, dropping what it still sends."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    self._buffer.clear()
                    await self._fill()
        except TimeoutError:
            return "silent"
        except _Over:
            return self._over or "fin"

    async def _fill(self) -> None:
        if self._over is not None:
            raise _Over
        try:
            data = await self._loop.sock_recv(self.sock, 65536)
        except (ConnectionResetError, BrokenPipeError):
            self._over = "reset"
            raise _Over from None
        if not data:
            self._over = "fin"
            raise _Over
        self._buffer += data

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._taken += data
        return data

    async def _line(self) -> str:
        while b"\n" not in self._buffer:
            await self._fill()
        return self._take(self._buffer.index(b"\n") + 1).decode("latin-1").rstrip("\r\n")

    async def _fields(self) -> list[tuple[str, str]]:
        fields = []
        while line := await self._line():
            name, _, value = line.partition(":")
            fields.append((name, value.strip(" \t")))
        return fields

    async def _head(self, found: Answer) -> None:
        while True:
            words = (await self._line()).split(" ", 2)
            if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
                raise AssertionError(f"not a status line: {words!r}")
            found.status = int(words[1])
            found.reason = words[2] if len(words) > 2 else ""
            found.headers = await self._fields()
            if found.status >= 200 or found.status == 101:
                return
            found.interim.append(found.status)

    async def _read(self, found: Answer, method: str) -> None:
        await self._head(found)
        if method == "HEAD" or found.status in {101, 204, 304}:
            return
        if [value.lower() for value in found.all("transfer-encoding")] == ["chunked"]:
            await self._chunks(found)
            return
        lengths = found.all("content-length")
        if len(lengths) > 1:
            raise AssertionError(f"more than one content-length: {lengths}")
        if lengths:
            await self._counted(found, int(lengths[0]))
            return
        found.until_close = True
        while True:
            if not self._buffer:
                await self._fill()
            found.pieces.append((time.monotonic(), self._take(len(self._buffer))))

    async def _chunks(self, found: Answer) -> None:
        while True:
            size = int((await self._line()).partition(";")[0], 16)
            if size == 0:
                found.trailers = await self._fields()
                return
            await self._counted(found, size, joined=True)
            if await self._line():
                raise AssertionError("chunk without its line end")

    async def _counted(self, found: Answer, count: int, *, joined: bool = False) -> None:
        """Body bytes; a chunk cut off by the end of the connection still counts as far as it came."""
        parts: list[bytes] = []
        try:
            while count:
                if not self._buffer:
                    await self._fill()
                part = self._take(min(count, len(self._buffer)))
                count -= len(part)
                if joined:
                    parts.append(part)
                else:
                    found.pieces.append((time.monotonic(), part))
        finally:
            if parts:
                found.pieces.append((time.monotonic(), b"".join(parts)))


class _Over(Exception):
    """The other side has ended the connection."""
