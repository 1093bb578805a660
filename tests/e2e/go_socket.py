"""A WebSocket as nfrx's agents have it, written out by hand from RFC 6455: what is sent is what stands here.

The handshake is that of Go's `coder/websocket` (its spelling of header names, no subprotocol, no extension, no Origin);
messages are JSON as Go's encoder writes it (no spaces).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import socket
import struct
from typing import Any, Self

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def free_port() -> int:
    """A port of the loopback nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Refused(Exception):
    """The server did not upgrade: status and body."""


class Closed(Exception):
    """The server has closed: (code, reason); (0, "") when it just hung up."""


class GoSocket:
    """One connection. `heard` holds what the server has sent, frame by frame, as (opcode, final, payload)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.heard: list[tuple[int, bool, bytes]] = []
        self.head = ""

    @classmethod
    async def dial(cls, host: str, port: int, path: str, *, key: str = "", ssl: Any = None) -> Self:
        reader, writer = await asyncio.open_connection(host, port, ssl=ssl)
        made = cls(reader, writer)
        nonce = base64.b64encode(os.urandom(16)).decode()
        bearer = f"Authorization: Bearer {key}\r\n" if key else ""
        writer.write(
            (
                f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: Go-http-client/1.1\r\n{bearer}"
                f"Connection: Upgrade\r\nSec-Websocket-Key: {nonce}\r\nSec-Websocket-Version: 13\r\n"
                "Upgrade: websocket\r\n\r\n"
            ).encode()
        )
        async with asyncio.timeout(15):
            made.head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(made.head.split(" ", 2)[1])
        fields = {name.lower(): value.strip() for name, _, value in map(_split, made.head.split("\r\n")[1:])}
        if status != 101:
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            writer.transport.abort()
            raise Refused(status, body.decode())
        expected = base64.b64encode(hashlib.sha1(nonce.encode() + _GUID).digest()).decode()
        assert fields["sec-websocket-accept"] == expected
        assert fields["upgrade"].lower() == "websocket"
        assert fields["connection"].lower() == "upgrade"
        assert "sec-websocket-extensions" not in fields
        assert "sec-websocket-protocol" not in fields
        return made

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()

    # --- sending -----------------------------------------------------------------------------------------------------

    async def frame(self, opcode: int, payload: bytes, *, final: bool = True, times: int = 1) -> None:
        size, first = len(payload), opcode | (0x80 if final else 0)
        if size < 126:
            head = struct.pack(">BB", first, 0x80 | size)
        elif size < 65536:
            head = struct.pack(">BBH", first, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", first, 0x80 | 127, size)
        mask = os.urandom(4)
        pad = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(size) if size else b""
        self._writer.write((head + mask + masked) * times)
        await self._writer.drain()

    async def say(self, **message: Any) -> None:
        """One JSON object as one text message, as Go writes it."""
        await self.frame(TEXT, json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode())

    async def raw(self, text: str) -> None:
        await self.frame(TEXT, text.encode())

    async def close(self, code: int, reason: str) -> None:
        await self.frame(CLOSE, struct.pack(">H", code) + reason.encode())

    def hang_up(self) -> None:
        """Gone without a word, as a process that is killed."""
        self._writer.transport.abort()

    # --- hearing -----------------------------------------------------------------------------------------------------

    async def listen(self, within_s: float = 10.0) -> Any:
        """The next message, decoded. Pings are answered. Raises Closed; TimeoutError when nothing comes."""
        async with asyncio.timeout(within_s):
            return await self._message()

    async def silent(self, for_s: float = 0.2) -> bool:
        """Whether the server says nothing for so long."""
        try:
            await self.listen(for_s)
        except TimeoutError:
            return True
        return False

    async def closed(self, within_s: float = 10.0) -> tuple[int, str]:
        """Code and reason of the server's closing, whatever comes before it."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    await self._message()
        except Closed as closed:
            code, reason = closed.args
            return code, reason

    async def _message(self) -> Any:
        while True:
            opcode, payload = await self._frame()
            if opcode == CLOSE:
                raise Closed(struct.unpack(">H", payload[:2])[0], payload[2:].decode())
            if opcode == PING:
                await self.frame(PONG, payload)
            elif opcode != PONG:
                assert opcode == TEXT, "all application frames are text"
                return json.loads(payload)

    async def _frame(self) -> tuple[int, bytes]:
        """One frame; continuation is put together."""
        whole, kind = b"", 0
        while True:
            try:
                first, second = await self._reader.readexactly(2)
                assert not first & 0x70, "no reserved bit: no extension was agreed on"
                assert not second & 0x80, "a server does not mask"
                size = second
                if size == 126:
                    (size,) = struct.unpack(">H", await self._reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack(">Q", await self._reader.readexactly(8))
                payload = await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                raise Closed(0, "") from None
            opcode, final = first & 0x0F, bool(first & 0x80)
            self.heard.append((opcode, final, payload))
            if opcode >= CLOSE:
                return opcode, payload
            kind, whole = kind or opcode, whole + payload
            if final:
                return kind, whole


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")
