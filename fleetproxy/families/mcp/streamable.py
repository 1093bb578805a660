"""MCP's Streamable HTTP, as far as one must know it to put a server that speaks over its standard streams behind it.

Revisions up to 2025-11-25 begin with a handshake and have sessions. From 2026-07-28 on each request stands for itself:
it says its revision in a header and in its body, and the two must agree.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

HANDSHAKE_REVISIONS = frozenset({"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"})
REVISION_KEY = "io.modelcontextprotocol/protocolVersion"
#: Methods whose target is in a header, and the parameter that is.
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR, SERVER_ERROR, HEADER_MISMATCH = -32603, -32000, -32020
#: Statuses of errors in answers to requests that stand for themselves; others are 200.
_STATUS = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    -32021: 400,
    -32022: 400,
    METHOD_NOT_FOUND: 404,
}

Headers = Mapping[bytes, bytes]
_encode = msgspec.json.Encoder().encode


class Token(msgspec.Struct):
    progressToken: str | int | None = None  # noqa: N815 - the wire's word


class _Error(msgspec.Struct):
    code: int = 0


class Line(msgspec.Struct):
    """A message of the server, as far as it decides where it goes."""

    id: msgspec.Raw = msgspec.Raw(b"")
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"")
    error: msgspec.Raw = msgspec.Raw(b"")

    @property
    def is_response(self) -> bool:
        return not self.method and bool(bytes(self.id))


_LINE = msgspec.json.Decoder(Line)
_TOKEN = msgspec.json.Decoder(Token)
_ERROR = msgspec.json.Decoder(_Error)
_ID: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def read_line(line: bytes) -> Line | None:
    """What a server has written; None when it is no message."""
    try:
        return _LINE.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def key_of(identity: bytes) -> tuple[bool, Any] | None:
    """An id by its value, so that 1 and 1.0 are one and "1" is another; None for what can be none."""
    try:
        value = _ID.decode(identity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return (isinstance(value, str), value) if isinstance(value, (str, int, float)) else None


def progress_token(line: Line) -> str | int | None:
    """Whose progress a notification tells."""
    if line.method != "notifications/progress":
        return None
    try:
        return _TOKEN.decode(bytes(line.params) or b"{}").progressToken
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def asked_token(message: Mapping[str, Any]) -> str | int | None:
    """The token under which a request wants to hear of its progress."""
    token = _meta(message).get("progressToken")
    return token if isinstance(token, (str, int)) else None


def status_of(line: Line) -> int:
    """The status of an answer to a request that stands for itself."""
    if not bytes(line.error):
        return 200
    try:
        return _STATUS.get(_ERROR.decode(bytes(line.error)).code, 200)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 200


def stands_alone(headers: Headers) -> bool:
    """Whether a request belongs to no session, by its revision."""
    revision = headers.get(b"mcp-protocol-version")
    return revision is not None and revision.decode("latin-1") not in HANDSHAKE_REVISIONS


def mismatch(headers: Headers, message: Mapping[str, Any]) -> str:
    """What a request's headers and its body do not agree on; "" when they do."""
    revision = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
    said = _meta(message).get(REVISION_KEY)
    if said is not None and said != revision:
        return "mcp-protocol-version header does not match the request's protocol version"
    method = message.get("method")
    if headers.get(b"mcp-method", b"").decode("latin-1") != method:
        return "mcp-method header does not match the request's method"
    parameter = _NAMED.get(str(method))
    params = message.get("params")
    if parameter and isinstance(params, dict) and params.get(parameter) is not None:
        name = headers.get(b"mcp-name")
        if name is None or _decoded(name) != params[parameter]:
            return f"mcp-name header does not match the request's {parameter!r} parameter"
    return ""


def accepts(headers: Headers, kind: bytes) -> bool:
    """Whether an Accept header takes this type."""
    taken = {part.partition(b";")[0].strip() for part in headers.get(b"accept", b"*/*").lower().split(b",")}
    return not taken.isdisjoint({kind, kind.partition(b"/")[0] + b"/*", b"*/*"})


def error(identity: bytes, code: int, message: str) -> bytes:
    """An error of our own making."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (identity or b"null", _encode({"code": code, "message": message}))


def event(message: bytes) -> bytes:
    """A message as an event; messages hold no line breaks."""
    return b"event: message\ndata: %b\n\n" % message


def one_line(body: bytes) -> bytes:
    """The same JSON without line breaks: in JSON they stand between values only."""
    return body.replace(b"\r", b" ").replace(b"\n", b" ").strip()


def answer_among(stream: bytes) -> bytes:
    """The first event of a whole event stream that is a response; b"" when there is none."""
    for block in stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
        data = b"\n".join(line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:"))
        line = read_line(data)
        if line is not None and line.is_response:
            return one_line(data)
    return b""


def _meta(message: Mapping[str, Any]) -> Mapping[str, Any]:
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return meta if isinstance(meta, dict) else {}


def _decoded(value: bytes) -> str:
    """A header's value; what cannot stand in a header is written as =?base64?...?=."""
    text = value.decode("latin-1")
    if text.startswith("=?base64?") and text.endswith("?="):
        try:
            return base64.b64decode(text[len("=?base64?") : -2], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return text
    return text
