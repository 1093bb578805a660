"""Requests for control's paths, on their way through the public port: relayed as they are, over control's socket.

No audit record, no retry but one: a kept connection that control had just closed, when the method is safe.
"""

from __future__ import annotations

from pathlib import Path

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError, ConnectionStale, FleetError, StoreUnavailable
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.proxy.body import read_chunked
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.pump import Pump
from fleetproxy.transport.base import Answer, Call, Upstream
from fleetproxy.wire.head import Head

#: Dashboard calls are small; imports and backups go by the command line.
MAX_BODY_BYTES = 16 * 1024 * 1024
#: An answer of control (analytics, a poll of a slow server) may take this long; event streams have comments each 15 s.
FIRST_BYTE_S, IDLE_S = 60.0, 60.0

_DROPPED = frozenset(
    b"host connection keep-alive proxy-connection te trailer transfer-encoding upgrade content-length expect "
    b"x-fleet-client x-fleet-scheme x-fleet-roles x-request-id x-forwarded-for x-forwarded-host x-forwarded-proto "
    b"forwarded x-real-ip x-user-roles x-forwarded-user x-remote-user".split()
)
_HOP = frozenset(b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade".split())


class Passage:
    """The way to control."""

    def __init__(self, plane: Plane, socket: Path) -> None:
        self._plane = plane
        self._backend = Backend(name="control", id=0, column=0, scheme="unix", host=str(socket))

    async def carry(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send, head: Head) -> None:
        """Relay one request. Raises StoreUnavailable when control is not there."""
        plane = self._plane
        body = b""
        if head.has_body:
            exchange.limit(plane.snapshot.limits.body_idle_s, StoreUnavailable)
            body = await read_chunked(receive, MAX_BODY_BYTES, plane.budget)
        exchange.body_read = True
        try:
            exchange.limit(FIRST_BYTE_S, StoreUnavailable)
            upstream, answer = await self._ask(exchange, scope, head, body)
            try:
                exchange.limit(IDLE_S, StoreUnavailable)
                exchange.committed = True
                exchange.status = answer.status
                headers = [pair for pair in answer.headers if pair[0] not in _HOP]
                exchange.lasting = (b"content-type", b"text/event-stream") in headers
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                pump = Pump(
                    exchange,
                    upstream,
                    None,
                    loop=plane.loop,
                    clock=plane.clock,
                    marked=False,
                    record=_no_record,
                    error_event=_no_event,
                )
                upstream.pipe(pump)
                await pump.done
            finally:
                upstream.close()
        finally:
            plane.budget.release(len(body))

    async def _ask(self, exchange: Exchange, scope: Scope, head: Head, body: bytes) -> tuple[Upstream, Answer]:
        client = exchange.remote_ip or ""
        lines = b"".join(
            [b"%b: %b\r\n" % pair for pair in scope["headers"] if pair[0] not in _DROPPED]
            + [
                b"x-fleet-client: %b\r\n" % client.encode(),
                b"x-fleet-scheme: %b\r\n" % scope["scheme"].encode(),
                b"x-request-id: %b\r\n" % exchange.request_id.encode(),
                _roles_line(self._plane.roles(scope, head.own)),
            ]
        )
        query: bytes = scope["query_string"]
        method = exchange.method
        safe = method in ("GET", "HEAD")
        call = Call(
            method=method.encode(),
            target=exchange.raw_path + b"?" + query if query else exchange.raw_path,
            header_lines=lines,
            body=body,
            fresh=not safe,
            host=head.own.get(b"host", b"localhost"),
        )
        transport = self._plane.transports["http1"]
        for last_try in (False, True):
            try:
                upstream = await transport.open(self._backend, call, 3.0)
                try:
                    return upstream, await upstream.answer()
                except BaseException:
                    upstream.close()
                    raise
            except ConnectionStale:
                if last_try or not safe:
                    raise StoreUnavailable from None
            except BackendError:
                raise StoreUnavailable from None
        raise StoreUnavailable


def _roles_line(roles: frozenset[str]) -> bytes:
    return b"x-fleet-roles: %b\r\n" % ",".join(sorted(roles)).encode() if roles else b""


def _no_record(exchange: Exchange) -> None:
    """Control's answers leave no audit record."""


def _no_event(error: FleetError) -> bytes:
    return b""
