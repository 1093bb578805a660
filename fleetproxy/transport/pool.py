"""HTTP/1.1 connections kept open to each backend, and the transport that hands them out.

Names are resolved by `transport.resolver`, away from the event loop and each on its own, so a slow name server delays
only requests to that host; the address that was resolved is the address that is connected to.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError, ConnectFailed, ConnectTimeout
from fleetproxy.transport.base import Call
from fleetproxy.transport.http1 import Connection
from fleetproxy.transport.resolver import Resolver

#: Addresses of one name that are tried.
MAX_ADDRESSES = 4


class Pool:
    """Kept-alive connections of one backend. LIFO, so that idle ones age and go."""

    def __init__(
        self, backend: Backend, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None, resolver: Resolver
    ) -> None:
        self.backend = backend
        self.loop = loop
        self._tls = tls
        self._resolver = resolver
        self._idle: deque[Connection] = deque()
        self._closed = False
        host = backend.host_header or ("localhost" if backend.scheme == "unix" else backend.authority)
        self.host_line = b"host: " + host.encode("idna" if not host.isascii() else "ascii") + b"\r\n"

    def reuse(self) -> Connection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.open:
                connection.reused = True
                return connection
        return None

    async def connect(self, timeout_s: float) -> Connection:
        """A new connection. Raises ConnectFailed or ConnectTimeout."""
        backend = self.backend
        try:
            async with asyncio.timeout(timeout_s):
                if backend.scheme == "unix":
                    _, connection = await self.loop.create_unix_connection(self._protocol, backend.host)
                    return connection
                addresses = await self._resolver.resolve(backend.host, timeout_s)
                failure: BackendError = ConnectFailed()
                for address in addresses[:MAX_ADDRESSES]:
                    try:
                        return await self._connect_to(address)
                    except ConnectFailed as error:
                        failure = error
                self._resolver.forget(backend.host)
                raise failure
        except TimeoutError:
            self._resolver.forget(backend.host)
            raise ConnectTimeout from None
        except OSError:
            raise ConnectFailed from None

    async def _connect_to(self, address: str) -> Connection:
        backend = self.backend
        try:
            if self._tls is None:
                _, connection = await self.loop.create_connection(self._protocol, address, backend.port)
            else:
                _, connection = await self.loop.create_connection(
                    self._protocol,
                    address,
                    backend.port,
                    ssl=self._tls,
                    server_hostname=backend.tls_server_name or backend.host,
                )
        except ssl.SSLCertVerificationError as error:
            # OpenSSL names the host it looked for; our callers never see hosts.
            why = error.verify_message.partition(", certificate is not valid for")[0].partition(" for '")[0]
            raise ConnectFailed(f"The server's certificate is not valid: {why.lower()}.") from None
        except ssl.SSLError as error:
            reason = (error.reason or "closed during the handshake").replace("_", " ").lower()
            raise ConnectFailed(f"TLS with the server failed: {reason}.") from None
        except OSError:
            raise ConnectFailed from None
        return connection

    def _protocol(self) -> Connection:
        return Connection(self)

    def give_back(self, connection: Connection) -> None:
        if self._closed:  # its server was taken out, or got another address, while it was in use
            connection.drop()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        try:
            self._idle.remove(connection)
        except ValueError:
            pass

    def expire(self, before: float) -> None:
        """Close connections idle since before that loop time."""
        idle = self._idle
        while idle and idle[0].idle_since < before:
            idle.popleft().drop()

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().drop()


class Http1Transport:
    """Pools by backend. A backend whose configuration changed gets a new pool; the old one's idle ones go."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tls_context: Callable[[Backend], ssl.SSLContext]) -> None:
        self._loop = loop
        self._tls_context = tls_context
        self._resolver = Resolver()
        self._pools: dict[str, Pool] = {}

    def pool(self, backend: Backend) -> Pool:
        key = backend.name
        pool = self._pools.get(key)
        if pool is not None and (pool.backend is backend or _same_peer(pool.backend, backend)):
            pool.backend = backend
            return pool
        if pool is not None:
            pool.close()
        tls = self._tls_context(backend) if backend.scheme == "https" else None
        pool = self._pools[key] = Pool(backend, self._loop, tls, self._resolver)
        return pool

    async def open(self, backend: Backend, call: Call, connect_s: float) -> Connection:
        pool = self.pool(backend)
        connection = None if call.fresh else pool.reuse()
        if connection is None:
            connection = await pool.connect(connect_s)
        connection.start(call)
        return connection

    def expire(self, before: float) -> None:
        for pool in self._pools.values():
            pool.expire(before)

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget the pools of servers that are gone."""
        for name in [name for name in self._pools if name not in names]:
            self._pools.pop(name).close()

    def close(self) -> None:
        self.keep_only(frozenset())


_PEER = ("scheme", "host", "port", "host_header", "tls_ca_file", "tls_verify", "tls_server_name")


def _same_peer(a: Backend, b: Backend) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in _PEER)


def tls_context(backend: Backend) -> ssl.SSLContext:
    """Client TLS for a backend: system roots or its CA file, TLS 1.2 or later."""
    try:
        context = ssl.create_default_context(cafile=backend.tls_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConnectFailed(f"The CA file of this server cannot be used ({error}); check tls_ca_file.") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not backend.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
