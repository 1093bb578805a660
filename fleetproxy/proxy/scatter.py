"""One embeddings request on many servers at once: slices out, one answer back.

A backend with an `embedding_batch_size` gets no more inputs than that at once. A longer request is shared out over the
best-placed backends that have one, by that size and their free slots; each has several slices under way, and who is
done takes over from who is behind (`lanes`). Leaving, timeouts and draining cancel all slices together.
"""

from __future__ import annotations

import re

import msgspec

from fleetproxy.core import batching
from fleetproxy.core.operation import Operation
from fleetproxy.core.selection import Wait, routes_of
from fleetproxy.core.table import Route
from fleetproxy.errors import BackendTimeout, ClientGone
from fleetproxy.proxy.answers import explain_headers
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.lanes import Declined, Job
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.relay import Relay
from fleetproxy.transport.base import Headers
from fleetproxy.wire import report
from fleetproxy.wire.head import Head
from fleetproxy.wire.headers import response_headers
from fleetproxy.wire.peek import Peek

#: The merged answer goes out in pieces of about this.
PIECE_BYTES = 256 * 1024

_ENCODING = re.compile(rb"(?m)^accept-encoding:[^\r\n]*\r\n", re.IGNORECASE)
_JSON = (b"content-type", b"application/json")


class Scatter:
    """Serves requests of the shape "scatter". One per process."""

    def __init__(self, plane: Plane, relay: Relay) -> None:
        self._plane = plane
        self._relay = relay

    async def serve(self, exchange: Exchange, operation: Operation, body: bytes, seen: Peek) -> None:
        """Serve one request, split where that helps and as it came where not. Raises FleetError as the relay does."""
        n = self._worth(exchange, operation, seen)
        if not n:
            await self._relay.relay(exchange, operation, body, seen)
            return
        decision = self._relay.decide(exchange, operation)
        backends = exchange.snapshot.table.backends
        best = backends[decision.routes[0].backend].backend
        if best.embedding_batch_size is None or n <= best.embedding_batch_size:
            await self._relay.relay(exchange, operation, body, seen, decision)
            return
        exchange.operation = operation = msgspec.structs.replace(operation, items=n)
        routes, granted = decision.routes, isinstance(decision, Wait)
        spare: tuple[Route, ...] = ()
        if isinstance(decision, Wait):
            first = await self._relay.stand(exchange, operation, decision.routes)
            routes = (first, *(route for route in routes if route is not first))
        else:
            spare = decision.full
        job = Job(
            self._plane,
            self._relay,
            exchange=exchange,
            operation=operation,
            body=body,
            seen=seen,
            routes=routes,
            spare=spare,
            granted=granted,
        )
        exchange.head = Head(exchange.head.own, _ENCODING.sub(b"", exchange.head.lines))
        exchange.backend = backends[job.routes[0].backend].backend
        exchange.model_served = job.routes[0].model or None
        exchange.limit(exchange.snapshot.limits.first_byte_s, BackendTimeout)
        try:
            await job.run()
            merged = batching.merge(job.parts, job.rows_key)
            exchange.usage = report.of_body(merged.rest)
            await self._answer(exchange, job, 200, [_JSON], merged.pieces)
        except Declined as declined:
            await self._answer(exchange, job, declined.status, declined.headers, [declined.body])
        finally:
            job.close()

    def _worth(self, exchange: Exchange, operation: Operation, seen: Peek) -> int:
        """How many inputs there are, if some backend would take them in more than one go; else 0."""
        table = exchange.snapshot.table
        sizes = [table.backends[route.backend].backend.embedding_batch_size for route in routes_of(table, operation)]
        smallest = min((size for size in sizes if size is not None), default=None)
        if smallest is None or "input" not in seen.fields:
            return 0
        if any(field != "input" and field.casefold() == "input" for field in seen.fields):
            return 0  # which of the two a server reads is its own affair
        n = seen.inputs
        return n if n > smallest else 0

    async def _answer(self, exchange: Exchange, job: Job, status: int, headers: Headers, pieces: list[bytes]) -> None:
        """Hand the answer over: one row, then one body."""
        plane = self._plane
        length = sum(map(len, pieces))
        identifier = exchange.request_id.encode()
        headers = response_headers(headers) + [
            pair for pair in explain_headers(exchange) if pair[0] != b"x-fleet-backend"
        ]
        if not exchange.snapshot.access.hide_backends:
            names = ", ".join(sorted(job.used))
            headers.append((b"x-fleet-backend", names.encode("ascii", "backslashreplace")))
        took_ms = (plane.clock() - (job.sent_at or exchange.started_at)) * 1000
        headers += [
            (b"server-timing", b"queue;dur=%.1f, upstream;dur=%.1f" % (exchange.queue_s * 1000, took_ms)),
            (b"x-fleet-slices", b"%d" % job.slices),
            (b"x-request-id", identifier),
            (b"request-id", identifier),
            (b"content-length", b"%d" % length),
        ]
        exchange.sent_at = job.sent_at
        exchange.first_byte_at = plane.clock()
        exchange.status = status
        exchange.committed = True
        exchange.bytes_out = length
        exchange.chunks_out = 1
        exchange.limit(exchange.snapshot.limits.write_stall_s, ClientGone)
        plane.recorder.put(exchange)
        send = exchange.send
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for block in _blocks(pieces):
            await send({"type": "http.response.body", "body": block, "more_body": True})
            exchange.progress += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _blocks(pieces: list[bytes]) -> list[bytes]:
    """The same bytes in fewer pieces."""
    blocks: list[bytes] = []
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            blocks.append(b"".join(gathered))
            gathered, size = [], 0
    if gathered:
        blocks.append(b"".join(gathered))
    return blocks
