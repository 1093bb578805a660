"""Every exchange ends here, once: its row goes to the spool before the last piece goes to the caller."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fleetproxy.link.spool import Spool
from fleetproxy.proxy.exchange import Exchange


class Recorder:
    """Writes audit rows. One write per row; a row that cannot be written is counted, never waited for."""

    def __init__(self, spool: Spool, process: str, clock: Callable[[], float]) -> None:
        self.spool = spool
        self._process = process
        self._clock = clock
        self._sequence = 0
        self._buffer = bytearray()
        self._encoder = msgspec.json.Encoder()

    def put(self, exchange: Exchange) -> None:
        """Write the row, if it has not been written."""
        if exchange.recorded:
            return
        exchange.recorded = True
        self._sequence += 1
        tap = exchange.tap
        if tap is not None:
            seen = tap.end()
            exchange.usage = seen.usage
            if seen.error is not None and exchange.error is None:
                exchange.error = "backend_error_event"
                exchange.outcome = "backend_error"
        record = exchange.record(now=self._clock(), process=self._process, sequence=self._sequence)
        buffer = self._buffer
        self._encoder.encode_into(record, buffer)
        buffer += b"\n"
        self.spool.put(buffer)
