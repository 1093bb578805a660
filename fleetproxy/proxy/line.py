"""Standing in line as one exchange: the wait itself, and what a streaming caller sees of it.

Callers of an event stream get comment lines (every SSE decoder skips them) with their position, the first after one
second. Under `/api/<family>`, and where the caller asks for it (`x-fleet-queue-events: 1`), they get `nfrx.queue`
events instead: at once, when the position changes, and every ten seconds. Neither sets the commit point; both mean
that the head is out, so that errors go into the stream.
"""

from __future__ import annotations

import asyncio

from fleetproxy.core.operation import Operation
from fleetproxy.families.llm import nfrx
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.plane import Plane

FIRST_COMMENT_S, NEXT_COMMENT_S = 1.0, 5.0
#: Between two events when nothing moves; when everything does.
NEXT_EVENT_S, LEAST_S = 10.0, 0.25


class Line:
    """One exchange's stay in the line."""

    def __init__(self, plane: Plane, exchange: Exchange, operation: Operation) -> None:
        self._plane = plane
        self._exchange = exchange
        self._operation = operation
        self._position = 0
        self._news = asyncio.Event()

    async def stand(self, columns: tuple[int, ...]) -> int:
        """The granted column, its slot counted. Raises QueueFull, QueueTimeout, NoBackend."""
        plane, exchange = self._plane, self._exchange
        principal = exchange.principal.name if exchange.principal is not None else exchange.source
        began = plane.clock()
        talking = asyncio.ensure_future(self._talk()) if self._streams() else None
        exchange.limit(None, None)
        try:
            return await plane.waiting.wait(columns, principal, exchange.snapshot.limits.queue_wait_s, self._moved)
        finally:
            exchange.queue_s += plane.clock() - began
            if talking is not None:
                talking.cancel()

    def _streams(self) -> bool:
        marker = self._exchange.endpoint.marker_stream
        return self._operation.stream and marker is not None and marker.startswith("sse")

    def _moved(self, position: int) -> None:
        self._position = position
        self._news.set()

    async def _talk(self) -> None:
        exchange = self._exchange
        if exchange.endpoint.surface == "family" or exchange.head.own.get(b"x-fleet-queue-events") == b"1":
            await self._tell_events()
        else:
            await self._tell_comments()

    async def _tell_events(self) -> None:
        await self._news.wait()
        await self._begin()
        identifier, model = self._exchange.request_id, self._operation.model or ""
        while True:
            self._news.clear()
            await self._say(nfrx.queue_event(identifier, model, self._position))
            await asyncio.sleep(LEAST_S)
            try:
                async with asyncio.timeout(NEXT_EVENT_S - LEAST_S):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _tell_comments(self) -> None:
        await asyncio.sleep(FIRST_COMMENT_S)
        await self._begin()
        while True:
            await self._say(b": queue position %d\n\n" % self._position)
            await asyncio.sleep(NEXT_COMMENT_S)

    async def _begin(self) -> None:
        exchange = self._exchange
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

    async def _say(self, text: bytes) -> None:
        await self._exchange.send({"type": "http.response.body", "body": text, "more_body": True})
