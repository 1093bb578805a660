"""The link's frames: 4 bytes big-endian length, then one msgpack message. Bytes in, messages out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from fleetproxy.core.table import Snapshot
from fleetproxy.link.messages import MAX_MESSAGE_BYTES, Message

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)
_SNAPSHOT = msgspec.msgpack.Decoder(Snapshot)


class LinkError(Exception):
    """The other side sent something that is not a frame of this link; the connection is of no use any more."""


def encode(message: Message) -> bytes:
    """One frame. Raises LinkError when the message is larger than the other side would take."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise LinkError(f"a {type(message).__name__} of {len(body)} bytes is over the link's {MAX_MESSAGE_BYTES}")
    return len(body).to_bytes(4, "big") + body


async def read(reader: asyncio.StreamReader) -> Message:
    """The next message. Raises EOFError at a clean or torn end, LinkError on garbage."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise LinkError(f"a frame of {length} bytes is over the link's {MAX_MESSAGE_BYTES}")
    body = await reader.readexactly(length)
    try:
        message: Message = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(f"a frame is no message of this version: {error}") from None
    return message


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Put the snapshot where a process that starts without control finds it; whole or not at all. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_bytes(_ENCODER.encode(snapshot))
    temporary.replace(path)


def read_snapshot(path: Path) -> Snapshot | None:
    """The last snapshot written; None when there is none, or none that this version can read."""
    try:
        return _SNAPSHOT.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def read_boot(runtime: Path) -> str:
    """What tells this start of the service from the ones before; empty when the supervisor has not said."""
    try:
        return (runtime / "boot").read_text()
    except (OSError, UnicodeDecodeError):
        return ""
