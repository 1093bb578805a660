"""`/api/transfer`: one caller's body becomes another one's answer, also when the two came to different processes.

The hub brings the two ends together (`hub/channels.py`); here an end is an HTTP request. A writer's body is not read
before the reader is there, but for a little that shows whether the writer still is. A reader gets its head with the
first byte, so that what fails before is a plain error. Channel ids are secrets: records and logs have the template.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from typing import Any, TypeVar

from fleetproxy.core import access, roles
from fleetproxy.core.operation import Endpoint
from fleetproxy.errors import (
    BackendError,
    ClientGone,
    ConnectFailed,
    Draining,
    FleetError,
    TransferFailed,
    TransferUnknown,
    Unauthorized,
)
from fleetproxy.families import transfer
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.proxy import answers, doors, linger
from fleetproxy.proxy.body import pieces_of
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.pump import Pump
from fleetproxy.settings import Settings
from fleetproxy.transport.base import Answer, Headers
from fleetproxy.transport.hub import HubClient
from fleetproxy.transport.hub_upstream import HubUpstream
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.head import Head
from fleetproxy.wire.headers import GUARDS

#: Of a waiting writer's body so much is read ahead, to notice that it has left.
AHEAD_BYTES = 64 * 1024
#: The hub answers a create within this.
CREATE_S = 5.0
_JSON = (b"content-type", b"application/json")
_Upstream = TypeVar("_Upstream", bound=HubUpstream)


class Reading(HubUpstream):
    """A reader's end: the hub hears when everything was handed over, or that it was not."""

    __slots__ = ("_channel_stream", "_handed_over")

    def begin(self, opening: payloads.Open) -> None:
        super().begin(opening)
        self._channel_stream = self._number
        self._handed_over = False

    def _data(self, payload: bytes) -> None:
        if payload and len(payload) == self._left:
            # The caller sees by the length that it has all, and may leave before the writer's end has come through.
            self._left = 0
            self._pieces.append(payload)
            self._end()
        else:
            super()._data(payload)

    def handed_over(self) -> None:
        """The caller has all of it."""
        self._handed_over = True
        self._hub.send(frames.encode(frames.END, self._channel_stream))

    def close(self) -> None:
        if self._whole and not self._handed_over:
            # For us the stream is over; the writer still waits for a word.
            self._handed_over = True
            reset = payloads.encode(payloads.Reset(ClientGone.code))
            self._hub.send(frames.encode(frames.RESET, self._channel_stream, reset))
        super().close()


