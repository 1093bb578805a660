"""Errors of `/api/mcp/id/{id}` as JSON-RPC has them, with nfrx's words and statuses.

{"error": {"code": -32000, "data": {"mcp": word, "req_id": id}, "message": text}, "id": ..., "jsonrpc": "2.0"}
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from fleetproxy.errors import FleetError

_encode = msgspec.json.Encoder().encode


class Said(NamedTuple):
    """How an error is told: HTTP status, nfrx's word, nfrx's text (None: the error's own)."""

    status: int
    word: str
    text: str | None = None


_LOST = Said(503, "PROVIDER_UNAVAILABLE", "relay left before it answered")
_TIMEOUT = Said(504, "MCP_TIMEOUT", "timeout waiting for response")

#: Our code -> how it is told here.
SAID: dict[str, Said] = {
    "relay_offline": Said(503, "PROVIDER_UNAVAILABLE", "relay offline"),
    "connect_failed": Said(503, "PROVIDER_UNAVAILABLE", "relay offline"),
    "bad_rpc": Said(200, "MCP_SCHEMA_ERROR", "invalid request"),
    "too_many_calls": Said(429, "LIMIT_EXCEEDED", "too many concurrent calls"),
    "worker_busy": Said(429, "LIMIT_EXCEEDED", "too many concurrent calls"),
    "worker_refused": Said(503, "PROVIDER_UNAVAILABLE", "relay is leaving"),
    "relay_refused": Said(503, "MCP_PROVIDER_UNAVAILABLE", "open failed"),
    "relay_unauthorized": Said(401, "MCP_UNAUTHORIZED", "open failed"),
    "relay_frame_limit": Said(413, "MCP_LIMIT_EXCEEDED"),
    "body_too_large": Said(413, "MCP_LIMIT_EXCEEDED", "request too large"),
    "relay_answer_too_large": Said(200, "MCP_LIMIT_EXCEEDED", "response too large"),
    "relay_no_answer": Said(502, "MCP_UPSTREAM_ERROR", "relay closed the call without an answer"),
    "bad_response": Said(502, "MCP_UPSTREAM_ERROR", "provider's answer cannot be passed on"),
    "backend_reset": _LOST,
    "backend_lost": _LOST,
    "backend_timeout": _TIMEOUT,
    "backend_stalled": _TIMEOUT,
    "draining": Said(503, "PROVIDER_UNAVAILABLE", "draining"),
    "unauthorized": Said(401, "MCP_UNAUTHORIZED"),
}


def status(error: FleetError) -> int:
    said = SAID.get(error.code)
    return said.status if said is not None else error.status


def body(error: FleetError, identity: bytes, request_id: str) -> bytes:
    """The answer's body. `identity` is the JSON-RPC id as it came, b"" for none."""
    return _object(error, identity, request_id) + b"\n"


def event(error: FleetError, identity: bytes, request_id: str) -> bytes:
    """What a stream of events ends with that breaks off before the answer."""
    return b"\n\nevent: message\ndata: " + _object(error, identity, request_id) + b"\n\n"


def _object(error: FleetError, identity: bytes, request_id: str) -> bytes:
    said = SAID.get(error.code) or Said(error.status, error.code.upper())
    detail = {
        "code": -32000,
        "data": {"mcp": said.word, "req_id": request_id},
        "message": said.text or str(error),
    }
    return b'{"error":%b,"id":%b,"jsonrpc":"2.0"}' % (_encode(detail), identity or b"null")
