"""HTTP/2 to backends marked `http2 = true`, by httpx. Not the hot path: chosen for its h2, not for its cost.

Implements `transport.base`: connecting happens inside `answer()`, so connect failures come from there. Each connection
carries one call at a time and is kept for the next: httpcore does not tell the server when one stream of many is given
up, but a closed connection it understands, and a generation nobody reads must end.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable

import httpx

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendLost, BadResponse
from fleetproxy.transport.base import Answer, Call, Gathered, Sink
from fleetproxy.transport.httpx_client import error_of, new_client, tls_of
from fleetproxy.transport.resolver import Resolver

#: Idle connections kept to one server.
MAX_IDLE = 64
#: Pieces of a streamed upload held while the server does not read.
MAX_QUEUED_PIECES = 8
_PEER = ("scheme", "host", "port", "host_header", "tls_ca_file", "tls_verify", "tls_server_name")


class _Server:
    """Idle connections of one backend."""

    def __init__(self, backend: Backend, resolver: Resolver) -> None:
        self._resolver = resolver
        self.peer = tuple(getattr(backend, name) for name in _PEER)
        self._tls: ssl.SSLContext = tls_of(backend)
        self.idle: list[httpx.AsyncClient] = []
        self.gone = False

    def client(self, backend: Backend) -> httpx.AsyncClient:
        return self.idle.pop() if self.idle else new_client(backend, 1, self._tls, self._resolver)


class Http2Transport:
    """Connections by backend; one event loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, resolver: Resolver | None = None) -> None:
        self._loop = loop
        self._resolver = resolver or Resolver()
        self._servers: dict[str, _Server] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, backend: Backend, call: Call, connect_s: float) -> Http2Upstream:
        server = self._server(backend)
        client = server.client(backend)

        def finished(whole: bool) -> None:
            if whole and not server.gone and len(server.idle) < MAX_IDLE:
                server.idle.append(client)
            else:
                self._later(client)

        return Http2Upstream(self._loop, client, _request(backend, call, connect_s), finished)

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget the connections of servers that are gone."""
        for name in [name for name in self._servers if name not in names]:
            self._drop(self._servers.pop(name))

    async def aclose(self) -> None:
        self.keep_only(frozenset())
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _server(self, backend: Backend) -> _Server:
        known = self._servers.get(backend.name)
        if known is not None:
            if known.peer == tuple(getattr(backend, name) for name in _PEER):
                return known
            self._drop(known)
        server = self._servers[backend.name] = _Server(backend, self._resolver)
        return server

    def _drop(self, server: _Server) -> None:
        server.gone = True
        while server.idle:
            self._later(server.idle.pop())

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

    def release(self) -> None:
        """Nobody will take more: let go of who waits."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            self.release()
            yield piece


class Http2Upstream:
    """One call (`transport.base.Upstream`)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: httpx.AsyncClient,
        request: tuple[httpx.Request, _Upload | None],
        finished: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._finished: Callable[[bool], None] | None = finished
        self._upload = request[1]
        self._sending = loop.create_task(client.send(request[0], stream=True))
        if self._upload is not None:
            self._sending.add_done_callback(self._answered)
        self._response: httpx.Response | None = None
        self._reading: asyncio.Task[None] | None = None
        self._whole = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    def _answered(self, _: asyncio.Task[httpx.Response]) -> None:
        if self._upload is not None:
            self._upload.release()

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
            self._whole = True
            sink.piece(b"", True)

    def write(self, piece: bytes) -> asyncio.Future[None] | None:
        if self._upload is None or self._sending.done():
            return None  # the answer, or the failure, is waiting to be read
        return self._upload.put(piece)

    def write_end(self) -> None:
        if self._upload is not None:
            self._upload.put(None)

    def pause(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        finished, self._finished = self._finished, None
        if finished is None:
            return
        if not self._whole:
            if self._reading is not None:
                self._reading.cancel()
            self._sending.cancel()
        self._sending.add_done_callback(_retrieved)
        finished(self._whole)


class _Stream(httpx.AsyncByteStream):
    def __init__(self, upload: _Upload) -> None:
        self._upload = upload

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._upload.__aiter__()


def _request(backend: Backend, call: Call, connect_s: float) -> tuple[httpx.Request, _Upload | None]:
    """The request as httpx takes it, and what feeds its body if that comes later."""
    host = f"[{backend.host}]" if ":" in backend.host else backend.host
    headers: list[tuple[bytes, bytes]] = [(b"host", (backend.host_header or backend.authority).encode())]
    for line in call.header_lines.split(b"\r\n"):
        name, separator, value = line.partition(b": ")
        if separator:
            headers.append((name, value))
    upload = None
    if call.body is None:
        upload = _Upload(asyncio.get_running_loop())
        # httpcore looks at these to know that there is a body; in HTTP/2 the second never goes out.
        length = call.content_length
        headers.append(
            (b"content-length", b"%d" % length) if length is not None else (b"transfer-encoding", b"chunked")
        )
    elif call.body:
        headers.append((b"content-length", b"%d" % len(call.body)))
    url = httpx.URL(scheme=backend.scheme, host=host.strip("[]"), port=backend.port, raw_path=call.target)
    request = httpx.Request(
        call.method.decode(),
        url,
        headers=headers,
        stream=_Stream(upload) if upload is not None else httpx.ByteStream(call.body or b""),
        extensions={
            "timeout": {"connect": connect_s, "read": None, "write": None, "pool": connect_s},
            "sni_hostname": backend.tls_server_name or backend.host,
        },
    )
    return request, upload


def _retrieved(task: asyncio.Task[httpx.Response]) -> None:
    """A failed or late answer nobody waits for any more."""
    if not task.cancelled():
        task.exception()
