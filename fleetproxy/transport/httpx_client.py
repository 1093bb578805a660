"""Small requests of the control plane to the servers of the fleet. The only importer of httpx.

Every server has a client, and so connections, of its own: one that hangs holds up nobody else. What comes back is
bounded in time and size, never followed to another place (redirects are answers), never fetched through a proxy named
in the environment, and decoded only up to a cap. Failures are errors of `errors.py`; their text names no address.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from fleetproxy.core.backend import Backend
from fleetproxy.errors import (
    BackendError,
    BackendReset,
    BackendTimeout,
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
)
from fleetproxy.transport.resolver import Resolver

#: Bytes of one answer on the wire, and decoded.
WIRE_BYTES = 8 * 1024 * 1024
DECODED_BYTES = 16 * 1024 * 1024
#: Addresses of one name that are tried.
MAX_ADDRESSES = 4
#: Share of the time left that TCP and then TLS may each take. Together less than all of it: httpcore closes the socket
#: of a handshake that times out, but not of one that is cancelled.
CONNECT_SHARE = 0.45
#: A connection that nobody gave a limit.
CONNECT_S = 5.0
#: Connections to one server.
MAX_CONNECTIONS = 4

#: zlib's window argument for the codings we can undo. We ask for none; some servers encode all the same.
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_HEADERS = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "fleetproxy"}


class Reply(msgspec.Struct, frozen=True):
    """One whole answer, decoded."""

    status: int
    content_type: str
    body: bytes
    http_version: str = "HTTP/1.1"

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Streamed(msgspec.Struct, frozen=True):
    """An answer that is being read: its status, and its body as it comes, decoded."""

    status: int
    pieces: AsyncGenerator[bytes, None]


class _Ask(msgspec.Struct, frozen=True):
    """One request to one server."""

    backend: Backend
    method: str
    path: str
    #: In the event loop's time.
    deadline_s: float
    json: bytes | None


class HttpxClient:
    """Clients by server; one event loop's own. `async with` closes them all."""

    def __init__(
        self, resolver: Resolver | None = None, *, wire_bytes: int = WIRE_BYTES, decoded_bytes: int = DECODED_BYTES
    ) -> None:
        self.resolver = resolver or Resolver()
        self._wire_bytes = wire_bytes
        self._decoded_bytes = decoded_bytes
        self._clients: dict[str, tuple[tuple[Any, ...], httpx.AsyncClient]] = {}

    async def get(self, backend: Backend, path: str, timeout_s: float) -> Reply:
        """GET `path` (the server's prefix is put before it). Raises BackendError."""
        try:
            return await self.send(backend, "GET", path, timeout_s)
        except BackendReset:  # most often a kept connection that the server closed just then
            return await self.send(backend, "GET", path, timeout_s)

    async def send(
        self, backend: Backend, method: str, path: str, timeout_s: float, *, json: bytes | None = None
    ) -> Reply:
        """One request and its whole answer, in at most `timeout_s` seconds altogether. Raises BackendError."""
        try:
            async with asyncio.timeout(timeout_s):
                deadline_s = asyncio.get_running_loop().time() + timeout_s
                return await self._send(_Ask(backend, method, path, deadline_s, json))
        except TimeoutError:
            raise BackendTimeout("the server did not answer in time") from None

    @asynccontextmanager
    async def stream(
        self, backend: Backend, method: str, path: str, timeout_s: float, *, json: bytes | None = None
    ) -> AsyncIterator[Streamed]:
        """One request whose answer is read as it comes, in at most `timeout_s` seconds altogether, in one task.

        The connection is closed when the block is left before the end. Raises BackendError.
        """
        try:
            async with asyncio.timeout(timeout_s):
                deadline_s = asyncio.get_running_loop().time() + timeout_s
                response = await self._open(_Ask(backend, method, path, deadline_s, json))
                try:
                    yield Streamed(response.status_code, self._pieces(response))
                finally:
                    await response.aclose()
        except TimeoutError:
            raise BackendTimeout("the server did not answer in time") from None
        except httpx.HTTPError as error:
            raise error_of(error) from error

    async def forget(self, name: str) -> None:
        """Close the connections to a server that is gone."""
        _, client = self._clients.pop(name, (None, None))
        if client is not None:
            await client.aclose()

    async def aclose(self) -> None:
        for name in tuple(self._clients):
            await self.forget(name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- one request -----------------------------------------------------------------------------------------

    async def _send(self, ask: _Ask) -> Reply:
        try:
            response = await self._open(ask)
            try:
                return Reply(
                    response.status_code,
                    response.headers.get("content-type", ""),
                    b"".join([piece async for piece in self._pieces(response)]),
                    response.http_version,
                )
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise error_of(error) from error

    async def _open(self, ask: _Ask) -> httpx.Response:
        """The head of an answer; who gets it closes it."""
        backend = ask.backend
        client = await self._client(backend)
        if backend.scheme == "unix":
            return await self._exchange(client, ask, "localhost")
        addresses = await self.resolver.resolve(backend.host, _left_s(ask))
        failure: BackendError = ConnectFailed()
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._exchange(client, ask, address)
            except (ConnectFailed, ConnectTimeout) as error:
                failure = error
        self.resolver.forget(backend.host)
        raise failure

    async def _exchange(self, client: httpx.AsyncClient, ask: _Ask, address: str) -> httpx.Response:
        backend = ask.backend
        request = client.build_request(
            ask.method,
            _url(backend, address, ask.path),
            headers=_headers(backend, ask.json is not None),
            content=ask.json,
            timeout=httpx.Timeout(None, connect=_left_s(ask) * CONNECT_SHARE),
            extensions={"sni_hostname": backend.tls_server_name or backend.host},
        )
        try:
            return await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise error_of(error) from error

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The body as it comes, decoded."""
        decode = _decoder(response.headers.get("content-encoding", ""), self._decoded_bytes)
        wire = 0
        async for piece in response.aiter_raw():
            wire += len(piece)
            if wire > self._wire_bytes:
                raise BadResponse(f"the server's answer is larger than {self._wire_bytes} bytes")
            yield decode(piece) if decode else piece

    # --- clients ---------------------------------------------------------------------------------------------

    async def _client(self, backend: Backend) -> httpx.AsyncClient:
        peer = tuple(getattr(backend, name) for name in _PEER)
        known = self._clients.get(backend.name)
        if known is not None and known[0] == peer:
            return known[1]
        client = new_client(backend)
        self._clients[backend.name] = (peer, client)
        if known is not None:
            await known[1].aclose()
        return client


#: What decides which connections may serve a backend.
_PEER = ("scheme", "host", "port", "http2", "host_header", "tls_ca_file", "tls_verify", "tls_server_name")


class _Resolving(httpx.AsyncBaseTransport):
    """Connects to the addresses our own resolver gives, in turn."""

    def __init__(self, transport: httpx.AsyncBaseTransport, resolver: Resolver) -> None:
        self._transport = transport
        self._resolver = resolver

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name, port = request.url.host, request.url.port
        limit_s = request.extensions.get("timeout", {}).get("connect") or CONNECT_S
        failure: httpx.TransportError | None = None
        for address in (await self._resolver.resolve(name, limit_s))[:MAX_ADDRESSES]:
            request.url = request.url.copy_with(host=address, port=port)
            try:
                return await self._transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error  # nothing was sent: the body is still whole
        self._resolver.forget(name)
        assert failure is not None
        raise failure

    async def aclose(self) -> None:
        await self._transport.aclose()


def new_client(
    backend: Backend,
    connections: int = MAX_CONNECTIONS,
    tls: ssl.SSLContext | None = None,
    resolver: Resolver | None = None,
) -> httpx.AsyncClient:
    """A client for one server: nothing from the environment, no redirects, at most so many connections.

    With a `resolver` names in URLs are resolved by it; its errors come out of `send` as they are.
    """
    # Cleartext HTTP/2 has no negotiation: with http2 set, it is what is spoken.
    prior_knowledge = backend.http2 and backend.scheme != "https"
    transport: httpx.AsyncBaseTransport = httpx.AsyncHTTPTransport(
        verify=tls or tls_of(backend),
        trust_env=False,
        http1=not prior_knowledge,
        http2=backend.http2,
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=60.0),
        uds=backend.host if backend.scheme == "unix" else None,
    )
    if resolver is not None:
        transport = _Resolving(transport, resolver)
    return httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)


def tls_of(backend: Backend) -> ssl.SSLContext:
    if backend.scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody; never used
    try:
        context = ssl.create_default_context(cafile=backend.tls_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConnectFailed(f"the CA file of this server cannot be used: {error}; check tls_ca_file") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not backend.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _url(backend: Backend, address: str, path: str) -> httpx.URL:
    scheme = "https" if backend.scheme == "https" else "http"
    host = f"[{address}]" if ":" in address else address
    port = "" if backend.scheme == "unix" else f":{backend.port}"
    return httpx.URL(f"{scheme}://{host}{port}{backend.path_prefix}{path}")


def _left_s(ask: _Ask) -> float:
    return max(0.001, ask.deadline_s - asyncio.get_running_loop().time())


def _headers(backend: Backend, has_body: bool) -> dict[str, str]:
    headers = {"host": backend.host_header or backend.authority, **_HEADERS}
    if has_body:
        headers["content-type"] = "application/json"
    if backend.api_key:
        headers["authorization"] = f"Bearer {backend.api_key}"
    return headers


# --- what comes back -----------------------------------------------------------------------------------------


class _Inflate:
    """Undoes one coding, piece by piece, up to a cap."""

    def __init__(self, window: int, cap: int) -> None:
        self._inflate = zlib.decompressobj(window)
        self._left = cap
        self._cap = cap

    def __call__(self, piece: bytes) -> bytes:
        try:
            out = self._inflate.decompress(piece, self._left + 1)
        except zlib.error as error:
            raise BadResponse(f"the server's answer is not in the coding it says: {error}") from None
        if len(out) > self._left:
            raise BadResponse(f"the server's answer is larger than {self._cap} bytes when decoded")
        self._left -= len(out)
        return out


def _decoder(coding: str, cap: int) -> _Inflate | None:
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in _WINDOWS:
        raise BadResponse(f"the server's answer is encoded as {coding[:32]!r}, which we did not ask for")
    return _Inflate(_WINDOWS[coding], cap)


#: Most specific first.
_ERRORS: tuple[tuple[type[httpx.HTTPError], type[BackendError], str], ...] = (
    (httpx.ConnectTimeout, ConnectTimeout, "the server did not accept the connection in time"),
    (httpx.ConnectError, ConnectFailed, "the server could not be reached"),
    (httpx.PoolTimeout, BackendTimeout, "the server's connections are all busy"),
    (httpx.TimeoutException, BackendTimeout, "the server did not answer in time"),
    (httpx.NetworkError, BackendReset, "the server closed the connection"),
    (httpx.HTTPError, BadResponse, "the server's answer cannot be used"),
)


def error_of(error: httpx.HTTPError) -> BackendError:
    if isinstance(error, httpx.ProtocolError):
        if "without sending a response" in str(error):
            return BackendReset("the server closed the connection without an answer")
        return BadResponse(f"the server's answer is not HTTP: {str(error)[:120]}")
    for kind, ours, text in _ERRORS:
        if isinstance(error, kind):
            reason = _reason(error)
            return ours(f"{text}: {reason}" if reason else text)
    raise AssertionError("the last row of the table takes every httpx error")


def _reason(error: BaseException) -> str:
    """The innermost cause, in words without addresses."""
    seen = 0
    while seen < 10 and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
        seen += 1
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {(error.reason or 'closed during the handshake').replace('_', ' ').lower()}"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number).lower()  # asyncio puts the address into the error's own text
    return ""
