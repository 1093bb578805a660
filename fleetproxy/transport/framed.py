"""A socket that speaks frames (`wire/frames.py`): one asyncio protocol for both ends of hub.sock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fleetproxy.wire.frames import Decoder, Frame, FrameError

_log = logging.getLogger("fleetproxy.hub")

#: Bytes that may wait for a peer that does not read. Streams are bounded by their credit; this is for everything.
MAX_UNSENT_BYTES = 64 * 1024 * 1024


class FramedConnection(asyncio.Protocol):
    """Frames in by callback, frames out by `send`. A peer that breaks the rules, or does not read, is cut off.

    `on_frame(connection, frame)` raises FrameError for frames that are not allowed; `on_lost(connection)` comes once.
    """

    __slots__ = ("_decoder", "_on_frame", "_on_lost", "_transport", "name")

    def __init__(
        self,
        on_frame: Callable[[FramedConnection, Frame], None],
        on_lost: Callable[[FramedConnection], None],
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        #: Who is at the other end, for the log.
        self.name = "a process"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(self, frame)
                if self._transport is None:
                    return
        except FrameError as error:
            _log.warning("%s was cut off: %s", self.name, error)
            self.abort()
        except Exception:
            _log.exception("%s was cut off: its frame could not be handled", self.name)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self)

    def send(self, data: bytes) -> bool:
        """Hand over whole frames; never blocks. False when the connection is gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        transport.write(data)
        return self._bounded(transport)

    def send_data(self, head: bytes, payload: bytes) -> bool:
        """As `send`, for a header and its payload, without joining them."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        transport.writelines((head, payload))
        return self._bounded(transport)

    def _bounded(self, transport: asyncio.Transport) -> bool:
        if transport.get_write_buffer_size() <= MAX_UNSENT_BYTES:
            return True
        _log.warning("%s was cut off: it does not read", self.name)
        self.abort()
        return False

    def abort(self) -> None:
        """Close now; `on_lost` follows."""
        if self._transport is not None:
            self._transport.abort()