class Transfer:
    """Serves the family's endpoints in one process."""

    def __init__(self, plane: Plane, hub: HubClient, settings: Callable[[], Settings]) -> None:
        self._plane = plane
        self._hub = hub
        self._settings = settings
        #: Exchanges whose other end is not there yet.
        self._waiting: set[Exchange] = set()
        plane.on_drain.append(self._drain)

    async def handle(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint, head: Head) -> None:
        plane = self._plane
        exchange = plane.begin(scope, receive, send, endpoint, head)
        exchange.raw_path = endpoint.path.encode()
        try:
            doors.check_plugin("transfer", exchange.snapshot.access)
            owner = self._identify(exchange)
            if plane.draining:
                raise Draining
            if endpoint.path != transfer.WRITE.path:
                await self._create(exchange, owner)
                return
            channel_id = transfer.channel_id_of(scope["raw_path"])
            if not channel_id:
                raise TransferUnknown
            if endpoint is transfer.READ:
                await self._read(exchange, owner, channel_id)
            else:
                await self._write(exchange, owner, channel_id)
        except FleetError as error:
            await self._refuse(exchange, error)
        except asyncio.CancelledError:
            if exchange.interruption is None:
                exchange.fail(ClientGone(), "aborted")
                raise
            await self._refuse(exchange, exchange.interruption)
        finally:
            self._waiting.discard(exchange)
            plane.end(exchange)

    def _identify(self, exchange: Exchange) -> str:
        """Who asks, as channels know it: an API key, the client key, a role; an address where nobody needs one."""
        own, rules = exchange.head.own, exchange.snapshot.access
        caller = access.identify(own, exchange.snapshot.principals, now_s=exchange.started_at_us / 1e6)
        principal = exchange.principal = caller.principal
        address = exchange.remote_ip or ""
        exchange.source = access.source(own, principal, address, rules.source_names)
        if principal is not None:
            return f"key {principal.name}"[:256]
        bearer = access.bearer_token(own.get(b"authorization", b""))
        if bearer and (rules.client_key_digest or rules.client_keys):
            digest = hashlib.sha256(bearer).digest()
            if hmac.compare_digest(digest, rules.client_key_digest):
                return "client key"
            for name, known in rules.client_keys:
                if hmac.compare_digest(digest, known):
                    return f"client key {name}"[:256]
        exchange.key_unknown = caller.key_unknown
        given = self._plane.roles(exchange.scope, own)
        if roles.any_of(given, (*rules.api_http_roles, *rules.client_http_roles)):
            return f"roles {','.join(sorted(given))}"[:256]
        if rules.transfer_required:
            raise Unauthorized
        return f"address {address}"

    # --- the three calls ---------------------------------------------------------------------------------------------

    async def _create(self, exchange: Exchange, owner: str) -> None:
        exchange.limit(CREATE_S, TransferFailed)
        upstream = self._open(HubUpstream(self._hub, self._plane.loop), payloads.Transfer("create", owner))
        try:
            answer = await upstream.answer()
            body = upstream.take() if answer.complete else (await upstream.read(4096))[0]
        finally:
            upstream.close()
        await self._answer(exchange, body)

    async def _read(self, exchange: Exchange, owner: str, channel_id: str) -> None:
        upstream = self._open(Reading(self._hub, self._plane.loop), payloads.Transfer("read", owner, channel_id))
        try:
            self._waiting.add(exchange)
            try:
                answer = await upstream.answer()
            except BackendError:
                raise TransferFailed from None
            self._waiting.discard(exchange)
            exchange.limit(self._settings().transfer.idle_s, TransferFailed)
            await self._pass_on(exchange, upstream, answer)
        finally:
            upstream.close()

    async def _pass_on(self, exchange: Exchange, upstream: Reading, answer: Answer) -> None:
        plane = self._plane
        exchange.status = 200
        exchange.committed = True
        headers: Headers = [pair for pair in answer.headers if pair[0] == b"content-type"]
        headers += GUARDS
        headers.append((b"x-request-id", exchange.request_id.encode()))
        if answer.content_length is not None:
            headers.append((b"content-length", b"%d" % answer.content_length))
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        pump = Pump(
            exchange,
            upstream,
            None,
            loop=plane.loop,
            clock=plane.clock,
            marked=False,
            record=plane.recorder.put,
            error_event=_no_event,
        )
        upstream.pipe(pump)
        if await pump.done:
            upstream.handed_over()

    async def _write(self, exchange: Exchange, owner: str, channel_id: str) -> None:
        head, loop = exchange.head, self._plane.loop
        asked = payloads.Transfer("write", owner, channel_id, head.own.get(b"content-type", b"")[:1024], _length(head))
        upstream = self._open(HubUpstream(self._hub, loop), asked)
        self._waiting.add(exchange)
        paired = asyncio.ensure_future(upstream.answer())
        feeding = asyncio.ensure_future(self._feed(exchange, upstream, paired))
        try:
            first: set[asyncio.Future[Any]] = {paired, feeding}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()  # it ends well only after the reader has come; else the writer left
            try:
                await paired
            except BackendError:
                raise TransferFailed from None
            self._waiting.discard(exchange)
            await self._finish(upstream, feeding)
        finally:
            await _drop(paired, feeding)
            upstream.close()
        await self._answer(exchange, transfer.DONE)

    async def _finish(self, upstream: HubUpstream, feeding: asyncio.Future[None]) -> None:
        """Until the reader has it all. Raises TransferFailed when it will not, ClientGone when the writer left."""
        ending = asyncio.ensure_future(upstream.read(0))
        try:
            first: set[asyncio.Future[Any]] = {ending, feeding}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
            _, whole = await ending
            if not whole:
                raise TransferFailed
        finally:
            await _drop(ending)

    async def _feed(self, exchange: Exchange, upstream: HubUpstream, paired: asyncio.Future[Answer]) -> None:
        """The writer's body, on to the reader. Returns when all of it is on its way."""
        ahead: list[bytes] = []
        ahead_bytes = 0

        def flush(_: object = None) -> None:
            for piece in ahead:
                upstream.write(piece)  # far less than a window: never has to wait
            ahead.clear()

        paired.add_done_callback(flush)
        if b"expect" in exchange.head.own:
            await asyncio.wait({paired})  # our first look at its body tells it to go on
        idle_s = self._settings().transfer.idle_s
        if exchange.head.has_body:
            async for piece in pieces_of(exchange.receive):
                exchange.bytes_in += len(piece)
                if not paired.done():
                    ahead.append(piece)
                    ahead_bytes += len(piece)
                    if ahead_bytes >= AHEAD_BYTES:
                        await asyncio.wait({paired})
                    continue
                flush()
                waiting = upstream.write(piece)
                if waiting is not None:
                    # A reader that takes nothing is its own process's business.
                    exchange.limit(None, None)
                    await waiting
                exchange.limit(idle_s, TransferFailed)
        exchange.limit(None, None)
        exchange.body_read = True  # from here on the sweeper notices when the writer leaves
        await asyncio.wait({paired})
        flush()
        upstream.write_end()

    # --- answers -----------------------------------------------------------------------------------------------------

    def _open(self, upstream: _Upstream, asked: payloads.Transfer) -> _Upstream:
        try:
            upstream.begin(payloads.Open("channel", "", 0, payloads.encode(asked)))
        except ConnectFailed:
            raise Draining("The hub is restarting; try again shortly.") from None
        return upstream

    async def _answer(self, exchange: Exchange, body: bytes) -> None:
        exchange.limit(None, None)
        exchange.status = 200
        exchange.committed = True
        exchange.bytes_out = len(body)
        self._plane.recorder.put(exchange)
        identifier = (b"x-request-id", exchange.request_id.encode())
        await answers.respond(exchange.send, 200, [_JSON, identifier], body)

    async def _refuse(self, exchange: Exchange, error: FleetError) -> None:
        """Answer with an error; where the answer has begun, the aborted connection says it."""
        if exchange.recorded:
            return
        recorder = self._plane.recorder
        if isinstance(error, ClientGone):
            exchange.fail(error, "client_gone")
            exchange.status = exchange.status or 499
            recorder.put(exchange)
            return
        if exchange.committed:
            exchange.fail(error, "truncated")
            recorder.put(exchange)
            return
        exchange.fail(error, "backend_error" if error.side == "backend" else "refused")
        exchange.status = error.status
        recorder.put(exchange)
        # A writer in the middle is told at once: the rest may take hours.
        begun = exchange.bytes_in > 0
        close = begun or not await linger.before(exchange) or self._plane.draining
        await answers.refuse(exchange.send, "word", error, exchange.request_id, draining=close)
        await linger.after(exchange)

    def _drain(self) -> None:
        """We are leaving: who still waits for the other end can do so elsewhere."""
        for exchange in tuple(self._waiting):
            exchange.interrupt(Draining())


async def _drop(*parts: asyncio.Future[Any]) -> None:
    """End what runs beside; how it ended does not matter any more."""
    for part in parts:
        part.cancel()
    await asyncio.wait(parts)
    for part in parts:
        if not part.cancelled():
            part.exception()


def _length(head: Head) -> int | None:
    """What the writer announces: no body at all is an empty one."""
    return head.content_length if head.has_body else 0


def _no_event(error: FleetError) -> bytes:
    return b""
