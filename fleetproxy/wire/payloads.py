"""What the frames of `wire/frames.py` hold, besides DATA: msgpack arrays, typed, bounded, checked as they are read."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from fleetproxy.wire.frames import FrameError

Number = Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]
Column = Annotated[int, Meta(ge=0, le=4095)]
Columns = Annotated[tuple[Column, ...], Meta(min_length=1, max_length=4096)]
Milliseconds = Annotated[int, Meta(ge=0, le=86_400_000)]
Word = Annotated[str, Meta(max_length=64)]


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """Base of all payloads; later versions may append fields with defaults."""


class Register(Payload, frozen=True):
    """REGISTER, proxy process to hub: first frame of a connection."""

    #: "proxy-0", "proxy-1".
    process: Annotated[str, Meta(min_length=1, max_length=64)]
    pid: int = 0


# --- the waiting line --------------------------------------------------------------------------------------------


class Wait(Payload, frozen=True):
    """WAIT: stand in line for one of these columns, the first ones preferred. Ends in TAKEN, LEAVE or REFUSE."""

    #: Chosen by the proxy, unique among its waiters.
    number: Number
    principal: Annotated[str, Meta(max_length=256)]
    columns: Columns
    timeout_ms: Milliseconds


class Grant(Payload, frozen=True):
    """GRANT, hub to proxy: a slot of this column is kept for the waiter until TAKEN or LEAVE comes."""

    number: Number
    column: Column


class Position(Payload, frozen=True):
    """POSITION, hub to proxy: (number, place in line from 1) of each waiter whose place changed."""

    places: tuple[tuple[int, int], ...]


class Leave(Payload, frozen=True):
    """LEAVE, proxy to hub: the waiter is gone; a slot kept for it is free again."""

    number: Number


class Taken(Payload, frozen=True):
    """TAKEN, proxy to hub: the granted slot is counted on the proxy's own row now."""

    number: Number


class Freed(Payload, frozen=True):
    """FREED, proxy to hub: a slot of a column that has waiters was released."""

    column: Column


class Refuse(Payload, frozen=True):
    """REFUSE, hub to proxy: the waiter is out of the line without a slot.

    `code` is one of `errors.py`: "queue_full", "queue_timeout", "no_backend".
    """

    number: Number
    code: Word
    retry_after_s: float = 1.0


_ENCODER = msgspec.msgpack.Encoder()
encode = _ENCODER.encode
_DECODERS: dict[type[Payload], msgspec.msgpack.Decoder[Payload]] = {}
_P = TypeVar("_P", bound=Payload)


def decode(payload: bytes, kind: type[_P]) -> _P:
    """Read a payload. Anything else than a value of that type raises FrameError."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(payload)  # type: ignore[return-value]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"a {kind.__name__} payload cannot be read: {error}") from None
