"""JSON-RPC messages as far as a relay looks at them: which kind one is, and its id as the very bytes that came."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetproxy.errors import BadRpc

Kind = Literal["request", "notification", "response"]

MAX_ID_BYTES = 1024
MAX_METHOD_CHARACTERS = 256


class Envelope(msgspec.Struct, frozen=True):
    """One message. `id` is JSON as it came: b'7', b'"a"', b'1.50'; b"" when it has none."""

    kind: Kind
    id: bytes = b""
    method: str = ""


class _Message(msgspec.Struct):
    jsonrpc: str = ""
    id: msgspec.Raw = msgspec.Raw(b"")
    method: msgspec.Raw = msgspec.Raw(b"")
    params: msgspec.Raw = msgspec.Raw(b"")
    result: msgspec.Raw = msgspec.Raw(b"")
    error: msgspec.Raw = msgspec.Raw(b"")


_DECODER = msgspec.json.Decoder(_Message)
_TEXT = msgspec.json.Decoder(str)


def read(body: bytes) -> Envelope:
    """What a POST body is. Raises BadRpc, with the id when one can be told.

    The body may be handed on as it is afterwards: it is one JSON object, and UTF-8.
    """
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            raise BadRpc("The body is not UTF-8.") from None
    try:
        message = _DECODER.decode(body)
    except msgspec.ValidationError:
        raise BadRpc("The body is not one JSON-RPC message; batches are not taken.") from None
    except (msgspec.DecodeError, RecursionError):
        raise BadRpc("The body is not JSON.") from None
    identity, method, params = bytes(message.id), bytes(message.method), bytes(message.params)
    if identity and (len(identity) > MAX_ID_BYTES or identity[:1] not in b'"-0123456789'):
        raise BadRpc("The id is neither text nor a number.")
    if message.jsonrpc != "2.0":
        raise BadRpc('The member "jsonrpc" is not "2.0".', identity)
    if method:
        name = _name(method, identity)
        if params and params[:1] not in (b"{", b"["):
            raise BadRpc('The member "params" is neither an object nor an array.', identity)
        return Envelope("request" if identity else "notification", identity, name)
    if identity and bool(bytes(message.result)) != bool(bytes(message.error)):
        return Envelope("response", identity)
    raise BadRpc("The message is neither a request, nor a notification, nor a response.", identity)


def _name(method: bytes, identity: bytes) -> str:
    try:
        name = _TEXT.decode(method)
    except msgspec.MsgspecError:
        name = ""
    if not name or len(name) > MAX_METHOD_CHARACTERS:
        raise BadRpc('The member "method" is not a short text.', identity)
    return name
