"""A request for a backend, in a straight line: identify, read, rank, relay; and where every exchange ends."""

from __future__ import annotations

import asyncio

from fleetproxy import log
from fleetproxy.core import access
from fleetproxy.core.names import canonical
from fleetproxy.core.operation import Endpoint, Operation
from fleetproxy.core.selection import routes_of
from fleetproxy.core.table import Principal, RoutingTable, Snapshot
from fleetproxy.errors import (
    BadJson,
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    Draining,
    EncodingRefused,
    FleetError,
    MissingBody,
    Unauthorized,
)
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.proxy import answers, doors, linger
from fleetproxy.proxy.body import read_announced, read_chunked
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.forms import Forms
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.relay import Relay
from fleetproxy.proxy.scatter import Scatter
from fleetproxy.wire.head import Head
from fleetproxy.wire.peek import Peek, inject, peek

_log = log.get("proxy")


class Handler:
    """Serves requests for backends. One per process."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._relay = Relay(plane)
        self._scatter = Scatter(plane, self._relay)
        self._forms = Forms(plane, self._relay, plane.disk) if plane.disk is not None else None

    async def handle(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint, head: Head) -> None:
        plane = self._plane
        exchange = plane.begin(scope, receive, send, endpoint, head)
        held_bytes = 0
        admitted: Principal | None = None
        try:
            self._identify(exchange)
            if plane.draining:
                raise Draining
            admitted = plane.admit(exchange)
            if endpoint.pinned and not doors.is_there(exchange.snapshot.table, exchange.raw_path):
                await plane.settle(exchange)
            if endpoint.form and self._forms is not None:
                await self._forms.serve(exchange, self._operation(exchange, None))
                await linger.after(exchange)
                return
            if endpoint.upload:
                await self._relay.upload(exchange, self._operation(exchange, None))
                await linger.after(exchange)
                return
            body = await self._body(exchange)
            held_bytes = len(body)
            seen = self._peek(exchange, body)
            exchange.operation = operation = self._operation(exchange, seen)
            if _unheard_of(exchange.snapshot.table, operation):
                await plane.settle(exchange)
            body = self._inject(exchange.snapshot, endpoint, seen, body)
            if endpoint.shape == "scatter" and seen is not None:
                await self._scatter.serve(exchange, operation, body, seen)
            else:
                await self._relay.relay(exchange, operation, body, seen)
        except FleetError as error:
            await self._refuse(exchange, error)
        except asyncio.CancelledError:
            if exchange.interruption is None:
                exchange.fail(ClientGone(), "aborted")
                raise
            await self._refuse(exchange, exchange.interruption)
        except Exception:
            _log.exception("request %s to %s failed by a fault of fleetproxy", exchange.request_id, endpoint.path)
            await self._refuse(exchange, FleetError("A fault of fleetproxy; its log has it, with the request's id."))
        finally:
            plane.budget.release(held_bytes)
            plane.dismiss(admitted)
            plane.end(exchange)

    def _identify(self, exchange: Exchange) -> None:
        """Whose request this is. Raises Unauthorized where the surface needs a key and there is none."""
        snapshot = exchange.snapshot
        if exchange.endpoint.surface == "family":
            doors.check_plugin(exchange.endpoint.family, snapshot.access)
        caller = access.identify(exchange.head.own, snapshot.principals, now_s=exchange.started_at_us / 1e6)
        exchange.principal = caller.principal
        exchange.key_unknown = caller.key_unknown
        exchange.credentials = caller.forwarded
        exchange.source = access.source(
            exchange.head.own, caller.principal, exchange.remote_ip or "", snapshot.access.source_names
        )
        if caller.principal is None:
            rules = snapshot.access
            if exchange.endpoint.surface == "family":
                doors.check_stranger(rules, self._plane.roles(exchange.scope, exchange.head.own))
            elif rules.proxy_required or (exchange.endpoint.write and rules.protect_writes):
                raise Unauthorized(
                    "API key required for write operations. Set X-Ollama-Api-Key header."
                    if exchange.endpoint.write and not rules.proxy_required
                    else ""
                )

    async def _body(self, exchange: Exchange) -> bytes:
        """The whole body, within the caps. What is returned is held in the budget."""
        head = exchange.head
        if not head.has_body:
            return b""
        plane, limits = self._plane, exchange.snapshot.limits
        length = head.content_length
        if length is not None and length > limits.body_bytes:
            raise BodyTooLarge
        exchange.limit(limits.body_idle_s, BodyTimeout)
        if length is None:
            body = await read_chunked(exchange.receive, limits.body_bytes, plane.budget)
        else:
            plane.budget.hold(length)
            try:
                body = await read_announced(exchange.receive, length)
            except BaseException:
                plane.budget.release(length)
                raise
        exchange.body_read = True
        exchange.bytes_in = len(body)
        exchange.limit(None, None)
        return body

    def _peek(self, exchange: Exchange, body: bytes) -> Peek | None:
        endpoint = exchange.endpoint
        if not endpoint.has_model or (endpoint.lenient and not body):
            return None
        if exchange.head.own.get(b"content-encoding", b"identity") != b"identity":
            if endpoint.lenient:
                return None
            raise EncodingRefused
        if not body:
            raise MissingBody
        try:
            return peek(body, endpoint.model_keys)
        except BadJson:
            if endpoint.lenient:
                return None
            raise

    def _operation(self, exchange: Exchange, seen: Peek | None) -> Operation:
        endpoint = exchange.endpoint
        own = exchange.head.own
        given = own.get(b"x-ollama-pin-server")
        pin = _text(given).strip() or None if given is not None else None
        if endpoint.pinned:
            pin = doors.pinned(exchange.snapshot.table, exchange.raw_path)
        model = seen.model if seen is not None else None
        stream = endpoint.streams_by_default
        if seen is not None and seen.stream is not None:
            stream = seen.stream
        return Operation(
            endpoint=endpoint,
            model=model,
            canonical=canonical(model) if model is not None else None,
            stream=stream,
            pin=pin,
            affinity=exchange.source if endpoint.placement == "affinity" else None,
            allowed=exchange.principal.models if exchange.principal is not None else None,
        )

    def _inject(self, snapshot: Snapshot, endpoint: Endpoint, seen: Peek | None, body: bytes) -> bytes:
        """keep_alive and num_ctx, only when their setting is set; otherwise the very bytes received."""
        limits = snapshot.limits
        if seen is None or not endpoint.injectable:
            return body
        if limits.min_num_ctx is None and limits.default_keep_alive is None:
            return body
        return inject(body, seen, num_ctx=limits.min_num_ctx, keep_alive=limits.default_keep_alive)

    async def _refuse(self, exchange: Exchange, error: FleetError) -> None:
        """Answer with an error, unless the answer is under way already: then the abort of the connection says it."""
        if exchange.recorded:
            return
        if isinstance(error, ClientGone):
            exchange.fail(error, "client_gone")
            exchange.status = exchange.status or 499
            self._plane.recorder.put(exchange)
            return
        started = exchange.committed or exchange.started_by_us
        if started:
            outcome = "aborted" if isinstance(error, Draining) else "truncated"
        else:
            outcome = "backend_error" if error.side == "backend" else "refused"
        exchange.fail(error, outcome)  # type: ignore[arg-type]
        if started:
            event = answers.error_event(exchange, error)
            if event:
                exchange.bytes_out += len(event)
                exchange.send({"type": "http.response.body", "body": event, "more_body": True})
            self._plane.recorder.put(exchange)
            return  # without a final piece: the server aborts the connection
        exchange.status = error.status
        self._plane.recorder.put(exchange)
        stays = await linger.before(exchange)
        await answers.refuse(
            exchange.send,
            exchange.endpoint.voice,
            error,
            exchange.request_id,
            head_only=exchange.method == "HEAD",
            draining=self._plane.draining or not stays,
            extra=answers.explain_headers(exchange),
        )
        await linger.after(exchange)


def _text(value: bytes) -> str:
    """A header as its sender meant it: UTF-8 nowadays, Latin-1 from some libraries."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _unheard_of(table: RoutingTable, operation: Operation) -> bool:
    """Nobody has the model, or nobody has the name: a worker that has come just now may."""
    if operation.pin is not None and operation.pin.lower() not in table.pins:
        return True
    return operation.canonical is not None and not routes_of(table, operation)
