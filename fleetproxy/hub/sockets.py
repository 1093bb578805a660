"""WebSockets that come in at `hub.listen`: one asyncio protocol around the `websockets` library's I/O-free core.

Everything a stranger can make grow has a bound here: the handshake's time and size, the message's size, and what waits
to be sent to somebody who does not read (answers to a flood of pings included). Nothing is awaited per message.

All who dial in share one loop, and one read may bring a hundred thousand small messages. So what came is looked at in
turns of some messages, and between two of them it is the others' turn. Chatter (what nobody asked for: heartbeats,
pings, news of nothing) is besides read no faster than so many a second; who keeps it up is let go by his guest.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Protocol

import msgspec
from websockets.frames import BINARY, CONT, TEXT, Frame
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from fleetproxy.wire import payloads

#: From the connection to the end of the handshake.
HANDSHAKE_S = 5.0
#: After our close frame the peer has this long to take what is on its way.
CLOSE_S = 5.0
#: A message before its sender has shown a key, and after. Stock agents send at most about 44 KB.
MAX_STRANGER_BYTES = 16 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024 - 1
#: What may wait for a peer that does not read, before it has shown a key, and after (a large request body in base64).
MAX_STRANGER_UNSENT_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 64 * 1024 * 1024
#: WebSocket frames looked at in one turn, and how much of them that are chatter; chatter is read this fast at most.
TURN_FRAMES, TURN_CHATTER, CHATTER_PER_S = 32, 8, 5_000
#: What was read is looked at in parts: small ones where frames are small, so that a turn does not grow too long.
LEAST_PART_BYTES, FIRST_PART_BYTES, MOST_PART_BYTES = 256, 1024, 16 * 1024

_quiet = logging.getLogger("fleetproxy.hub.websockets")
_quiet.setLevel(logging.ERROR)
_log = logging.getLogger("fleetproxy.hub")


class Guest(Protocol):
    """Who sits behind a socket. Called on the loop; must not block."""

    def message(self, data: str | bytes) -> int:
        """A whole message. Returns how much of it was chatter, in messages."""

    def chatter(self, amount: int) -> None:
        """So many frames came that were no message: pings, and pieces without end."""

    def lost(self) -> None:
        """The socket is gone. Called once, whoever closed it."""


class Socket(Protocol):
    """A WebSocket that was let in, wherever it came in."""

    #: The peer's address.
    remote: str

    @property
    def unsent_bytes(self) -> int:
        """What still waits to be taken by the peer."""

    def trust(self, message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """The peer has shown who it is: the wider bounds hold from now on, its messages may be so long."""

    def send(self, data: str | bytes) -> bool:
        """Send a message; never blocks. False when the socket is closed."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye and close."""

    def abort(self) -> None:
        """Close without a word."""


class Refusal(msgspec.Struct, frozen=True):
    """Not let in: the handshake's HTTP answer."""

    status: int
    text: str


class Admission(msgspec.Struct, frozen=True):
    """Let in."""

    #: "" for none.
    subprotocol: str
    guest: Callable[[Socket], Guest]


class Door(Protocol):
    def knock(self, knock: payloads.Knock) -> Admission | Refusal:
        """May this upgrade come in, and as what?"""

    def offered(self) -> bool:
        """Is there room for one more connection?"""

    def left(self) -> None:
        """A connection that `offered` let in is gone."""


