"""A backend small enough to be steered piece by piece: HTTP/1.1, one request per connection or many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any


class Asked:
    """One request, and the means to answer it piece by piece."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes, writer: Any) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self._writer: asyncio.StreamWriter = writer
        self.gone = asyncio.Event()

    def whole(self, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        self._writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (status, kind.encode(), len(body), body)
        )

    def begin(self, kind: str = "text/event-stream") -> None:
        self._writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind.encode())

    def piece(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def drain(self) -> None:
        await self._writer.drain()

    def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")

    def abort(self) -> None:
        self._writer.transport.abort()


Handler = Callable[[Asked], Awaitable[None]]


class SmallBackend:
    """Speaks as an Ollama server, or an OpenAI one, about `models`; POSTs go to `handler`."""

    def __init__(self, models: list[str], *, ollama: bool = True) -> None:
        self.models = models
        self.resident: list[str] = []
        self.ollama = ollama
        self.up = True
        self.asked: list[Asked] = []
        self.connections = 0
        self.handler: Handler = self._echo

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its address, for as long as it lives."""
        writers: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            self.connections += 1
            try:
                await self._serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writers.discard(writer)
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        try:
            yield f"http://{host}:{port}"
        finally:
            server.close()
            for writer in tuple(writers):
                writer.transport.abort()
            while writers:
                await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            body = b""
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            elif "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
            asked = Asked(method, target, headers, body, writer)
            if method == "GET":
                self._list(asked)
                continue
            self.asked.append(asked)
            watching = asyncio.ensure_future(self._watch(reader, asked))
            try:
                await self.handler(asked)
            finally:
                watching.cancel()
                await asyncio.wait({watching})

    @staticmethod
    async def _watch(reader: asyncio.StreamReader, asked: Asked) -> None:
        while not reader.at_eof():
            await asyncio.sleep(0.002)
        asked.gone.set()

    def _list(self, asked: Asked) -> None:
        answers: dict[str, Any] = {"/v1/models": {"object": "list", "data": [{"id": name} for name in self.models]}}
        if self.ollama:
            answers |= {
                "/api/version": {"version": "0.20.1"},
                "/api/tags": {"models": [{"name": name, "size": 7} for name in self.models]},
                "/api/ps": {"models": [{"name": name, "size_vram": 5} for name in self.resident]},
            }
        answer = answers.get(asked.target)
        if not self.up:
            asked.whole(b"{}", 503)
        elif answer is None:
            asked.whole(b"{}", 404)
        else:
            asked.whole(json.dumps(answer).encode())

    async def _echo(self, asked: Asked) -> None:
        told = {"target": asked.target, "method": asked.method, "bytes": len(asked.body)}
        asked.whole(json.dumps(told).encode())
