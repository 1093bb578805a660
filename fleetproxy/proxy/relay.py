"""One request to one backend after another until one answers, then its answer to the caller.

    decide ──► attempt ──► answer ──► commit ──► pump
      ▲           │           │
      └── wait    └───────────┴──► next route (before the commit point only) or the error

What may be tried again is decided in `core/failover.py`; this module acts on it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from fleetproxy.core.failover import CannotServe, ModelMissing, final, pass_on
from fleetproxy.core.missing import model_unknown
from fleetproxy.core.operation import Operation
from fleetproxy.core.selection import Candidates, Refuse, Wait, rank, renames
from fleetproxy.core.table import Route
from fleetproxy.errors import (
    BackendError,
    BackendLost,
    BackendRefused,
    BackendStalled,
    BackendTimeout,
    BadResponse,
    BodyTimeout,
    ConnectionStale,
    FleetError,
    LoopDetected,
    ModelUnknown,
    WorkerBusy,
)
from fleetproxy.families.llm import errors as dialect_errors
from fleetproxy.proxy import linger
from fleetproxy.proxy.answers import error_event, explain_headers
from fleetproxy.proxy.body import pieces_of
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.line import Line
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.pump import Pump
from fleetproxy.transport.base import Answer, Call, Upstream
from fleetproxy.wire import report
from fleetproxy.wire.headers import content_type, response_headers
from fleetproxy.wire.peek import Peek, rewrite_model
from fleetproxy.wire.tap import Tap, ends_marked

#: Bytes of a refusal (404, 5xx) read to learn what it says before another server is asked.
REFUSAL_BYTES = 64 * 1024
_EVENT_STREAM, _NDJSON = b"text/event-stream", b"application/x-ndjson"
_MAY_BE_PASSED_ON = frozenset({404, 500, 502, 503})


class Relay:
    """Moves requests to backends and answers to callers. One per process."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def relay(
        self,
        exchange: Exchange,
        operation: Operation,
        body: bytes,
        seen: Peek | None,
        decided: Candidates | Wait | None = None,
    ) -> None:
        """Serve one request whose body is at hand. `decided` is what `decide` gave, where it was asked already.

        Raises FleetError when nobody could serve it.
        """
        plane = self._plane
        left, full = in_turn(decided or self.decide(exchange, operation))
        failures: list[FleetError] = []
        stood = False
        while True:
            granted = not left
            if granted:
                route = await self.stand(exchange, operation, full)
                full.remove(route)
                stood = True
            else:
                route = left.popleft()
            last = not left and not full
            backend = exchange.snapshot.table.backends[route.backend].backend
            if not granted:  # a granted slot is counted already
                plane.board.add(backend.column, 1)
            plane.trips.probing(backend.column)
            try:
                asked = body
                if seen is not None and route.model and renames(backend, operation, route):
                    asked = rewrite_model(body, route.model, seen)
                await self._attempt(exchange, operation, route, asked, failures, last=last)
                return
            except WorkerBusy as error:
                # Somebody took the worker's last slot between our look and our asking. It never saw the request.
                failures.append(error)
                if not stood:
                    full.append(route)
                elif last:
                    raise verdict(exchange, operation, failures) from None
            except BackendError as error:
                failures.append(error)
                if last or not pass_on(error, operation.endpoint, failures) or not plane.retries.retry(error):
                    raise verdict(exchange, operation, failures) from None
                exchange.retries += 1
                plane.counters[f"retries:{error.code}"] += 1
            finally:
                plane.board.add(backend.column, -1)
                plane.freed(backend.column)

    async def upload(self, exchange: Exchange, operation: Operation) -> None:
        """Serve a request whose body goes through as it comes: one backend, no second try once a byte was sent."""
        plane, limits = self._plane, exchange.snapshot.limits
        exchange.operation = operation
        decision = self.decide(exchange, operation)
        waits = isinstance(decision, Wait)
        route = await self.stand(exchange, operation, decision.routes) if waits else decision.routes[0]
        backend = exchange.snapshot.table.backends[route.backend].backend
        exchange.backend = backend
        if not waits:  # who stood in line has been counted when the slot was granted
            plane.board.add(backend.column, 1)
        exchange.attempt_began = plane.clock()
        upstream: Upstream | None = None
        try:
            call = self.call(exchange, route, None)
            upstream = await plane.transport(backend).open(backend, call, limits.connect_s)
            exchange.sent_at = plane.clock()
            answering = asyncio.ensure_future(upstream.answer())
            try:
                await self._feed(exchange, upstream, answering)
                exchange.limit(limits.first_byte_s, BackendTimeout)
                answer = await answering
            finally:
                answering.cancel()
            plane.trips.answered(backend, answer.status, answer.headers)
            await linger.before(exchange)
            await self.commit(exchange, operation, upstream, answer)
        except BackendError as error:
            plane.trips.failed(backend, error)
            exchange.close_attempt(plane.clock(), None, error.code)
            raise
        finally:
            if upstream is not None:
                upstream.close()
            exchange.close_attempt(plane.clock(), exchange.status, None)
            plane.board.add(backend.column, -1)
            plane.freed(backend.column)

    # --- choosing ------------------------------------------------------------------------------------------------

    def decide(self, exchange: Exchange, operation: Operation) -> Candidates | Wait:
        """Whom to ask, in order of preference. Raises what nobody can be asked for."""
        plane = self._plane
        via = exchange.head.own.get(b"via")
        if via is not None and plane.via in via:
            raise LoopDetected
        snapshot = exchange.snapshot
        pin_fallback = snapshot.access.pin_fallback and not operation.endpoint.pinned
        decision = rank(snapshot.table, operation, plane.loads, plane.rng, pin_fallback=pin_fallback)
        if isinstance(decision, Refuse):
            raise decision.error
        exchange.route_reason = decision.reason
        exchange.pin_ignored = decision.pin_ignored
        return decision

    async def stand(self, exchange: Exchange, operation: Operation, routes: Sequence[Route]) -> Route:
        """Stand in line for one of these, the first preferred; the one whose slot was granted, counted already."""
        backends = exchange.snapshot.table.backends
        columns = tuple([backends[route.backend].backend.column for route in routes])
        column = await Line(self._plane, exchange, operation).stand(columns)
        return routes[columns.index(column)]

    # --- one backend ---------------------------------------------------------------------------------------------

    async def _attempt(
        self,
        exchange: Exchange,
        operation: Operation,
        route: Route,
        body: bytes,
        failures: list[FleetError],
        *,
        last: bool,
    ) -> None:
        """Ask one backend and serve its answer. Raises BackendError when another one may be asked."""
        plane, limits, endpoint = self._plane, exchange.snapshot.limits, operation.endpoint
        backend = exchange.snapshot.table.backends[route.backend].backend
        exchange.backend = backend
        exchange.model_served = route.model or None
        exchange.attempt_began = plane.clock()
        upstream: Upstream | None = None
        status: int | None = None
        failure: str | None = None
        try:
            call = self.call(exchange, route, body)
            exchange.limit(limits.first_byte_s if endpoint.patient else limits.first_byte_other_s, BackendTimeout)
            transport = plane.transport(backend)
            try:
                upstream = await transport.open(backend, call, limits.connect_s)
                exchange.sent_at = plane.clock()
                answer = await upstream.answer()
            except ConnectionStale:
                # The server closed a kept connection just as we used it, and no byte of an answer came: asked once
                # more on a fresh one (reads only: writes never use kept connections). Not the server's failure.
                if upstream is not None:
                    upstream.close()
                call = self.call(exchange, route, body, fresh=True)
                upstream = await transport.open(backend, call, limits.connect_s)
                exchange.sent_at = plane.clock()
                answer = await upstream.answer()
            status = answer.status
            plane.trips.answered(backend, status, answer.headers)
            if status in _MAY_BE_PASSED_ON:
                await self._consider(exchange, operation, upstream, answer, failures, last=last)
            await self.commit(exchange, operation, upstream, answer)
        except BackendError as error:
            failure = error.code
            if not isinstance(error, (ModelMissing, CannotServe)):
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

    async def _consider(
        self,
        exchange: Exchange,
        operation: Operation,
        upstream: Upstream,
        answer: Answer,
        failures: list[FleetError],
        *,
        last: bool,
    ) -> None:
        """Whether this refusal should be answered by asking somebody else: raises ModelMissing or CannotServe then."""
        endpoint = operation.endpoint
        if not endpoint.read:
            return
        if answer.status == 404:
            if operation.model is None or (last and not failures):
                return
            body = await self._whole(exchange, upstream, answer)
            if not answer.complete:  # what has been read is gone: the rest alone must not look like an answer
                raise BadResponse("The server's refusal broke off, or is too long to be read.")
            if dialect_errors.is_model_missing(body):
                raise ModelMissing(operation.model)
            return
        if not last and not any(isinstance(failure, CannotServe) for failure in failures):
            raise CannotServe(answer.status)

    async def _whole(self, exchange: Exchange, upstream: Upstream, answer: Answer) -> bytes:
        """The (short) body of a refusal; it is kept for the caller in `answer.body`."""
        if not answer.complete:
            answer.body, complete = await upstream.read(REFUSAL_BYTES)
            answer.complete = complete
        elif answer.body is None:
            answer.body = upstream.take()
        return answer.body

    def call(self, exchange: Exchange, route: Route, body: bytes | None, *, fresh: bool = False) -> Call:
        """The request as this route's backend gets it."""
        backend = exchange.snapshot.table.backends[route.backend].backend
        head = exchange.head
        endpoint = exchange.endpoint
        query: bytes = exchange.scope["query_string"]
        target = endpoint.forward or exchange.raw_path
        if backend.path_prefix:
            target = backend.path_prefix.encode() + target
        if query:
            target = target + b"?" + query
        credentials = exchange.credentials
        if backend.api_key is not None:
            credentials = b"authorization: Bearer %b\r\n" % backend.api_key.encode()
        via, before = self._plane.via, head.own.get(b"via")
        if before is not None:
            via = before + b", " + via
        lines = b"%b%bx-request-id: %b\r\nvia: %b\r\nx-forwarded-for: %b\r\n" % (
            head.lines,
            credentials,
            exchange.request_id.encode(),
            via,
            (exchange.remote_ip or "unknown").encode(),
        )
        return Call(
            method=exchange.method.encode(),
            target=target,
            header_lines=lines,
            body=body,
            content_length=head.content_length if body is None else None,
            fresh=fresh or not endpoint.read,
        )

    # --- the answer ----------------------------------------------------------------------------------------------

    async def commit(self, exchange: Exchange, operation: Operation, upstream: Upstream, answer: Answer) -> None:
        """Hand the answer over. From here on nothing is tried again."""
        plane, limits, endpoint = self._plane, exchange.snapshot.limits, exchange.endpoint
        status = answer.status
        if exchange.started_by_us and (status != 200 or _EVENT_STREAM not in content_type(answer.headers)):
            text = dialect_errors.message_of(await self._whole(exchange, upstream, answer))
            raise BackendRefused(text or f"The server answered {status}.")
        headers = response_headers(answer.headers, backend_host=exchange.backend)
        exchange.status = status
        exchange.committed = True
        marked = status == 200 and operation.stream and ends_marked(endpoint, answer.headers, answer.content_length)
        exchange.takes_event = marked and answer.content_length is None
        took_ms = (plane.clock() - (exchange.sent_at or exchange.started_at)) * 1000
        identifier = exchange.request_id.encode()
        headers += explain_headers(exchange)
        headers.append((b"x-request-id", identifier))
        headers.append((b"request-id", identifier))
        if not exchange.body_read:
            headers.append((b"connection", b"close"))
        headers.append((b"server-timing", b"queue;dur=%.1f, upstream;dur=%.1f" % (exchange.queue_s * 1000, took_ms)))
        send = exchange.send
        if answer.complete and not exchange.started_by_us and not marked:
            body = upstream.take() if answer.body is None else answer.body
            exchange.usage = report.of_body(body)
            exchange.first_byte_at = plane.clock()
            exchange.bytes_out = len(body)
            exchange.chunks_out = 1
            if exchange.method != "HEAD" and status not in (204, 304):
                headers.append((b"content-length", b"%d" % len(body)))
            elif answer.content_length is not None:
                headers.append((b"content-length", b"%d" % answer.content_length))
            plane.recorder.put(exchange)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
            return
        tap = exchange.tap = Tap(endpoint, marked)
        if answer.content_length is not None and not exchange.started_by_us:
            headers.append((b"content-length", b"%d" % answer.content_length))
        if not exchange.started_by_us:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            if not answer.complete and not upstream.has_bytes():
                # The head goes out now, not with the first token.
                await send({"type": "http.response.body", "body": b"", "more_body": True})
        pump = Pump(
            exchange,
            upstream,
            tap,
            loop=plane.loop,
            clock=plane.clock,
            marked=marked,
            record=plane.recorder.put,
            error_event=lambda error: error_event(exchange, error),
            stall_s=limits.write_stall_s,
        )
        exchange.limit(limits.stream_idle_s, BackendStalled)
        upstream.pipe(pump)
        if not await pump.done:
            failure = exchange.error or BackendLost.code
            if exchange.backend is not None:
                plane.trips.failed(exchange.backend, BackendLost())
            plane.counters[f"truncated:{failure}"] += 1

    async def _feed(self, exchange: Exchange, upstream: Upstream, answering: asyncio.Future[Answer]) -> None:
        """Send the caller's body on as it comes, until it ends or the backend has answered without waiting for it."""
        limits = exchange.snapshot.limits
        exchange.limit(limits.body_idle_s, BodyTimeout)
        async for piece in pieces_of(exchange.receive):
            exchange.progress += 1
            exchange.bytes_in += len(piece)
            if answering.done():
                return
            drained = upstream.write(piece)
            if drained is not None:
                exchange.limit(limits.stream_idle_s, BackendTimeout)  # now it is the backend that takes its time
                waits: set[asyncio.Future[Any]] = {drained, answering}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                exchange.limit(limits.body_idle_s, BodyTimeout)
        exchange.body_read = True
        upstream.write_end()


def in_turn(decision: Candidates | Wait) -> tuple[deque[Route], list[Route]]:
    """Whom to ask, in this order; and for whom to stand in line when nobody of them is left."""
    if isinstance(decision, Wait):
        return deque(), list(decision.routes)
    return deque(decision.routes), list(decision.full)


def verdict(exchange: Exchange, operation: Operation, failures: list[FleetError]) -> FleetError:
    """The one error the caller sees when nobody is left to be asked."""
    failure = final(failures, operation.model or "")
    if isinstance(failure, ModelUnknown):
        snapshot = exchange.snapshot
        return model_unknown(snapshot.table, operation, hide_backends=snapshot.access.hide_backends)
    return failure
