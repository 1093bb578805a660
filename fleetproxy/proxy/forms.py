"""Forms with files (audio): read as they pass, up to the field that says the model; then on to a backend as they come.

What came before the model was known is kept (`spool_file.py`), and sent first. While nothing but that has been sent, a
backend that could not be reached, or had no room after all, costs another route instead of the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from fleetproxy.core.operation import Operation
from fleetproxy.core.selection import renames, routes_of
from fleetproxy.core.table import Route
from fleetproxy.errors import (
    BackendError,
    BackendTimeout,
    BodyTimeout,
    BodyTooLarge,
    EncodingRefused,
    FleetError,
    FormRefused,
    ModelMissingInForm,
    ModelUnknown,
    WorkerBusy,
)
from fleetproxy.proxy.body import pieces_of
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.relay import Relay, in_turn, verdict
from fleetproxy.proxy.spool_file import MEMORY_BYTES, Disk, Kept
from fleetproxy.transport.base import Answer, Call, Upstream
from fleetproxy.wire.multipart import BadForm, Field, FormReader, boundary_of

MODEL, STREAM = "model", "stream"
MAX_MODEL_CHARACTERS = 256
#: Go's spellings, which nfrx's clients may use.
_TRUE = frozenset({b"1", b"t", b"T", b"TRUE", b"true", b"True"})


class Form:
    """One form on its way. `close` it."""

    def __init__(self, exchange: Exchange, disk: Disk) -> None:
        if exchange.head.own.get(b"content-encoding", b"identity") != b"identity":
            raise EncodingRefused
        boundary = _sound(boundary_of, exchange.head.own.get(b"content-type", b""))
        self._exchange = exchange
        self._reader = FormReader(boundary, (MODEL, STREAM))
        self._pieces = pieces_of(exchange.receive)
        #: The look at the body that is under way: it outlives an attempt.
        self._looking: asyncio.Task[bytes | None] | None = None
        self._whole = False
        self.kept = Kept(disk)
        #: All that has been read is in `kept`: it can be sent again.
        self.rewindable = True

    async def model(self) -> Field:
        """Read on until the model is known. Raises FormRefused when the form has none."""
        while MODEL not in self._reader.fields:
            piece = await self._next()
            if piece is None:
                raise ModelMissingInForm
            await self.kept.add(piece)
        field = self._reader.fields[MODEL]
        if not field.value.strip() or len(field.value) > MAX_MODEL_CHARACTERS:
            raise ModelMissingInForm
        return field

    @property
    def stream(self) -> bool:
        """What the `stream` part says, as far as it has come."""
        field = self._reader.fields.get(STREAM)
        return field is not None and field.value.strip() in _TRUE

    async def rest(self, answering: asyncio.Future[Answer]) -> AsyncIterator[bytes]:
        """What comes after what is kept, until there is an answer. As long as it is little, it is kept too."""
        while (piece := await self._next(answering)) is not None:
            if self.rewindable and self.kept.size + len(piece) <= MEMORY_BYTES:
                await self.kept.add(piece)
            else:
                self.rewindable = False
            yield piece

    async def close(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.wait({looking})
            if not looking.cancelled():
                looking.exception()
        self.kept.close()

    async def _next(self, answering: asyncio.Future[Answer] | None = None) -> bytes | None:
        """The next piece, looked at; None at the end, or when there is an answer. Raises FormRefused, ClientGone."""
        if self._whole:
            return None
        exchange = self._exchange
        exchange.limit(exchange.snapshot.limits.body_idle_s, BodyTimeout)
        looking = self._looking
        if looking is None:
            looking = self._looking = asyncio.ensure_future(anext(self._pieces, None))
        if answering is not None:
            either: set[asyncio.Future[Any]] = {looking, answering}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not looking.done():
                return None
        piece = await asyncio.shield(looking)
        self._looking = None
        if piece is None:
            _sound(self._reader.finish)
            self._whole = exchange.body_read = True
            return None
        exchange.bytes_in += len(piece)
        _sound(self._reader.feed, piece)
        return piece


class Forms:
    """Serves forms. One per process."""

    def __init__(self, plane: Plane, relay: Relay, disk: Disk) -> None:
        self._plane = plane
        self._relay = relay
        self._disk = disk

    async def serve(self, exchange: Exchange, operation: Operation) -> None:
        """Serve one form; `operation` is without its model. Raises FleetError when nobody could serve it."""
        form = Form(exchange, self._disk)
        try:
            field = await form.model()
            name = field.value.decode("utf-8", "replace").strip()
            exchange.operation = operation = operation.of(name, stream=form.stream)
            await self._relay_form(exchange, operation, form, field)
        finally:
            await form.close()

    async def _relay_form(self, exchange: Exchange, operation: Operation, form: Form, field: Field) -> None:
        plane, relay = self._plane, self._relay
        if not routes_of(exchange.snapshot.table, operation):
            await plane.settle(exchange)
        table = exchange.snapshot.table
        known = routes_of(table, operation) or operation.canonical in table.unavailable
        if exchange.endpoint.table == "asr" and not known:
            raise ModelUnknown(operation.model or "")  # workers say what they have; nobody else has it
        left, full = in_turn(relay.decide(exchange, operation))
        failures: list[FleetError] = []
        stood = False
        while True:
            granted = not left
            if granted:
                route = await relay.stand(exchange, operation, full)
                full.remove(route)
                stood = True
            else:
                route = left.popleft()
            backend = exchange.snapshot.table.backends[route.backend].backend
            if not granted:
                plane.board.add(backend.column, 1)
            try:
                await self._attempt(exchange, operation, route, form, field)
                return
            except (BackendError, BodyTooLarge) as error:
                failures.append(error)
                if isinstance(error, WorkerBusy) and not stood:
                    full.append(route)  # somebody took its last slot between our look and our asking
                again = form.rewindable and not exchange.committed and (left or full)
                if not again and isinstance(error, BodyTooLarge):
                    raise
                if not again or not (isinstance(error, BodyTooLarge) or error.resendable):
                    raise verdict(exchange, operation, failures) from None
                exchange.retries += 1
                plane.counters[f"retries:{error.code}"] += 1
            finally:
                plane.board.add(backend.column, -1)
                plane.freed(backend.column)

    async def _attempt(self, exchange: Exchange, operation: Operation, route: Route, form: Form, field: Field) -> None:
        """Send the form to one backend, and its answer to the caller."""
        plane, limits, relay = self._plane, exchange.snapshot.limits, self._relay
        backend = exchange.snapshot.table.backends[route.backend].backend
        exchange.backend = backend
        exchange.model_served = route.model or None
        exchange.attempt_began = plane.clock()
        instead = None
        call = relay.call(exchange, route, None)
        if route.model and renames(backend, operation, route):
            instead = (field, route.model.encode())
            call = _longer(call, len(instead[1]) - len(field.value))
        upstream: Upstream | None = None
        status: int | None = None
        failure: str | None = None
        try:
            upstream = await plane.transport(backend).open(backend, call, limits.connect_s)
            exchange.sent_at = plane.clock()
            answering = asyncio.ensure_future(upstream.answer())
            try:
                await self._feed(exchange, form, instead, upstream, answering)
                exchange.limit(limits.first_byte_s, BackendTimeout)
                answer = await answering
            finally:
                answering.cancel()
                await asyncio.wait({answering})
            status = answer.status
            plane.trips.answered(backend, status, answer.headers)
            if form.stream and not operation.stream:
                exchange.operation = operation = msgspec.structs.replace(operation, stream=True)
            await relay.commit(exchange, operation, upstream, answer)
        except FleetError as error:
            failure = error.code
            if isinstance(error, BackendError):
                plane.trips.failed(backend, error)
            raise
        except asyncio.CancelledError:
            interruption = exchange.interruption
            failure = interruption.code if interruption is not None else "aborted"
            if isinstance(interruption, BackendError):
                plane.trips.failed(backend, interruption)
            raise
        finally:
            if upstream is not None:
                upstream.close()
            exchange.close_attempt(plane.clock(), status, failure)

    async def _feed(
        self,
        exchange: Exchange,
        form: Form,
        instead: tuple[Field, bytes] | None,
        upstream: Upstream,
        answering: asyncio.Future[Answer],
    ) -> None:
        """Send what is kept, then what comes, until the form ends or the backend has answered without waiting."""
        patience_s = exchange.snapshot.limits.stream_idle_s
        for source in (form.kept.pieces(instead), form.rest(answering)):
            async for piece in source:
                if answering.done():
                    return
                exchange.progress += 1
                drained = upstream.write(piece)
                if drained is not None:
                    exchange.limit(patience_s, BackendTimeout)
                    waits: set[asyncio.Future[Any]] = {drained, answering}
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if exchange.body_read:
            upstream.write_end()


def _longer(call: Call, by_bytes: int) -> Call:
    length = call.content_length
    return msgspec.structs.replace(call, content_length=None if length is None else length + by_bytes)


def _sound(read: Any, *given: bytes) -> Any:
    """What reading gives. Raises FormRefused on what is no form."""
    try:
        return read(*given)
    except BadForm as error:
        raise FormRefused(f"The form cannot be read: {error}.") from None