class DirectSocket(asyncio.Protocol):
    """One connection to `hub.listen`. Implements `Socket`."""

    __slots__ = (
        "_door",
        "_guest",
        "_inside",
        "_leaving",
        "_loop",
        "_max_unsent",
        "_part_bytes",
        "_pieces",
        "_rest",
        "_resting",
        "_text",
        "_timer",
        "_transport",
        "_websocket",
        "remote",
    )

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._loop = loop
        self._guest: Guest | None = None
        self._transport: asyncio.Transport | None = None
        self._websocket = ServerProtocol(max_size=MAX_STRANGER_BYTES, logger=_quiet)
        self._max_unsent = MAX_STRANGER_UNSENT_BYTES
        #: A message that comes in fragments; None between messages.
        self._pieces: bytearray | None = None
        self._text = False
        #: Read, and to be looked at when its turn comes.
        self._rest = b""
        self._resting: asyncio.Handle | None = None
        self._part_bytes = FIRST_PART_BYTES
        self._timer: asyncio.TimerHandle | None = None
        self._inside = False
        #: One side has said that it closes.
        self._leaving = False
        self.remote = ""

    # --- Socket ------------------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def trust(self, message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._websocket.max_message_size = message_bytes
        self._max_unsent = MAX_UNSENT_BYTES

    def send(self, data: str | bytes) -> bool:
        websocket = self._websocket
        if self._transport is None or websocket.state is not OPEN:
            return False
        if isinstance(data, str):
            websocket.send_text(data.encode())
        else:
            websocket.send_binary(data)
        return self._flush()

    def close(self, code: int, reason: str) -> None:
        if self._transport is None or self._websocket.state is not OPEN:
            return
        self._websocket.send_close(code, reason[:100])
        self._flush()
        self._leave_soon()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's callbacks -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.remote = peer[0] if isinstance(peer, tuple) else ""
        if not self._door.offered():
            self.abort()
            return
        self._inside = True
        self._timer = self._loop.call_later(HANDSHAKE_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._resting is not None:
            self._rest += data  # read before the pause could hold
        else:
            self._take(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for handle in (self._timer, self._resting):
            if handle is not None:
                handle.cancel()
        if self._inside:
            self._inside = False
            self._door.left()
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.lost()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        """Look at what came, in turns."""
        at = frames = chatter = 0
        while at < len(data) and self._transport is not None:
            part = data if at == 0 and len(data) <= self._part_bytes else data[at : at + self._part_bytes]
            at += len(part)
            some, idle = self._look(part)
            frames, chatter = frames + some, chatter + idle
            if some > TURN_FRAMES // 2:
                self._part_bytes = max(self._part_bytes // 4, LEAST_PART_BYTES)
            elif len(part) == self._part_bytes < MOST_PART_BYTES:
                self._part_bytes *= 2
            if frames >= TURN_FRAMES or chatter >= TURN_CHATTER:
                self._rest_a_while(data[at:], chatter)
                return

    def _rest_a_while(self, rest: bytes, chatter: int) -> None:
        """The others' turn. Who has mostly chattered is read again when that much may have been said."""
        transport, loop = self._transport, self._loop
        if transport is None or transport.is_closing():
            return
        transport.pause_reading()
        self._rest = rest
        if chatter >= TURN_CHATTER:
            self._resting = loop.call_later(chatter / CHATTER_PER_S, self._go_on)
        else:
            self._resting = loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._resting = None
        rest, self._rest = self._rest, b""
        self._take(rest)
        if self._resting is None and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _look(self, data: bytes) -> tuple[int, int]:
        """Look at some bytes: how many frames they completed, and how much chatter that was."""
        websocket = self._websocket
        if websocket.eof_sent:
            return 0, 0
        websocket.receive_data(data)
        frames = chatter = 0
        for event in websocket.events_received():
            frames += 1
            if isinstance(event, Request):
                if websocket.eof_sent:  # what came behind the request was nonsense already
                    self.abort()
                    return frames, chatter
                self._handshake(event)
            elif isinstance(event, Frame):
                idle = self._frame(event)
                if idle < 0:
                    break
                chatter += idle
        self._flush()
        if websocket.close_expected():
            self._leave_soon()
        return frames, chatter

    def _handshake(self, request: Request) -> None:
        websocket = self._websocket
        path = request.path.partition("?")[0]
        headers = tuple(
            (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
            for name, value in request.headers.raw_items()
        )
        response = websocket.accept(request)
        if response.status_code == 101:
            verdict = self._door.knock(payloads.Knock(path[:1024], headers[:128], self.remote))
            if isinstance(verdict, Refusal):
                response = websocket.reject(verdict.status, verdict.text + "\n")
            else:
                if verdict.subprotocol:
                    response.headers["Sec-WebSocket-Protocol"] = verdict.subprotocol
                if self._timer is not None:
                    self._timer.cancel()
                self._guest = verdict.guest(self)
        websocket.send_response(response)

    def _frame(self, frame: Frame) -> int:
        """How much of it was chatter; -1 when the connection has been failed."""
        guest = self._guest
        if frame.opcode is CONT:
            if self._pieces is None:
                return 0
            self._pieces += frame.data
        elif frame.opcode is TEXT or frame.opcode is BINARY:
            self._text = frame.opcode is TEXT
            if not frame.fin:
                self._pieces = bytearray(frame.data)
        if guest is None or self._leaving:
            return 1
        if frame.opcode not in (TEXT, BINARY, CONT) or not frame.fin:
            guest.chatter(1)
            return 1
        data = bytes(frame.data if self._pieces is None else self._pieces)
        self._pieces = None
        message: str | bytes = data
        if self._text:
            try:
                message = data.decode()
            except UnicodeDecodeError:
                self._websocket.fail(1007, "text is not UTF-8")
                return -1
        try:
            chatter = guest.message(message)
        except Exception:
            _log.exception("a message of %s could not be handled", self.remote)
            self.close(1011, "server error")
            return -1
        return chatter if self._transport is not None else -1

    def _flush(self) -> bool:
        transport = self._transport
        if transport is None:
            return False
        for data in self._websocket.data_to_send():
            if not data:  # the library's word for "end here"
                self._leave_soon()
                transport.close()
                return False
            transport.write(data)
        if transport.get_write_buffer_size() > self._max_unsent:
            _log.warning("%s was cut off: it does not read", self.remote)
            transport.abort()
            return False
        return True

    def _leave_soon(self) -> None:
        """A peer that does not finish its side of the closing is cut off, also when it goes on talking."""
        if self._leaving:
            return
        self._leaving = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(CLOSE_S, self.abort)


async def listen(door: Door, host: str, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
    """Serve WebSockets at host:port. Raises OSError when the address cannot be had."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: DirectSocket(door, loop),
        host,
        port,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
        backlog=1024,
    )
