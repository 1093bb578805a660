"""A server of embeddings whose answers tell which input they belong to, and which fails on demand."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

Fate = bytes | Literal["reset", "close", "stall"]


class Asked:
    """One request it got."""

    def __init__(self, target: str, headers: dict[str, str], body: bytes) -> None:
        self.target = target
        self.headers = headers
        self.body = body
        #: The peer has left while it waited.
        self.abandoned = False

    @property
    def inputs(self) -> Any:
        return json.loads(self.body)["input"]


class Embedder:
    """`fate` decides each request: bytes to answer with, or how to fail; None is the answer it deserves."""

    def __init__(self, models: Sequence[str] = ("m",), kind: Literal["ollama", "openai"] = "ollama") -> None:
        self.models = list(models)
        self.kind = kind
        self.host = "127.0.0.1"
        self.port = 0
        self.requests: list[Asked] = []
        self.fate: Callable[[Asked], Fate | None] = lambda asked: None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(lines[0].split(" ")[1], headers, body)
        self.requests.append(asked)
        fate = self.fate(asked)
        if fate == "reset":
            return False
        if fate == "close":
            writer.close()
            return False
        if fate == "stall":
            await reader.read(1)
            asked.abandoned = True
            return False
        assert fate is None or isinstance(fate, bytes)
        writer.write(fate or whole(json.dumps(embedded(asked.target, json.loads(body))).encode()))
        await writer.drain()
        return True


def whole(body: bytes, status: int = 200, length: int | None = None) -> bytes:
    """A whole answer; another `length` than the body's is a lie."""
    size = len(body) if length is None else length
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, size, body)


def vector(text: Any) -> list[float]:
    """What every server makes of an input: its own bytes tell it apart."""
    data = json.dumps(text).encode()
    return [len(data) + 0.1, sum(data) / 7, 1e-7]


def embedded(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer to a whole request."""
    given = body["input"]
    inputs = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    tokens = sum(len(json.dumps(text)) for text in inputs)
    vectors: list[Any] = [vector(text) for text in inputs]
    if path == "/api/embed":
        return {"model": body["model"], "embeddings": vectors, "total_duration": 5, "prompt_eval_count": tokens}
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack("<3f", *one)).decode() for one in vectors]
    data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}
