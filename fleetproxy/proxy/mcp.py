"""`/api/mcp/id/{id}`: JSON-RPC for the MCP server behind a relay, and back: one request, one answer or its events.

What comes is looked at as far as it must be (which kind of message, which id) and goes on as the bytes it is. Ids of
sessions are made in the hub, for one relay and one caller. The bearer token is the relay's: it goes there, unless it is
a key of ours, and nowhere else.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from fleetproxy.core import access
from fleetproxy.core.operation import Endpoint
from fleetproxy.core.worker import Worker
from fleetproxy.errors import (
    BackendStalled,
    BackendTimeout,
    BadRpc,
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    Draining,
    FleetError,
    MethodRefused,
    RelayOffline,
    Unauthorized,
)
from fleetproxy.families import mcp
from fleetproxy.families.mcp import errors as rpc_errors
from fleetproxy.families.mcp import rpc
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.proxy import answers, doors, linger
from fleetproxy.proxy.body import read_announced, read_chunked
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.pump import Pump
from fleetproxy.settings.model import Mcp as Options
from fleetproxy.transport.base import Answer, Call, Headers
from fleetproxy.transport.hub import HubClient
from fleetproxy.transport.hub_upstream import HubUpstream
from fleetproxy.wire import payloads
from fleetproxy.wire.head import Head
from fleetproxy.wire.headers import response_headers

_KINDS = {"request": "call", "notification": "message", "response": "message"}
_EVENTS = b"text/event-stream"


class Mcp:
    """Serves the family's endpoints in one process."""

    def __init__(self, plane: Plane, hub: HubClient, options: Callable[[], Options]) -> None:
        self._plane = plane
        self._hub = hub
        self._options = options

    async def handle(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint, head: Head) -> None:
        plane = self._plane
        exchange = plane.begin(scope, receive, send, endpoint, head)
        identity = b""
        held_bytes = 0
        try:
            doors.check_plugin("mcp", exchange.snapshot.access)
            caller = self._identify(exchange)
            if plane.draining:
                raise Draining
            relay = await self._relay(mcp.relay_of(exchange.raw_path))
            if relay.protocol == "nfrx" and exchange.method != "POST":
                raise MethodRefused(allow="POST")
            body = await self._body(exchange)
            held_bytes = len(body)
            message = _read(exchange, body)
            identity = message.id if message is not None and message.kind == "request" else b""
            await self._call(exchange, relay, caller, body, message)
        except FleetError as error:
            if isinstance(error, BadRpc):
                identity = error.identity
            await self._refuse(exchange, error, identity)
        except asyncio.CancelledError:
            if exchange.interruption is None:
                exchange.fail(ClientGone(), "aborted")
                raise
            await self._refuse(exchange, exchange.interruption, identity)
        finally:
            plane.budget.release(held_bytes)
            plane.end(exchange)

    async def _relay(self, name: str) -> Worker:
        """Raises RelayOffline when the hub has no relay of this name."""
        relay = self._hub.workers.get(("mcp", name))
        if relay is None and name:
            await self._hub.settled()
            relay = self._hub.workers.get(("mcp", name))
        if relay is None:
            raise RelayOffline
        return relay

    def _identify(self, exchange: Exchange) -> str:
        """Whose calls these are: a key's, a token's, an address's. Keys of ours never go on to a relay."""
        own, snapshot = exchange.head.own, exchange.snapshot
        caller = access.identify(own, snapshot.principals, now_s=exchange.started_at_us / 1e6)
        principal = exchange.principal = caller.principal
        exchange.credentials = caller.forwarded
        address = exchange.remote_ip or ""
        exchange.source = access.source(own, principal, address, snapshot.access.source_names)
        if principal is not None:
            return f"key {principal.name}"[:256]
        if self._options().require_key:
            raise Unauthorized("This relay needs an API key beside the relay's token: send it as X-Ollama-Api-Key.")
        bearer = access.bearer_token(own.get(b"authorization", b""))
        if bearer:
            return f"token {hashlib.sha256(bearer).hexdigest()[:32]}"
        return f"address {address}"

    async def _body(self, exchange: Exchange) -> bytes:
        """The whole body, within the cap. What is returned is held in the budget."""
        head, plane = exchange.head, self._plane
        if not head.has_body:
            exchange.body_read = True
            return b""
        most = self._options().max_request_bytes
        length = head.content_length
        if length is not None and length > most:
            raise BodyTooLarge
        exchange.limit(exchange.snapshot.limits.body_idle_s, BodyTimeout)
        if length is None:
            body = await read_chunked(exchange.receive, most, plane.budget)
        else:
            plane.budget.hold(length)
            try:
                body = await read_announced(exchange.receive, length)
            except BaseException:
                plane.budget.release(length)
                raise
        exchange.body_read = True
        exchange.bytes_in = len(body)
        return body

    async def _call(
        self, exchange: Exchange, relay: Worker, caller: str, body: bytes, message: rpc.Envelope | None
    ) -> None:
        plane, options = self._plane, self._options()
        kind = _KINDS[message.kind] if message is not None else "stream" if exchange.method == "GET" else "message"
        plane.counters[f"mcp:{kind}"] += 1
        call = Call(
            method=exchange.method.encode(),
            target=b"/",
            header_lines=b"%b%bx-request-id: %b\r\n"
            % (exchange.head.lines, exchange.credentials, exchange.request_id.encode()),
            body=body,
        )

        def opening(request: bytes) -> payloads.Open:
            asked = payloads.RelayCall(
                caller=caller,
                kind=kind,
                method=message.method if message is not None else "",
                request_id=exchange.request_id,
                token=_token(exchange.credentials),
                request=request,
            )
            return payloads.Open("relay", relay.id, 0, payloads.encode(asked))

        upstream = HubUpstream(self._hub, plane.loop)
        try:
            exchange.limit(options.timeout_s, BackendTimeout)
            upstream.ask(call, opening)
            exchange.sent_at = plane.clock()
            answer = await upstream.answer()
            await self._pass_on(exchange, upstream, answer, message)
        finally:
            upstream.close()

    async def _pass_on(
        self, exchange: Exchange, upstream: HubUpstream, answer: Answer, message: rpc.Envelope | None
    ) -> None:
        """Hand the answer over: whole, or event by event for as long as it lasts."""
        plane = self._plane
        headers = response_headers(answer.headers)
        events = _is_events(headers)
        headers.append((b"x-request-id", exchange.request_id.encode()))
        if answer.content_length is not None:
            headers.append((b"content-length", b"%d" % answer.content_length))
        exchange.status = answer.status
        exchange.committed = True
        # A stream of events may have nothing to say for hours; a body may not stop in the middle.
        exchange.limit(None if events else exchange.snapshot.limits.stream_idle_s, None if events else BackendStalled)
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if not answer.complete and not upstream.has_bytes():
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": True})
        identity = message.id if message is not None and message.kind == "request" else b""
        pump = Pump(
            exchange,
            upstream,
            None,
            loop=plane.loop,
            clock=plane.clock,
            marked=False,
            record=plane.recorder.put,
            error_event=lambda error: (
                rpc_errors.event(error, identity, exchange.request_id) if events and identity else b""
            ),
            stall_s=exchange.snapshot.limits.write_stall_s,
        )
        upstream.pipe(pump)
        await pump.done

    async def _refuse(self, exchange: Exchange, error: FleetError, identity: bytes) -> None:
        """Answer with an error, unless the answer is under way already: then the abort of the connection says it."""
        if exchange.recorded:
            return
        plane = self._plane
        if isinstance(error, ClientGone):
            exchange.fail(error, "client_gone")
            exchange.status = exchange.status or 499
            plane.recorder.put(exchange)
            return
        if exchange.committed:
            exchange.fail(error, "truncated")
            plane.recorder.put(exchange)
            return
        exchange.fail(error, "backend_error" if error.side == "backend" else "refused")
        exchange.status = rpc_errors.status(error)
        plane.recorder.put(exchange)
        plane.counters[f"mcp_refused:{error.code}"] += 1
        close = not await linger.before(exchange) or plane.draining
        headers = answers.refusal_headers(error, exchange.request_id, draining=close)
        body = rpc_errors.body(error, identity, exchange.request_id)
        await answers.respond(exchange.send, exchange.status, headers, body)
        await linger.after(exchange)


def _read(exchange: Exchange, body: bytes) -> rpc.Envelope | None:
    """What a POST says; None for other methods. Raises BadRpc."""
    return rpc.read(body) if exchange.method == "POST" else None


def _token(credentials: bytes) -> str:
    """The bearer token of forwarded credentials, "" when there is none."""
    for line in credentials.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"authorization":
            return (access.bearer_token(value.strip()) or b"").decode("latin-1")
    return ""


def _is_events(headers: Headers) -> bool:
    return any(name == b"content-type" and value[: len(_EVENTS)].lower() == _EVENTS for name, value in headers)
