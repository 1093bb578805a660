"""What the frames of `wire/frames.py` hold, besides DATA: msgpack, typed, bounded, checked as it is read."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from fleetproxy.core.worker import Offer, Worker
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


# --- streams -------------------------------------------------------------------------------------------------------


class Open(Payload, frozen=True):
    """OPEN, proxy to hub: a stream to somebody who dialled in, or a socket that came in at the public port."""

    #: "worker": `request` is a Request; "tunnel": it is a Knock; "channel": it is a Transfer;
    #: "relay": it is a RelayCall.
    to: Word
    #: The worker's id; a stale route never reaches another one that got the same column since.
    who: Annotated[str, Meta(max_length=256)]
    column: Annotated[int, Meta(ge=0, le=4095)]
    #: Encoded; the hub hands it to an agent of ours as it is.
    request: bytes


class Request(Payload, frozen=True):
    """OPEN, hub to agent, and `Open.request`: one HTTP request; its body follows as DATA."""

    method: Annotated[str, Meta(max_length=32)]
    #: Path and query in origin form.
    target: Annotated[bytes, Meta(max_length=16384)]
    #: End-to-end headers as wire lines (b"name: value\r\n" joined).
    header_lines: Annotated[bytes, Meta(max_length=131072)]
    #: Body length in bytes; None when it is not known before the end.
    content_length: Annotated[int, Meta(ge=0)] | None = None


class Head(Payload, frozen=True):
    """HEAD: the head of an answer; its body follows as DATA."""

    status: Annotated[int, Meta(ge=200, le=599)]
    headers: Annotated[tuple[tuple[bytes, bytes], ...], Meta(max_length=100)] = ()
    #: Body length in bytes, where one was announced.
    content_length: Annotated[int, Meta(ge=0)] | None = None


class Reset(Payload, frozen=True):
    """RESET: the stream is over, not as it should be. `code` is one of `errors.py`, `message` may be shown."""

    code: Word
    message: Annotated[str, Meta(max_length=512)] = ""


# --- sockets that came in at the public port ---------------------------------------------------------------------


class Knock(Payload, frozen=True):
    """`Open.request` of a tunnel: a WebSocket upgrade that asks to come in."""

    #: Raw path, without the query.
    path: Annotated[str, Meta(max_length=1024)]
    #: Lower-cased names; each field line as received.
    headers: Annotated[tuple[tuple[bytes, bytes], ...], Meta(max_length=128)]
    #: The peer's address, after trusted proxies.
    remote: Annotated[str, Meta(max_length=64)]
    #: It came through `auth.trusted_proxies`: its role headers may be believed.
    trusted: bool = False


class Welcome(Payload, frozen=True):
    """HEAD of a tunnel: 101 with the subprotocol chosen ("" for none), or the refusal's status and plain text."""

    status: Annotated[int, Meta(ge=100, le=599)]
    text: Annotated[str, Meta(max_length=256)] = ""


class Close(Payload, frozen=True):
    """END of a tunnel: the WebSocket closes, or was closed, with this code and reason."""

    code: Annotated[int, Meta(ge=0, le=4999)]
    reason: Annotated[str, Meta(max_length=128)] = ""


#: First byte of each DATA frame of a tunnel: the kind of message, and whether more of it follows.
TEXT, BINARY, MORE = 0, 1, 2


# --- transfer channels -------------------------------------------------------------------------------------------


class Transfer(Payload, frozen=True):
    """`Open.request` of one end of a transfer channel.

        create   HEAD, the answer as DATA, END
        read     HEAD with the first byte the writer sent, DATA, END; the reader then says END when all is handed over
        write    HEAD when the reader is there; the writer then sends DATA and END; END when the reader has it all

    RESET from either side ends both.
    """

    #: "create", "read", "write".
    action: Word
    #: Whose the channel is, or who wants to use it; never shown.
    owner: Annotated[str, Meta(max_length=256)]
    #: "" to create.
    channel: Annotated[str, Meta(max_length=64)] = ""
    #: What the writer said of its body.
    content_type: Annotated[bytes, Meta(max_length=1024)] = b""
    content_length: Annotated[int, Meta(ge=0)] | None = None


# --- MCP relays ----------------------------------------------------------------------------------------------------


class RelayCall(Payload, frozen=True):
    """`Open.request` of a call to an MCP relay; its body follows as DATA, as that of a Request."""

    #: Whose call it is: calls are counted by caller. Never shown.
    caller: Annotated[str, Meta(max_length=256)]
    #: "call": a JSON-RPC request; "message": a notification, a response, the end of a session; "stream": events.
    kind: Word
    #: The JSON-RPC method, "" when there is none.
    method: Annotated[str, Meta(max_length=256)]
    #: For the relay's log.
    request_id: Annotated[str, Meta(max_length=128)]
    #: The caller's token for the relay, "" when there is none: as long as a request's head may be.
    token: Annotated[str, Meta(max_length=65536)]
    #: An encoded Request.
    request: bytes


# --- our own agents --------------------------------------------------------------------------------------------------


class Enrol(msgspec.Struct, frozen=True, kw_only=True):
    """REGISTER, agent to hub: first frame of a connection."""

    worker_id: Annotated[str, Meta(max_length=1024)] = ""
    worker_name: Annotated[str, Meta(max_length=1024)] = ""
    client_key: Annotated[str, Meta(max_length=1024)] = ""
    version: Annotated[str, Meta(max_length=128)] = ""
    build_sha: Annotated[str, Meta(max_length=128)] = ""
    build_date: Annotated[str, Meta(max_length=128)] = ""
    offer: Offer = Offer()


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """STATUS, agent to hub: what it offers from now on, whole; None: as before."""

    offer: Offer | None = None
    cpu_percent: Annotated[float, Meta(ge=0, le=100)] = 0.0
    ram_percent: Annotated[float, Meta(ge=0, le=100)] = 0.0


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """REGISTER, hub to agent: you are in, under this id and name."""

    worker_id: str
    worker_name: str


class Goaway(msgspec.Struct, frozen=True, kw_only=True):
    """GOAWAY, either side: no new streams from now on; open ones go on to their end."""

    reason: Annotated[str, Meta(max_length=128)] = ""


# --- who is there ------------------------------------------------------------------------------------------------


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """PRESENCE, hub to proxy: a worker that is there, as it is now; or family and id of one that has left."""

    worker: Worker | None = None
    left: tuple[str, str] | None = None


_ENCODER = msgspec.msgpack.Encoder()
encode = _ENCODER.encode
_DECODERS: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]] = {}
_P = TypeVar("_P", bound=msgspec.Struct)


def decode(payload: bytes, kind: type[_P]) -> _P:
    """Read a payload. Anything else than a value of that type raises FrameError."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(payload)  # type: ignore[return-value]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"a {kind.__name__} payload cannot be read: {error}") from None
