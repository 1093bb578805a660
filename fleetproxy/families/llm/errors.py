"""Errors in the words of the dialect that was called, whole or as a stream's last event; and backends' errors read.

Ollama      {"error": text}                                        the same, one more line
OpenAI      {"error": {message, type, param, code}, request_id}    data: {"error": {...}}, and no [DONE]
Anthropic   {"type": "error", "error": {type, message}, request_id}    event: error
nfrx        as OpenAI, but `code` is nfrx's word for it            as OpenAI
word        {"error": code}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fleetproxy.core.operation import Endpoint, Voice
from fleetproxy.errors import FleetError, ModelUnknown

MAX_TEXT_CHARACTERS = 2048

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    **_OPENAI_TYPES,
    413: "request_too_large",
    503: "overloaded_error",
    529: "overloaded_error",
}
_encode = msgspec.json.Encoder().encode


def body(voice: Voice, error: FleetError, request_id: str) -> bytes:
    """The body of an answer that is an error."""
    return _encode(_OBJECTS[voice](error, request_id))


def event(endpoint: Endpoint, error: FleetError, request_id: str, *, mid_line: bool = False) -> bytes:
    """What a stream that has begun ends with when it fails, in the endpoint's format; b"" where it has none.

    `mid_line`: an NDJSON stream broke off inside a line, so that one must be ended first (a blank line more would break
    clients that parse each). SSE is begun anew in any case: blank lines mean nothing there.
    """
    marker = endpoint.marker_stream
    if marker is None:
        return b""
    payload = body(endpoint.voice, error, request_id)
    if marker.startswith("ndjson"):
        return (b"\n" if mid_line else b"") + payload + b"\n"
    if marker == "sse_done":
        return b"\n\ndata: " + payload + b"\n\n"
    if marker == "sse_response_completed":
        code = _word(error) if endpoint.voice == "nfrx" else error.code
        said = {"message": str(error), "param": None, "code": code, "sequence_number": 0}
        payload = _encode({"type": "error", **said, "request_id": request_id})
    return b"\n\nevent: error\ndata: " + payload + b"\n\n"


def _ollama(error: FleetError, request_id: str) -> dict[str, Any]:
    return {"error": str(error), **error.details}


def _openai(error: FleetError, request_id: str) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    param = "model" if isinstance(error, ModelUnknown) else None
    return {
        "error": {"message": str(error), "type": kind, "param": param, "code": error.code},
        "request_id": request_id,
    }


def _nfrx(error: FleetError, request_id: str) -> dict[str, Any]:
    said = _openai(error, request_id)
    said["error"]["code"] = _word(error)
    return said


def _only_word(error: FleetError, request_id: str) -> dict[str, Any]:
    return {"error": error.code}


#: Our word -> nfrx's, where that differs.
_NFRX_WORDS = {
    "bad_json": "bad_request",
    "bad_form": "bad_request",
    "missing_body": "bad_request",
    "queue_full": "worker_busy",
    "queue_timeout": "worker_busy",
    "no_backend": "no_worker",
    "server_not_found": "no_worker",
    "server_unavailable": "no_worker",
    "dialect_unspoken": "no_worker",
    "worker_busy": "worker_busy",
    "worker_refused": "no_worker",
    "connect_timeout": "timeout",
    "backend_timeout": "timeout",
    "backend_stalled": "timeout",
}


def _word(error: FleetError) -> str:
    return _NFRX_WORDS.get(error.code) or ("upstream_error" if error.side == "backend" else error.code)


def _anthropic(error: FleetError, request_id: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": request_id}


_OBJECTS: Mapping[Voice, Callable[[FleetError, str], dict[str, Any]]] = {
    "ollama": _ollama,
    "openai": _openai,
    "anthropic": _anthropic,
    "nfrx": _nfrx,
    "word": _only_word,
}


# --- what backends say -----------------------------------------------------------------------------------------------


class _Detail(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Detail | str | None = None
    #: vLLM before its errors were objects.
    message: str = ""


_refusal = msgspec.json.Decoder(_Refusal).decode


def message_of(answer: bytes) -> str:
    """The text of a backend's error in any dialect; "" when it has none. Never raises."""
    try:
        said = _refusal(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    error = said.error
    text = (error if isinstance(error, str) else error.message if error is not None else "") or said.message
    return text[:MAX_TEXT_CHARACTERS]


def is_model_missing(answer: bytes) -> bool:
    """Whether the body of a 404 says that the model is not there (and not that the path is unknown)."""
    text = message_of(answer).lower()
    return "model" in text and ("not found" in text or "does not exist" in text or "try pulling" in text)
