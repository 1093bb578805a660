"""HTTP/2 to backends marked `http2 = true`, by httpx. Not the hot path: chosen for its h2, not for its cost.

Implements `transport.base`: connecting happens inside `answer()`, so connect failures come from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendLost, BadResponse
from fleetproxy.transport.base import Answer, Call, Gathered, Sink
from fleetproxy.transport.httpx_client import error_of, new_client

#: Connections to one server; each carries many streams.
MAX_CONNECTIONS = 64
#: Pieces of a streamed upload held while the server does not read.
MAX_QUEUED_PIECES = 8
_PEER = ("scheme", "host", "port", "host_header", "tls_ca_file", "tls_verify", "tls_server_name")


class Http2Transport:
    """Clients by backend; one event loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._clients: dict[str, tuple[tuple[object, ...], httpx.AsyncClient]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, backend: Backend, call: Call, connect_s: float) -> Http2Upstream:
        return Http2Upstream(self._loop, self._client(backend), _request(backend, call, connect_s), self._closing)

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget the clients of servers that are gone."""
        for name in [name for name in self._clients if name not in names]:
            _, client = self._clients.pop(name)
            self._later(client)

    async def aclose(self) -> None:
        self.keep_only(frozenset())
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _client(self, backend: Backend) -> httpx.AsyncClient:
        peer = tuple(getattr(backend, name) for name in _PEER)
        known = self._clients.get(backend.name)
        if known is not None and known[0] == peer:
            return known[1]
        if known is not None:
            self._later(known[1])
        client = new_client(backend, MAX_CONNECTIONS)
        self._clients[backend.name] = (peer, client)
        return client

    def _later(self, client: httpx.AsyncClient) -> None:
        task = self._loop.create_task(client.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Upload:
    """A body that is fed piece by piece; httpx reads it as an iterator."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._drained: asyncio.Future[None] | None = None

    def put(self, piece: bytes | None) -> asyncio.Future[None] | None:
        self._pieces.put_nowait(piece)
        if self._pieces.qsize() < MAX_QUEUED_PIECES:
            return None
        if self._drained is None or self._drained.done():
            self._drained = self._loop.create_future()
        return self._drained

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if self._drained is not None and not self._drained.done():
                self._drained.set_result(None)
            yield piece


class Http2Upstream:
    """One call (`transport.base.Upstream`)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: httpx.AsyncClient,
        request: tuple[httpx.Request, bool],
        closing: set[asyncio.Task[None]],
    ) -> None:
        self._loop = loop
        self._closing = closing
        self._upload = _Upload(loop) if request[1] else None
        if self._upload is not None:
            request[0].stream = _Stream(self._upload)
        self._sending = loop.create_task(client.send(request[0], stream=True))
        self._response: httpx.Response | None = None
        self._reading: asyncio.Task[None] | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def answer(self) -> Answer:
        try:
            response = await asyncio.shield(self._sending)
        except httpx.HTTPError as error:
            raise error_of(error) from None
        self._response = response
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        if not 200 <= response.status_code <= 599:
            raise BadResponse("The server answered with an impossible status.")
        length = response.headers.get("content-length", "")
        return Answer(response.status_code, headers, int(length) if length.isdigit() else None)

    def take(self) -> bytes:
        return b""

    def has_bytes(self) -> bool:
        return False

    async def read(self, limit_bytes: int) -> tuple[bytes, bool]:
        gathered = Gathered(self._loop, limit_bytes)
        self.pipe(gathered)
        complete = await gathered.done
        return bytes(gathered.data), complete

    def pipe(self, sink: Sink) -> None:
        self._reading = self._loop.create_task(self._read(sink))

    async def _read(self, sink: Sink) -> None:
        response = self._response
        assert response is not None
        try:
            async for piece in response.aiter_raw():
                sink.piece(piece, False)
                await self._flowing.wait()
        except httpx.HTTPError:
            sink.broken(BackendLost())
        else:
            sink.piece(b"", True)

    def write(self, piece: bytes) -> asyncio.Future[None] | None:
        return self._upload.put(piece) if self._upload is not None else None

    def write_end(self) -> None:
        if self._upload is not None:
            self._upload.put(None)

    def pause(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if not self._sending.done():
            self._sending.cancel()
        self._sending.add_done_callback(_retrieved)
        response, self._response = self._response, None
        if response is not None:
            task = self._loop.create_task(response.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class _Stream(httpx.AsyncByteStream):
    def __init__(self, upload: _Upload) -> None:
        self._upload = upload

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._upload.__aiter__()


def _request(backend: Backend, call: Call, connect_s: float) -> tuple[httpx.Request, bool]:
    """The request as httpx takes it, and whether its body is fed later."""
    host = f"[{backend.host}]" if ":" in backend.host else backend.host
    headers: list[tuple[bytes, bytes]] = [(b"host", (backend.host_header or backend.authority).encode())]
    for line in call.header_lines.split(b"\r\n"):
        name, separator, value = line.partition(b": ")
        if separator:
            headers.append((name, value))
    streamed = call.body is None
    if streamed and call.content_length is not None:
        headers.append((b"content-length", b"%d" % call.content_length))
    elif call.body:
        headers.append((b"content-length", b"%d" % len(call.body)))
    url = httpx.URL(scheme=backend.scheme, host=host.strip("[]"), port=backend.port, raw_path=call.target)
    request = httpx.Request(
        call.method.decode(),
        url,
        headers=headers,
        content=call.body or None,
        extensions={
            "timeout": {"connect": connect_s, "read": None, "write": None, "pool": connect_s},
            "sni_hostname": backend.tls_server_name or backend.host,
        },
    )
    return request, streamed


def _retrieved(task: asyncio.Task[httpx.Response]) -> None:
    """A failed or late answer nobody waits for any more."""
    if not task.cancelled():
        task.exception()
