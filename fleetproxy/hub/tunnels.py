"""WebSockets that came in at the public port: a proxy process holds the socket, a stream of its connection brings the
messages here.

    proxy → hub   OPEN (Knock)     DATA (messages)   WINDOW   END (Close)   RESET: it broke off
    hub → proxy   HEAD (Welcome)   DATA (messages)   WINDOW   END (Close)   RESET: cut it off

A message is one DATA frame or several: its first byte is the kind, with MORE set on all but the last. A sender needs
some credit to begin a frame, not as much as the frame is long.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from fleetproxy.hub.sockets import (
    MAX_MESSAGE_BYTES,
    MAX_STRANGER_BYTES,
    MAX_STRANGER_UNSENT_BYTES,
    MAX_UNSENT_BYTES,
    Door,
    Guest,
    Refusal,
)
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import WINDOW_BYTES, FrameError

if TYPE_CHECKING:
    from fleetproxy.hub.proxies import Proxy

_log = logging.getLogger("fleetproxy.hub")

#: Tunnels of all proxy processes together; the public internet gets `hub.listen`.
MAX_TUNNELS = 256
#: Messages go on in frames of at most this.
FRAGMENT_BYTES = 64 * 1024

TOO_MANY = Refusal(503, "too many connections")


class Tunnel:
    """Implements `sockets.Socket` over a stream, and `streams.StreamEnd`."""

    __slots__ = (
        "_closed",
        "_credit",
        "_door",
        "_guest",
        "_max_message",
        "_max_unsent",
        "_number",
        "_owed",
        "_parts",
        "_proxy",
        "_queue",
        "_queued_bytes",
        "remote",
    )

    def __init__(self, proxy: Proxy, number: int, door: Door, knock: payloads.Knock) -> None:
        self._proxy = proxy
        self._number = number
        self._door = door
        self.remote = knock.remote
        self._guest: Guest | None = None
        self._credit = WINDOW_BYTES
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._max_message = MAX_STRANGER_BYTES
        self._max_unsent = MAX_STRANGER_UNSENT_BYTES
        self._parts = bytearray()
        #: Bytes taken and not yet given back as credit.
        self._owed = 0
        self._closed = False

    def knock(self, knock: payloads.Knock) -> bool:
        """Ask the door; tell the proxy. False when it stays outside."""
        verdict = self._door.knock(knock)
        if isinstance(verdict, Refusal):
            self._say(frames.HEAD, payloads.encode(payloads.Welcome(verdict.status, verdict.text)))
            return False
        self._say(frames.HEAD, payloads.encode(payloads.Welcome(101, verdict.subprotocol)))
        self._guest = verdict.guest(self)
        return True

    # --- Socket ------------------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        # The other end gives credit back in steps of half the window: less than that is no sign of anything unsent.
        return self._queued_bytes + max(0, WINDOW_BYTES // 2 - self._credit)

    def trust(self, message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_message = message_bytes
        self._max_unsent = MAX_UNSENT_BYTES

    def send(self, data: str | bytes) -> bool:
        if self._closed:
            return False
        kind = payloads.TEXT if isinstance(data, str) else payloads.BINARY
        raw = data.encode() if isinstance(data, str) else data
        for at in range(0, max(len(raw), 1), FRAGMENT_BYTES):
            more = payloads.MORE if at + FRAGMENT_BYTES < len(raw) else 0
            self._queue.append(bytes((kind | more,)) + raw[at : at + FRAGMENT_BYTES])
        self._queued_bytes += len(raw)
        self._flush()
        if self._queued_bytes > self._max_unsent:
            _log.warning("%s was cut off: it does not read", self.remote)
            self.abort()
            return False
        return True

    def close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._say(frames.END, payloads.encode(payloads.Close(code, reason[:100])))
            self._gone()

    def abort(self) -> None:
        if not self._closed:
            self._say(frames.RESET, payloads.encode(payloads.Reset("backend_lost")))
            self._gone()

    # --- StreamEnd ---------------------------------------------------------------------------------------------------

    def frame(self, kind: int, payload: bytes) -> None:
        match kind:
            case frames.DATA if payload:
                self._data(payload)
            case frames.WINDOW:
                self._credit += frames.credit(payload)
                self._flush()
            case frames.END | frames.RESET:
                self._gone()
            case _:
                raise FrameError(f"a {frames.NAMES[kind]} frame does not belong inside a tunnel")

    def abandon(self) -> None:
        self._gone()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _data(self, payload: bytes) -> None:
        self._owed += len(payload)
        if self._owed >= WINDOW_BYTES // 2:
            self._proxy.send(frames.window(self._number, self._owed))
            self._owed = 0
        kind, more = payload[0] & payloads.BINARY, payload[0] & payloads.MORE
        if len(self._parts) + len(payload) - 1 > self._max_message:
            self.close(1009, "message too big")
            return
        self._parts += memoryview(payload)[1:]
        if more or self._guest is None:
            return
        raw = bytes(self._parts)
        self._parts.clear()
        try:
            message = raw if kind == payloads.BINARY else raw.decode()
        except UnicodeDecodeError:
            self.close(1007, "text is not UTF-8")
            return
        try:
            self._guest.message(message)
        except Exception:
            _log.exception("a message of %s could not be handled", self.remote)
            self.close(1011, "server error")

    def _flush(self) -> None:
        queue = self._queue
        while queue and self._credit > 0:
            fragment = queue.popleft()
            self._queued_bytes -= len(fragment) - 1
            self._credit -= len(fragment)
            self._proxy.send_data(frames.header(frames.DATA, self._number, len(fragment)), fragment)

    def _say(self, kind: int, payload: bytes) -> None:
        self._proxy.send(frames.encode(kind, self._number, payload))

    def _gone(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._queue.clear()
        self._proxy.streams.pop(self._number, None)
        self._door.left()
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.lost()


class Tunnels:
    """Opens tunnels, up to their number."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._open = 0
        #: Turned away because too many were open.
        self.refused = 0

    def __len__(self) -> int:
        return self._open

    def open(self, proxy: Proxy, number: int, opening: payloads.Open) -> None:
        """A proxy brings a WebSocket upgrade. Raises FrameError when it makes no sense."""
        knock = payloads.decode(opening.request, payloads.Knock)
        counted = _CountedDoor(self, self._door)
        if self._open >= MAX_TUNNELS or not counted.offered():
            self.refused += 1
            welcome = payloads.Welcome(TOO_MANY.status, TOO_MANY.text)
            proxy.send(frames.encode(frames.HEAD, number, payloads.encode(welcome)))
            return
        tunnel = Tunnel(proxy, number, counted, knock)
        proxy.streams[number] = tunnel
        if not tunnel.knock(knock):
            tunnel.abandon()


class _CountedDoor:
    """The door, counting tunnels beside sockets."""

    def __init__(self, tunnels: Tunnels, door: Door) -> None:
        self._tunnels = tunnels
        self._door = door
        self.knock = door.knock

    def offered(self) -> bool:
        if not self._door.offered():
            return False
        self._tunnels._open += 1
        return True

    def left(self) -> None:
        self._tunnels._open -= 1
        self._door.left()
