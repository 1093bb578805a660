"""nfrx's relay protocol for MCP: JSON text messages over a WebSocket. Both sides of it; text in, values out, no I/O.

    relay → server   {"client_name", "id"}   open.ok   open.fail   rpc   close   ping   pong
    server → relay   {"id"}                  open      rpc         close

One call is one session: `open` (with the caller's token), `open.ok`, `rpc` with the request, `rpc` with the answer,
`close`. JSON-RPC payloads go through as the bytes they are. Unknown fields and types are nobody's business.
"""

from __future__ import annotations

import msgspec

#: The stock relay reads messages up to this, and drops its connection over a longer one.
MAX_STOCK_BYTES = 32768

#: Close reasons both sides know.
INVALID_REGISTER, EXPECTED_REGISTER, ID_IN_USE, DEAD = "invalid register", "expected register", "id in use", "dead"
#: Words of a `close` message.
DONE, TIMEOUT = "done", "timeout"
UNAUTHORIZED = "MCP_UNAUTHORIZED"


class RelayError(ValueError):
    """The message cannot be understood."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The relay's first message."""

    id: str = ""
    client_name: str = ""
    client_key: str = ""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Every other message. Fields that a type does not use are empty."""

    #: "open", "open.ok", "open.fail", "rpc", "close", "ping", "pong".
    t: str = ""
    #: The session.
    sid: str = ""
    #: The caller's request, for the relay's log; the JSON-RPC method it is about to send.
    req_id: str = ""
    hint: str = ""
    #: JSON as it came.
    payload: msgspec.Raw = msgspec.Raw(b"")
    code: str = ""
    msg: str = ""
    auth: str = ""


_HELLO = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FRAME = msgspec.json.Decoder(Frame)
_TEXT = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode


def read_hello(message: str | bytes) -> Hello:
    """The relay's first message: an object whose texts count and whose rest does not. Raises RelayError."""
    try:
        fields = _HELLO.decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RelayError(f"no JSON object: {error}") from None
    return Hello(
        id=_text(fields, "id"), client_name=_text(fields, "client_name"), client_key=_text(fields, "client_key")
    )


def read_ack(message: str | bytes) -> str:
    """The id in a server's answer to the first message. Raises RelayError."""
    return read_hello(message).id


def read(message: str | bytes) -> Frame:
    """Any later message, of either side. Raises RelayError."""
    try:
        return _FRAME.decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RelayError(str(error)) from None


def _text(fields: dict[str, msgspec.Raw], name: str) -> str:
    try:
        return _TEXT.decode(fields.get(name, b'""'))
    except (msgspec.MsgspecError, UnicodeError):
        return ""


# --- writing -----------------------------------------------------------------------------------------------------


def hello(client_name: str, relay_id: str) -> str:
    return _encode({"client_name": client_name, "id": relay_id}).decode()


def ack(relay_id: str) -> str:
    return _encode({"id": relay_id}).decode()


def opening(sid: str, req_id: str, hint: str, auth: str) -> str:
    return _write("open", {"sid": sid, "req_id": req_id, "hint": hint, "auth": auth})


def open_ok(sid: str) -> str:
    return _write("open.ok", {"sid": sid})


def open_fail(sid: str, code: str, msg: str) -> str:
    return _write("open.fail", {"sid": sid, "code": code, "msg": msg})


def rpc(sid: str, payload: bytes) -> bytes:
    """`payload` is one JSON value; it goes in as it is, and stays UTF-8 text."""
    return b'{"t":"rpc","sid":%b,"payload":%b}' % (_encode(sid), payload)


def close(sid: str, msg: str) -> str:
    return _write("close", {"sid": sid, "msg": msg})


def ping() -> str:
    return '{"t":"ping"}'


def _write(kind: str, fields: dict[str, str]) -> str:
    return _encode({"t": kind} | {name: value for name, value in fields.items() if value}).decode()
