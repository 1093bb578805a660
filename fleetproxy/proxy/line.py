"""Standing in line as one exchange: the wait itself, and what a streaming caller sees of it.

Callers of an event stream get comment lines (every SSE decoder skips them) with their position, the first after one
second. They do not set the commit point; they do mean that the head is out, so that errors go into the stream.
"""

from __future__ import annotations

import asyncio

from fleetproxy.core.operation import Operation
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.plane import Plane

FIRST_COMMENT_S, NEXT_COMMENT_S = 1.0, 5.0


class Line:
    """One exchange's stay in the line."""

    def __init__(self, plane: Plane, exchange: Exchange, operation: Operation) -> None:
        self._plane = plane
        self._exchange = exchange
        self._position = 0
        marker = exchange.endpoint.marker_stream
        self._comments = operation.stream and marker is not None and marker.startswith("sse")

    async def stand(self, columns: tuple[int, ...]) -> int:
        """The granted column, its slot counted. Raises QueueFull, QueueTimeout, NoBackend."""
        plane, exchange = self._plane, self._exchange
        principal = exchange.principal.name if exchange.principal is not None else exchange.source
        began = plane.clock()
        talking = asyncio.ensure_future(self._talk()) if self._comments else None
        exchange.limit(None, None)
        try:
            return await plane.waiting.wait(columns, principal, exchange.snapshot.limits.queue_wait_s, self._moved)
        finally:
            exchange.queue_s += plane.clock() - began
            if talking is not None:
                talking.cancel()

    def _moved(self, position: int) -> None:
        self._position = position

    async def _talk(self) -> None:
        exchange = self._exchange
        await asyncio.sleep(FIRST_COMMENT_S)
        identifier = exchange.request_id.encode()
        exchange.started_by_us = True
        exchange.status = 200
        await exchange.send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream"),
                    (b"cache-control", b"no-store"),
                    (b"x-accel-buffering", b"no"),
                    (b"x-request-id", identifier),
                    (b"request-id", identifier),
                ],
            }
        )
        while True:
            comment = b": queue position %d\n\n" % self._position
            await exchange.send({"type": "http.response.body", "body": comment, "more_body": True})
            await asyncio.sleep(NEXT_COMMENT_S)
