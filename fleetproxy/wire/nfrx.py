"""nfrx's worker protocol: JSON text messages over a WebSocket. Both sides of it; text in, values out, no I/O.

    agent → server   register, heartbeat, status_update, http_proxy_response_{headers,chunk,end}
    server → agent   http_proxy_request, http_proxy_cancel

Bytes travel as padded base64. Fields that are missing, null or of the wrong type count as not given, as in the stock
peers; only what is no JSON object at all, or lacks a usable `request_id` where one is needed, raises NfrxError.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

#: The close reasons both sides know.
EXPECTED_REGISTER, UNAUTHORIZED, DRAINED = "expected register", "unauthorized", "drained"
MAX_HEADERS = 100
_BATCH = "embedding_batch_size"
MAX_CONFIG_ENTRIES = 64


class NfrxError(ValueError):
    """The message cannot be understood. `request_id` names the request it was about, "" when none can be told."""

    def __init__(self, reason: str, request_id: str = "") -> None:
        super().__init__(reason)
        self.request_id = request_id


# --- agent to server ---------------------------------------------------------------------------------------------


class Register(msgspec.Struct, frozen=True, kw_only=True):
    worker_id: str = ""
    worker_name: str = ""
    client_key: str = ""
    models: tuple[str, ...] = ()
    max_concurrency: int = 0
    version: str = ""
    build_sha: str = ""
    build_date: str = ""
    agent_config: dict[str, str] = {}


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    ts: int = 0
    host_cpu_percent: float = 0.0
    host_ram_used_percent: float = 0.0


class StatusUpdate(msgspec.Struct, frozen=True, kw_only=True):
    max_concurrency: int = 0
    #: None: as before; empty: none.
    models: tuple[str, ...] | None = None
    #: "" when not said.
    status: str = ""
    agent_config: dict[str, str] = {}


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    #: 0 when it was no number.
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()


class ResponseChunk(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    data: bytes = b""


class ResponseEnd(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    #: "" when it ended well.
    error_code: str = ""
    error_message: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.error_code or self.error_message)


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """A type this protocol knows and nobody acts on, or one it does not know."""

    type: str


AgentMessage = Register | Heartbeat | StatusUpdate | ResponseHead | ResponseChunk | ResponseEnd | Other


# --- server to agent ---------------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    method: str = "GET"
    #: Goes behind the agent's base URL as it is.
    path: str = ""
    headers: dict[str, str] = {}
    stream: bool = False
    body: bytes = b""


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str


ServerMessage = Request | Cancel | Other


# --- reading -----------------------------------------------------------------------------------------------------


class _Chunk(msgspec.Struct):
    """The message that comes a thousand times for each other one: read without building anything else."""

    type: str
    request_id: str
    data: bytes = b""


_CHUNK = msgspec.json.Decoder(_Chunk)
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_CHUNK_TYPE = "http_proxy_response_chunk"


def read_agent(message: str | bytes) -> AgentMessage:
    """A message of an agent. Raises NfrxError."""
    try:
        chunk = _CHUNK.decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass  # another type, or malformed: the slow way tells
    else:
        if chunk.type == _CHUNK_TYPE:
            return ResponseChunk(request_id=chunk.request_id, data=chunk.data)
    fields = _object(message)
    kind = _text(fields, "type")
    match kind:
        case "register":
            return Register(
                worker_id=_text(fields, "worker_id"),
                worker_name=_text(fields, "worker_name"),
                client_key=_text(fields, "client_key") or _text(fields, "token"),
                models=_texts(fields.get("models")) or (),
                max_concurrency=_count(fields, "max_concurrency"),
                version=_text(fields, "version"),
                build_sha=_text(fields, "build_sha"),
                build_date=_text(fields, "build_date"),
                agent_config=_config(fields),
            )
        case "heartbeat":
            return Heartbeat(
                ts=_count(fields, "ts"),
                host_cpu_percent=_percent(fields, "host_cpu_percent"),
                host_ram_used_percent=_percent(fields, "host_ram_used_percent"),
            )
        case "status_update":
            return StatusUpdate(
                max_concurrency=_count(fields, "max_concurrency"),
                models=_texts(fields.get("models")),
                status=_text(fields, "status"),
                agent_config=_config(fields),
            )
        case "http_proxy_response_headers":
            status = fields.get("status")
            return ResponseHead(
                request_id=_request_id(fields),
                status=status if type(status) is int else 0,
                headers=_headers(fields.get("headers")),
            )
        case "http_proxy_response_chunk":
            raise NfrxError("a chunk's data is not base64", _request_id(fields))
        case "http_proxy_response_end":
            error = fields.get("error")
            said = error if isinstance(error, dict) else {}
            code, text = _text(said, "code"), _text(said, "message")
            if isinstance(error, dict) and not code and not text:
                code = "upstream_error"
            return ResponseEnd(request_id=_request_id(fields), error_code=code, error_message=text)
    return Other(type=kind[:64])


def read_server(message: str | bytes) -> ServerMessage:
    """A message of a server. Raises NfrxError."""
    fields = _object(message)
    kind = _text(fields, "type")
    if kind == "http_proxy_cancel":
        return Cancel(request_id=_request_id(fields))
    if kind != "http_proxy_request":
        return Other(type=kind[:64])
    request_id = _request_id(fields)
    try:
        body = msgspec.convert(fields.get("body") or "", bytes)
    except msgspec.ValidationError:
        raise NfrxError("a request's body is not base64", request_id) from None
    return Request(
        request_id=request_id,
        method=_text(fields, "method") or "GET",
        path=_text(fields, "path"),
        headers=dict(_headers(fields.get("headers"))),
        stream=fields.get("stream") is True,
        body=body,
    )


def _object(message: str | bytes) -> dict[str, Any]:
    try:
        value = _ANY.decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise NfrxError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise NfrxError("not a JSON object")
    return value


def _request_id(fields: dict[str, Any]) -> str:
    request_id = _text(fields, "request_id")
    if not request_id:
        raise NfrxError("no request_id")
    return request_id


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _count(fields: dict[str, Any], name: str) -> int:
    """A whole number; also one written with a fraction of zero. Anything else is 0."""
    value = fields.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else 0


def _percent(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    # Cut before it is made a float: a whole number may be larger than any.
    return float(min(max(value, 0), 100)) if isinstance(value, int) or math.isfinite(value) else 0.0


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else None


def _config(fields: dict[str, Any]) -> dict[str, str]:
    """What an agent says of itself. Its batch size may also stand beside `agent_config`, as a number: older agents."""
    value = fields.get("agent_config")
    texts = [(name, item) for name, item in value.items() if isinstance(item, str)] if isinstance(value, dict) else []
    config = dict(texts[:MAX_CONFIG_ENTRIES])
    batch = _count(fields, _BATCH)
    if batch > 0:
        config.setdefault(_BATCH, str(batch))
    return config


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    """Header pairs as given; more than MAX_HEADERS of them are as good as none that can be trusted."""
    if not isinstance(value, dict):
        return ()
    if len(value) > MAX_HEADERS:
        raise NfrxError("too many headers")
    return tuple((name, item) for name, item in value.items() if isinstance(item, str))


# --- writing -----------------------------------------------------------------------------------------------------

_ENCODER = msgspec.json.Encoder()


def _write(kind: str, fields: dict[str, Any]) -> str:
    return _ENCODER.encode({"type": kind, **fields}).decode()


def _given(**fields: Any) -> dict[str, Any]:
    """Fields the stock peers leave out when they are empty."""
    return {name: value for name, value in fields.items() if value}


def write(message: AgentMessage | ServerMessage) -> str:
    """The text of a message, with the fields the stock peers send."""
    match message:
        case ResponseChunk(request_id=request_id, data=data):
            return _write(_CHUNK_TYPE, {"request_id": request_id, "data": data})
        case ResponseHead(request_id=request_id, status=status, headers=headers):
            pairs = _given(headers=dict(headers))
            return _write("http_proxy_response_headers", {"request_id": request_id, "status": status, **pairs})
        case ResponseEnd(request_id=request_id):
            error = {"code": message.error_code, "message": message.error_message} if message.failed else None
            return _write("http_proxy_response_end", {"request_id": request_id, **_given(error=error)})
        case Request():
            return _write(
                "http_proxy_request",
                {
                    "request_id": message.request_id,
                    "method": message.method,
                    "path": message.path,
                    "headers": message.headers,
                    **_given(stream=message.stream, body=message.body),
                },
            )
        case Cancel(request_id=request_id):
            return _write("http_proxy_cancel", {"request_id": request_id})
        case Heartbeat():
            percents = _given(
                host_cpu_percent=message.host_cpu_percent, host_ram_used_percent=message.host_ram_used_percent
            )
            return _write("heartbeat", {"ts": message.ts, **percents})
        case StatusUpdate():
            said = _given(models=message.models, status=message.status, agent_config=message.agent_config)
            return _write("status_update", {"max_concurrency": message.max_concurrency, **said})
        case Register():
            said = _given(
                worker_name=message.worker_name,
                version=message.version,
                build_sha=message.build_sha,
                build_date=message.build_date,
                agent_config=message.agent_config,
            )
            return _write(
                "register",
                {
                    "worker_id": message.worker_id,
                    "client_key": message.client_key,
                    "models": message.models,
                    "max_concurrency": message.max_concurrency,
                    **said,
                },
            )
        case Other():
            return _write(message.type, {})
