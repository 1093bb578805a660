"""Servers that answer in memory, in place of the HTTP client: each path has an answer, an error, or hangs."""

from __future__ import annotations

import asyncio

import msgspec

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes = b"{}"


Said = Answer | BackendError | asyncio.Event

OLLAMA: dict[str, Said] = {
    "/api/version": Answer(200, b'{"version":"0.14.1"}'),
    "/api/tags": Answer(200, b'{"models":[{"name":"phi:latest","size":7},{"name":"qwen:0.5b"}]}'),
    "/api/ps": Answer(200, b'{"models":[{"name":"phi:latest","size":7,"size_vram":5}]}'),
    "/v1/models": Answer(200, b'{"object":"list","data":[{"id":"phi:latest"},{"id":"qwen:0.5b"}]}'),
}
OPENAI: dict[str, Said] = {
    "/health": Answer(200, b""),
    "/v1/models": Answer(200, b'{"object":"list","data":[{"id":"mistral"}]}'),
    "/version": Answer(200, b'{"version":"0.9"}'),
}


def backend(name: str = "gpu", **fields: object) -> Backend:
    return Backend(**{"name": name, "id": 1, "column": 0, **fields})  # type: ignore[arg-type]


class Servers:
    """The servers by name, and what they were asked. A path that is not there answers 404."""

    def __init__(self, **servers: dict[str, Said]) -> None:
        self.servers = {name: dict(paths) for name, paths in servers.items()}
        self.asked: list[tuple[str, str]] = []
        self.forgotten: list[str] = []
        #: Calls of one server running now and at most.
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}

    async def get(self, backend: Backend, path: str, timeout_s: float) -> Answer:
        name = backend.name
        self.asked.append((name, path))
        self.running[name] = self.running.get(name, 0) + 1
        self.most[name] = max(self.most.get(name, 0), self.running[name])
        try:
            said = self.servers[name].get(path, Answer(404, b"404 page not found"))
            if isinstance(said, asyncio.Event):
                await said.wait()
                said = Answer(200)
            if isinstance(said, BackendError):
                raise said
            return said
        finally:
            self.running[name] -= 1

    async def forget(self, name: str) -> None:
        self.forgotten.append(name)

    def paths(self, name: str = "gpu") -> list[str]:
        return [path for server, path in self.asked if server == name]
