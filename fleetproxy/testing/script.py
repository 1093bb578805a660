"""What a scripted upstream can be told to do, and the bytes it is told to send."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import msgspec


class Send(msgspec.Struct, frozen=True):
    """These bytes, at once."""

    data: bytes


class Sleep(msgspec.Struct, frozen=True):
    seconds: float


class Drip(msgspec.Struct, frozen=True):
    """These bytes, one at a time."""

    data: bytes
    bytes_per_s: float


class Firehose(msgspec.Struct, frozen=True):
    """This piece over and over, `total_bytes` in all, or until the peer leaves."""

    piece: bytes
    total_bytes: int | None = None


class Fin(msgspec.Struct, frozen=True):
    """Close with FIN."""


class Rst(msgspec.Struct, frozen=True):
    """Close with RST."""


class HalfClose(msgspec.Struct, frozen=True):
    """End our side, go on reading."""


class Stall(msgspec.Struct, frozen=True):
    """Do nothing until the peer leaves."""


class Keep(msgspec.Struct, frozen=True):
    """The answer is whole: wait for the next request on this connection."""


Step = Send | Sleep | Drip | Firehose | Fin | Rst | HalfClose | Stall | Keep
Script = Sequence[Step]


def response(
    status: int = 200,
    body: bytes = b"",
    headers: Sequence[tuple[str, str]] = (("Content-Type", "application/json"),),
    *,
    length: int | None = None,
) -> bytes:
    """A whole plain answer; another `length` than the body's is a lie."""
    fields = [*headers, ("Content-Length", str(len(body) if length is None else length))]
    return head(status, fields) + body


def head(status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Status line and headers with the empty line."""
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
NDJSON_HEAD = head(200, [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")])
SSE_HEAD = head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])


def poll_answers(kind: str, models: Sequence[str], resident: Sequence[str]) -> dict[str, str]:
    """What a healthy server of that kind says to the poller."""
    ids = {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in models],
    }
    if kind == "openai":
        return {"/health": "", "/v1/models": json.dumps(ids), "/version": '{"version":"0.13.1"}'}
    listed = [_listed(name) for name in models]
    loaded = [{**_listed(name), "size_vram": 1_000_000, "expires_at": "2318-01-01T00:00:00Z"} for name in resident]
    return {
        "/": "Ollama is running",
        "/api/version": '{"version":"0.14.3"}',
        "/api/tags": json.dumps({"models": listed}),
        "/api/ps": json.dumps({"models": loaded}),
        "/v1/models": json.dumps(ids),
    }


def _listed(name: str) -> dict[str, object]:
    details = {"format": "gguf", "family": "llama", "parameter_size": "1B", "quantization_level": "Q4_K_M"}
    return {
        "name": name,
        "model": name,
        "size": 1_000_000,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": details,
    }
