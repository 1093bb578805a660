"""The HTTP server seam: one ASGI app on one listener, with our limits. The only importer of granian.

Facts this module leans on, each pinned by a test in `tests/test_listen.py` (Granian 2.8):

- `send()` starts at once when called and returns an awaitable. Taken pieces give a `PyEmptyAwaitable`, which needs no
  await; under back-pressure it is a future-like with `add_done_callback`. `taken()` tells them apart, so that a piece
  can be handed on from a protocol callback without waking a task.
- `receive()` returns a future-like that starts when a callback is added; so a disconnect can be watched without a task.
- Its master gives up after two crashes and shares its port silently; so we embed one server per listener and supervise
  processes ourselves (docs/adr/0001).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Silent connections, slow headers and idle keep-alive all end after this (faults C-20, C-21, C-24).
HEADER_TIMEOUT_MS = 10_000
#: Hyper's read buffer; a request head larger than this is answered 431 by hyper itself.
MAX_BUFFER_BYTES = 64 * 1024


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen: a TCP address, or a Unix socket when `uds` is set."""

    host: str = "127.0.0.1"
    port: int = 0
    uds: str | None = None
    #: A socket that listens already (the supervisor's), instead of host and port.
    fd: int | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    #: Connections accepted at once; further ones wait in the kernel's backlog.
    connections: int = 8192
    header_timeout_ms: int = HEADER_TIMEOUT_MS


class _Server(Server):
    """Granian's embedded server, also on a socket somebody else has bound."""

    fd: int | None = None

    def _init_shared_socket(self) -> None:
        if self.fd is None:
            super()._init_shared_socket()  # type: ignore[no-untyped-call]
        else:
            self._shd = SocketHolder(os.dup(self.fd), False, self.backlog)  # type: ignore[assignment, call-arg]


async def serve(app: App, listener: Listener, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then stop accepting and return when the open requests have ended."""
    logging.getLogger("_granian").setLevel(logging.ERROR)
    server = _Server(
        app,
        address=listener.host,
        port=listener.port,
        uds=Path(listener.uds) if listener.uds else None,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        backlog=1024,
        backpressure=listener.connections,
        http1_settings=HTTP1Settings(header_read_timeout=listener.header_timeout_ms, max_buffer_size=MAX_BUFFER_BYTES),
        ssl_cert=Path(listener.tls_cert) if listener.tls_cert else None,
        ssl_key=Path(listener.tls_key) if listener.tls_key else None,
        ssl_protocol_min=SSLProtocols.tls12,
        log_enabled=False,
    )
    server.fd = listener.fd
    running = asyncio.ensure_future(server.serve())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            server.stop()  # type: ignore[no-untyped-call]
        await running
    finally:
        stopping.cancel()


def taken(awaitable: Awaitable[None]) -> bool:
    """Whether a piece given to `send()` has been taken already; if not, the awaitable tells when it will be."""
    kind = type(awaitable)
    known = _taken.get(kind)
    if known is None:
        known = _taken[kind] = not hasattr(kind, "add_done_callback")
    return known


#: Kind of awaitable -> whether it means "taken": a look-up costs half of what asking the object does.
_taken: dict[type, bool] = {}
