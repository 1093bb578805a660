"""What control asks of a server: load a model, let it go, pull it, delete it, say a prompt.

Only Ollama servers can load, pull and delete; an OpenAI-compatible one holds what it was started with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from fleetproxy.control.ports import Caller
from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError, BackendTimeout, BadRequest, BadResponse
from fleetproxy.transport.base import Call, Transport

LOAD_S = 600.0
DELETE_S = 30.0
#: A pull may take hours, but not stand still this long.
PULL_IDLE_S = 600.0
#: Longest line of progress; Ollama's have a few hundred bytes.
MAX_LINE_BYTES = 64 * 1024
MAX_LINES_WAITING = 10_000


class Progress(msgspec.Struct, frozen=True, rename="camel"):
    """How far a pull is. Bytes are those of the layer that is being fetched."""

    status: str = "waiting"
    completed_bytes: int = 0
    total_bytes: int = 0


class _Said(msgspec.Struct):
    """One line, or the whole, of an Ollama answer."""

    error: str | None = None
    status: str | None = None
    completed: int | None = None
    total: int | None = None


class Refused(Exception):
    """The server answered that it did not; the text is its own."""


async def load(caller: Caller, backend: Backend, model: str, keep_alive: str | None = None) -> None:
    """Bring a model into memory."""
    body: dict[str, Any] = {"model": model, "prompt": "", "stream": False}
    if keep_alive is not None:
        # Ollama takes seconds as a number; as text they would need their unit.
        body["keep_alive"] = int(keep_alive) if keep_alive.removeprefix("-").isdecimal() else keep_alive
    await _ask(caller, _ollama(backend), "/api/generate", body, LOAD_S)


async def unload(caller: Caller, backend: Backend, model: str) -> None:
    """Let a model go from memory."""
    body = {"model": model, "prompt": "", "keep_alive": 0, "stream": False}
    await _ask(caller, _ollama(backend), "/api/generate", body, DELETE_S)


async def delete(caller: Caller, backend: Backend, model: str) -> None:
    """Delete a model from the server's disk."""
    await _ask(caller, _ollama(backend), "/api/delete", {"model": model}, DELETE_S, method="DELETE")


async def prompt(caller: Caller, backend: Backend, model: str, text: str, timeout_s: float) -> str:
    """Ask a model and wait for the whole answer; at most its first 2000 characters are given back."""
    if backend.kind == "ollama":
        body: dict[str, Any] = {"model": model, "prompt": text, "stream": False}
        said = (await _ask(caller, backend, "/api/generate", body, timeout_s)).get("response")
    else:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": False}
        choices = (await _ask(caller, backend, "/v1/chat/completions", body, timeout_s)).get("choices")
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = first.get("message")
        said = message.get("content") if isinstance(message, dict) else None
    return said[:2000] if isinstance(said, str) else ""


async def pull(transport: Transport, backend: Backend, model: str, tell: Callable[[Progress], None]) -> None:
    """Pull a model; `tell` hears how far it is. Raises Refused or BackendError."""
    _ollama(backend)
    lines = b"content-type: application/json\r\naccept: application/x-ndjson\r\n"
    if backend.api_key:
        lines += b"authorization: Bearer %b\r\n" % backend.api_key.encode()
    call = Call(
        method=b"POST",
        target=backend.path_prefix.encode() + b"/api/pull",
        header_lines=lines,
        body=msgspec.json.encode({"model": model, "stream": True}),
        fresh=True,
    )
    upstream = await transport.open(backend, call, 5.0)
    try:
        async with asyncio.timeout(PULL_IDLE_S):
            answer = await upstream.answer()
        reader = _Lines()
        upstream.pipe(reader)
        done = False
        while (line := await reader.next()) is not None:
            said = _said(line)
            if said.error is not None:
                raise Refused(said.error)
            done = said.status == "success"
            tell(Progress((said.status or "")[:128], said.completed or 0, said.total or 0))
        if answer.status >= 300:
            raise Refused(f"the server answered {answer.status}")
        if not done:
            raise BadResponse("the server stopped telling how far it is before it was done")
    except TimeoutError:
        raise BackendTimeout(f"nothing came from the server for {PULL_IDLE_S:.0f} s") from None
    finally:
        upstream.close()


class _Lines:
    """A sink that gives the body line by line."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def piece(self, data: bytes, last: bool) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._lines.put_nowait(line)
        if len(self._rest) > MAX_LINE_BYTES or self._lines.qsize() > MAX_LINES_WAITING:
            self._lines.put_nowait(BadResponse("the server's progress cannot be read"))
        elif last:
            if self._rest.strip():
                self._lines.put_nowait(self._rest)
            self._lines.put_nowait(None)

    def broken(self, error: Exception) -> None:
        self._lines.put_nowait(error)

    async def next(self) -> bytes | None:
        async with asyncio.timeout(PULL_IDLE_S):
            line = await self._lines.get()
        if isinstance(line, Exception):
            raise line
        return line


async def _ask(
    caller: Caller, backend: Backend, path: str, body: dict[str, Any], timeout_s: float, *, method: str = "POST"
) -> dict[str, Any]:
    reply = await caller.send(backend, method, path, timeout_s, json=msgspec.json.encode(body))
    if not 200 <= reply.status < 300:
        raise Refused(_said(reply.body).error or f"the server answered {reply.status}")
    try:
        answer = msgspec.json.decode(reply.body or b"{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _said(raw: bytes) -> _Said:
    try:
        return msgspec.json.decode(raw, type=_Said)
    except (msgspec.DecodeError, RecursionError):
        return _Said()


def _ollama(backend: Backend) -> Backend:
    if backend.kind != "ollama":
        raise BadRequest(f"Server '{backend.name}' is no Ollama server: its models are chosen where it is started")
    return backend


def reason_of(error: BaseException) -> str:
    """Why a call failed, for the record."""
    if isinstance(error, (Refused, BackendError, BadRequest)):
        return str(error)
    return f"unexpected {type(error).__name__}"
