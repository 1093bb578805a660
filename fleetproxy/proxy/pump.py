"""The one primitive that moves an answer's body to the caller: called from the read callback, wakes no task per piece.

The object read is the object sent. When the caller does not read, the backend is paused. The row is written before the
piece that ends the stream. A stream without its end marker, or broken, ends visibly: the dialect's error event, then an
aborted connection (the application returns without a final piece).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from fleetproxy.errors import BackendLost, ClientGone, FleetError, StreamTruncated
from fleetproxy.listen import Send, taken
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.transport.base import Upstream


class Tap(Protocol):
    """Passive reader of the passing bytes (`wire.tap`)."""

    @property
    def terminal(self) -> bool: ...

    def see(self, chunk: bytes) -> bool:
        """True when the end marker has just gone by."""


class Pump:
    """A `transport.base.Sink` for one exchange. `done` resolves to True when the body went out whole."""

    __slots__ = (
        "_clock",
        "_error_event",
        "_exchange",
        "_marked",
        "_patience",
        "_record",
        "_send",
        "_stall_s",
        "_tap",
        "_untaken",
        "_upstream",
        "done",
    )

    def __init__(
        self,
        exchange: Exchange,
        upstream: Upstream,
        tap: Tap | None,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        marked: bool,
        record: Callable[[Exchange], None],
        error_event: Callable[[FleetError], bytes],
        stall_s: float | None = None,
    ) -> None:
        self.done: asyncio.Future[bool] = loop.create_future()
        self._exchange = exchange
        self._send: Send = exchange.send
        self._upstream = upstream
        self._tap = tap
        self._clock = clock
        #: The body must show its dialect's end marker to count as whole.
        self._marked = marked
        self._record = record
        self._error_event = error_event
        #: How long the caller may read nothing; None: the exchange's own limit holds meanwhile too.
        self._stall_s = stall_s
        #: Pieces that wait for the caller to read; and the limit that held for the backend before the first of them.
        self._untaken = 0
        self._patience: tuple[float | None, type[FleetError] | None] = (None, None)

    def piece(self, data: bytes, last: bool) -> None:
        if self.done.done():
            return
        try:
            exchange = self._exchange
            exchange.progress += 1
            tap = self._tap
            if data:
                exchange.bytes_out += len(data)
                exchange.chunks_out += 1
                if exchange.first_byte_at is None:
                    exchange.first_byte_at = self._clock()
                if tap is not None and tap.see(data):
                    self._record(exchange)
            if last:
                if self._marked and tap is not None and not tap.terminal:
                    if data:
                        self._send({"type": "http.response.body", "body": data, "more_body": True})
                    self.broken(StreamTruncated())
                    return
                self._record(exchange)
            waiting: Any = self._send({"type": "http.response.body", "body": data, "more_body": not last})
            if last:
                if not taken(waiting):
                    if self._stall_s is not None:
                        exchange.limit(self._stall_s, ClientGone)
                    waiting.add_done_callback(self._finished, context=None)
                else:
                    self.done.set_result(True)
            elif not taken(waiting):
                self._hold(waiting)
        except Exception as error:
            if not self.done.done():
                self.done.set_exception(error)

    def broken(self, error: Exception) -> None:
        if self.done.done():
            return
        exchange = self._exchange
        failure = error if isinstance(error, FleetError) else BackendLost()
        if not exchange.recorded:
            exchange.fail(failure, "truncated")
            event = self._error_event(failure)
            if event:
                self._send({"type": "http.response.body", "body": event, "more_body": True})
            self._record(exchange)
        self.done.set_result(False)

    def _hold(self, waiting: Any) -> None:
        """The caller does not read: the backend has to wait, and it is the caller's time that runs meanwhile."""
        if not self._untaken:
            exchange = self._exchange
            self._patience = (exchange.time_limit_s, exchange.timeout_error)
            if self._stall_s is not None:
                exchange.limit(self._stall_s, ClientGone)
            self._upstream.pause()
        self._untaken += 1
        waiting.add_done_callback(self._resumed, context=None)

    def _resumed(self, _future: Any, context: Any = None) -> None:
        self._exchange.progress += 1
        self._untaken -= 1
        if not self._untaken:
            self._exchange.limit(*self._patience)
            self._upstream.resume()

    def _finished(self, _future: Any, context: Any = None) -> None:
        if not self.done.done():
            self.done.set_result(True)
