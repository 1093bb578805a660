"""Sockets for scripted upstreams: plain or TLS, closed exactly as a script says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator


class Stream(ABC):
    """A plain or encrypted socket."""

    sock: socket.socket

    @abstractmethod
    async def receive(self) -> bytes:
        """Some bytes; b"" at the end. OSError when the connection broke."""

    @abstractmethod
    async def send(self, data: bytes) -> None: ...

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, by_reset: bool = False) -> None:
        """Close with FIN, or with RST."""
        if by_reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Plain(Stream):
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self.sock, 65536)

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)


class Tls(Stream):
    """TLS by memory buffers over the raw socket, so that the end of the connection stays ours to choose."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    @classmethod
    async def accept(cls, sock: socket.socket, context: ssl.SSLContext) -> Tls:
        made = cls(sock, context)
        while True:
            try:
                made._tls.do_handshake()
            except ssl.SSLWantReadError:
                await made._flush()
                await made._fill()
            else:
                await made._flush()
                return made

    async def receive(self) -> bytes:
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def _fill(self) -> None:
        data = await self._loop.sock_recv(self.sock, 65536)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    async def _flush(self) -> None:
        while data := self._out.read():
            await self._loop.sock_sendall(self.sock, data)


@contextlib.contextmanager
def deaf(host: str, port: int) -> Iterator[None]:
    """A port whose connections never complete: its backlog is full, so the kernel drops every further SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield
