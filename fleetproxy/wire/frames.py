"""The one frame format between proxy processes, the hub and our own agent. Bytes in, frames out; no I/O.

    0        1                  4                  8
    | kind   | payload length   | stream id        | payload ...
      u8       u24 big-endian     u32 big-endian

Stream 0 belongs to the connection itself; every other stream is one exchange and carries, in this order,

    opener:   OPEN  DATA*  END
    answerer: HEAD  DATA*  END
    either:   WINDOW at any time, RESET instead of the rest

The payload of DATA is opaque and is never looked at on the way. What the other payloads hold is in `wire/payloads.py`.

Credit: each side may have at most WINDOW_BYTES of DATA under way on a stream that the other side has not given back by
WINDOW (a u32: so many more bytes may be sent). So nobody's slowness costs more memory than that, and a reader of the
shared socket never has to wait for one stream's taker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

#: The WebSocket subprotocol of our own agents: each binary message is one or more whole frames.
SUBPROTOCOL = "fleetproxy.v1"
#: A payload may not be longer than this, whatever the connection.
MAX_PAYLOAD_BYTES = 1024 * 1024
#: DATA bytes a stream may send before the first WINDOW, each way.
WINDOW_BYTES = 256 * 1024
MAX_STREAM = 0xFFFF_FFFF

HEADER = struct.Struct(">II")
CREDIT = struct.Struct(">I")
HEADER_BYTES = HEADER.size

# Streams.
OPEN, HEAD, DATA, END, RESET, WINDOW = 1, 2, 3, 4, 5, 6
# The connection (stream 0).
REGISTER, STATUS, PING, PONG, GOAWAY = 16, 17, 18, 19, 20
# The waiting line (stream 0).
WAIT, GRANT, POSITION, LEAVE, TAKEN, FREED, REFUSE = 32, 33, 34, 35, 36, 37, 38
# Who is there (stream 0).
PRESENCE = 48

NAMES: dict[int, str] = {
    OPEN: "OPEN",
    HEAD: "HEAD",
    DATA: "DATA",
    END: "END",
    RESET: "RESET",
    WINDOW: "WINDOW",
    REGISTER: "REGISTER",
    STATUS: "STATUS",
    PING: "PING",
    PONG: "PONG",
    GOAWAY: "GOAWAY",
    WAIT: "WAIT",
    GRANT: "GRANT",
    POSITION: "POSITION",
    LEAVE: "LEAVE",
    TAKEN: "TAKEN",
    FREED: "FREED",
    REFUSE: "REFUSE",
    PRESENCE: "PRESENCE",
}
#: Kinds that belong to one stream; all others belong to stream 0.
STREAM_KINDS = frozenset({OPEN, HEAD, DATA, END, RESET, WINDOW})


class FrameError(ValueError):
    """The bytes are not frames, or a frame is not allowed where it came; the connection cannot go on."""


class Frame(NamedTuple):
    kind: int
    stream: int
    payload: bytes


def header(kind: int, stream: int, length: int) -> bytes:
    """The eight bytes in front of a payload of `length` bytes."""
    if length > MAX_PAYLOAD_BYTES:
        raise FrameError(f"a payload of {length} bytes is larger than {MAX_PAYLOAD_BYTES}")
    return HEADER.pack(kind << 24 | length, stream)


def encode(kind: int, stream: int = 0, payload: bytes = b"") -> bytes:
    """One whole frame. Payloads past MAX_PAYLOAD_BYTES raise FrameError."""
    return header(kind, stream, len(payload)) + payload


def window(stream: int, credit: int) -> bytes:
    """A WINDOW frame: `credit` more bytes of DATA may be sent."""
    return HEADER.pack(WINDOW << 24 | 4, stream) + CREDIT.pack(credit)


def credit(payload: bytes) -> int:
    """The bytes a WINDOW frame gives back; FrameError when it holds anything else."""
    if len(payload) != 4:
        raise FrameError("a WINDOW frame holds four bytes")
    return int.from_bytes(payload, "big")


class Decoder:
    """Frames out of a byte stream cut anywhere. Holds at most one incomplete frame.

    `max_bytes` is the longest payload taken: small before the peer has shown who it is. After a FrameError the decoder
    is of no further use; frames that came whole before the fault have been given out.
    """

    __slots__ = ("_held", "_need", "max_bytes")

    def __init__(self, max_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self.max_bytes = max_bytes
        self._held = bytearray()
        #: Bytes that must be held before another look makes sense.
        self._need = HEADER_BYTES

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now, in order. Exhaust it before feeding again."""
        held = self._held
        if held:
            held += data
            if len(held) < self._need:
                return
            data = bytes(held)
            held.clear()
        at, end = 0, len(data)
        while end - at >= HEADER_BYTES:
            word, stream = HEADER.unpack_from(data, at)
            kind, length = word >> 24, word & 0xFF_FFFF
            self._check(kind, stream, length)
            start = at + HEADER_BYTES
            if end - start < length:
                self._need = HEADER_BYTES + length
                held += memoryview(data)[at:]
                return
            at = start + length
            yield Frame(kind, stream, data[start:at])
        self._need = HEADER_BYTES
        held += memoryview(data)[at:]

    def _check(self, kind: int, stream: int, length: int) -> None:
        name = NAMES.get(kind)
        if name is None:
            raise FrameError(f"there is no frame of kind {kind}")
        if (kind in STREAM_KINDS) != (stream != 0):
            raise FrameError(f"a {name} frame does not belong on stream {stream}")
        if length > self.max_bytes:
            raise FrameError(f"a {name} frame of {length} bytes is larger than {self.max_bytes}")
