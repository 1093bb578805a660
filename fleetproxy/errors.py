"""Every error that can reach a caller, as one tree.

An error tells its catcher what to decide: whose side it is on, the status and code word to answer with, and whether
the request may be given to another backend (`resendable`).

    FleetError
    ├── ClientError     the caller's request cannot be served as it stands
    ├── ProxyError      we cannot serve it now (nobody to serve it, limits, draining)
    └── BackendError    a backend failed while serving it

`str(error)` is the text shown to the caller: what happened, why, what to do. It never names hosts or addresses.
`code` is the one word used in replies, logs, records, metrics and docs.
"""

from __future__ import annotations

from collections.abc import Mapping


class FleetError(Exception):
    """Base of all errors a caller can see."""

    side = "proxy"
    status = 500
    code = "internal_error"
    #: The request provably never reached a backend's handler, or asked it a question that another may answer.
    resendable = False
    #: Seconds after which trying again makes sense; None when a retry cannot cure it.
    retry_after_s: float | None = None
    #: More keys of an error body in Ollama's dialect.
    details: Mapping[str, object] = {}

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


# --- the caller's side -------------------------------------------------------------------------------------------


class ClientError(FleetError):
    """The request cannot be served as it stands."""

    side, status, code = "client", 400, "bad_request"


class BadRequest(ClientError):
    """The request is malformed."""


class BadHost(ClientError):
    """The Host header is missing, repeated or malformed (RFC 9112 section 3.2)."""

    code = "bad_host"


class BadPath(ClientError):
    """The path has encoded slashes, dot segments or control characters; send it in plain form."""

    code = "bad_path"


class BadJson(ClientError):
    """The body is not the JSON object this path needs."""

    code = "bad_json"


class MissingBody(ClientError):
    """missing request body"""

    code = "missing_body"


class Unauthorized(ClientError):
    """This path needs a valid API key: send it as `Authorization: Bearer <key>`."""

    status, code = 401, "unauthorized"


class Forbidden(ClientError):
    """This key may not do that."""

    status, code = 403, "forbidden"


class OriginRefused(ClientError):
    """Browser pages of this origin may not call this address; add the origin to `cors.origins` to allow it."""

    status, code = 403, "origin_refused"


class HostRefused(ClientError):
    """This Host name is not served here; add it to `hosts` to allow it."""

    status, code = 403, "host_refused"


class PathUnknown(ClientError):
    """There is nothing at this path."""

    status, code = 404, "not_found"


class MethodRefused(ClientError):
    """This path does not take that method."""

    status, code = 405, "method_not_allowed"

    def __init__(self, message: str = "", *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class UpgradeRequired(ClientError):
    """Workers dial in here, by WebSocket; a plain request finds nothing."""

    status, code = 426, "upgrade_required"


class BodyTimeout(ClientError):
    """The request body stopped arriving."""

    status, code = 408, "body_timeout"


class Conflict(ClientError):
    """This would break a rule of the present state; look at it again and choose."""

    status, code = 409, "conflict"


class BodyTooLarge(ClientError):
    """The request body is larger than this server accepts (`limits.body_bytes`)."""

    status, code = 413, "body_too_large"


class UriTooLong(ClientError):
    """The request target is longer than this server accepts."""

    status, code = 414, "uri_too_long"


class EncodingRefused(ClientError):
    """This path does not take a compressed body."""

    status, code = 415, "unsupported_encoding"


class MediaTypeRefused(ClientError):
    """This path takes `application/json` only; send the body with that Content-Type."""

    status, code = 415, "unsupported_media_type"


class ExpectationFailed(ClientError):
    """The Expect header asks for something this server does not know."""

    status, code = 417, "expectation_failed"


class HeadersTooLarge(ClientError):
    """The request headers are larger than this server accepts."""

    status, code = 431, "headers_too_large"


class RateLimited(ClientError):
    """This key has used up its requests for now."""

    status, code, retry_after_s = 429, "rate_limited", 1.0


class TransferUnknown(ClientError):
    """There is no such transfer channel, or it has been over for a while; make one with POST /api/transfer."""

    status, code = 404, "transfer_not_found"


class TransferInUse(ClientError):
    """This end of the transfer channel is taken; each has one reader and one writer, ever. Make another channel."""

    status, code = 409, "transfer_in_use"


class TransferExpired(ClientError):
    """The other end of the transfer channel did not come in time; make another channel."""

    status, code = 410, "transfer_expired"


class TooManyTransfers(ClientError):
    """This key has too many open transfer channels; use them up, or wait for them to expire."""

    status, code, retry_after_s = 429, "too_many_transfers", 5.0


class FormRefused(ClientError):
    """The body is not a form this path can use: multipart/form-data with a `model` part."""

    code = "bad_form"


class ModelMissingInForm(FormRefused):
    """no model: the form has no `model` part, or an empty one"""

    code = "no_model"


class BadRpc(ClientError):
    """The body is not a JSON-RPC message."""

    code = "bad_rpc"

    def __init__(self, message: str = "", identity: bytes = b"") -> None:
        super().__init__(message)
        #: The message's id as it came, where one could be told.
        self.identity = identity


class RelayFrameLimit(ClientError):
    """This relay's protocol (nfrx's) takes at most 32768 bytes a message; `fleetproxy worker mcp` takes more."""

    status, code = 413, "relay_frame_limit"


class TooManyCalls(ClientError):
    """This caller has as many calls running at this relay as it may; wait for one to end."""

    status, code, retry_after_s = 429, "too_many_calls", 1.0


class BadQuery(ClientError):
    """The query is not one SELECT or EXPLAIN that can be answered."""

    code = "bad_query"


class QueryLimit(ClientError):
    """Too many queries run at once; try again shortly."""

    status, code, retry_after_s = 429, "too_many_queries", 1.0


class ClientGone(ClientError):
    """The caller left before the answer was complete."""

    status, code = 499, "client_gone"


# --- our side ----------------------------------------------------------------------------------------------------


class ProxyError(FleetError):
    """We cannot serve this now."""

    side, status, code = "proxy", 503, "unavailable"


class ModelUnknown(ProxyError):
    """No server of the fleet has this model."""

    status, code = 404, "model_not_found"

    def __init__(self, model: str, near: tuple[str, ...] = ()) -> None:
        self.model, self.near = model, near
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"model '{model}' not found on any available server{hint}")


class DialectUnspoken(ProxyError):
    """The servers that have this model do not speak this path."""

    status, code = 404, "dialect_unspoken"


class ServerUnknown(ProxyError):
    """The server named by X-Ollama-Pin-Server does not exist."""

    status, code = 404, "server_not_found"


class ServerUnavailable(ProxyError):
    """The server named by X-Ollama-Pin-Server is offline or in maintenance."""

    code, retry_after_s = "server_unavailable", 5.0


class RelayOffline(ProxyError):
    """No MCP relay of this id is connected."""

    code, retry_after_s = "relay_offline", 5.0


class NoBackend(ProxyError):
    """no online servers available"""

    code, retry_after_s = "no_backend", 5.0


class QueueFull(ProxyError):
    """server busy, please try again.  maximum pending requests exceeded"""

    code, retry_after_s = "queue_full", 1.0


class QueueTimeout(ProxyError):
    """Every server for this model stayed busy for the whole wait."""

    code, retry_after_s = "queue_timeout", 1.0


class Overloaded(ProxyError):
    """Too many request bodies are being held in memory; try again shortly."""

    code, retry_after_s = "overloaded", 1.0


class Draining(ProxyError):
    """This server is shutting down; try again shortly."""

    code, retry_after_s = "draining", 1.0


class StoreUnavailable(ProxyError):
    """The store is restarting; try again shortly."""

    code, retry_after_s = "store_unavailable", 1.0


class QueryTimeout(ProxyError):
    """The query took longer than `analytics.query_timeout_s` and was stopped; ask for a shorter time or fewer rows."""

    status, code = 504, "query_timeout"


class LoopDetected(ProxyError):
    """This request has already passed through this proxy: a configured server's URL leads back here."""

    status, code = 508, "loop_detected"


# --- the backend's side ------------------------------------------------------------------------------------------


class BackendError(FleetError):
    """A backend failed while serving this request."""

    side, status, code = "backend", 502, "backend_error"


class ConnectFailed(BackendError):
    """The server could not be reached; it never saw the request, so another one may have it."""

    code, resendable = "connect_failed", True


class ConnectTimeout(BackendError):
    """The server did not accept the connection in time; it never saw the request."""

    status, code, resendable = 504, "connect_timeout", True


class ConnectionStale(BackendError):
    """A kept-alive connection closed under the request before any response byte."""

    code = "connection_stale"


class BackendReset(BackendError):
    """The server closed the connection before any response byte."""

    code = "backend_reset"


class BadResponse(BackendError):
    """The server answered with something that is not HTTP we can pass on."""

    code = "bad_response"


class BackendTimeout(BackendError):
    """upstream timeout: the server sent nothing in time."""

    status, code = 504, "backend_timeout"


class BackendLost(BackendError):
    """The server broke off in the middle of its answer."""

    code = "backend_lost"


class BackendStalled(BackendError):
    """The server stopped sending in the middle of its answer."""

    status, code = 504, "backend_stalled"


class StreamTruncated(BackendError):
    """The answer ended without its end marker: it is incomplete."""

    code = "stream_truncated"


class BackendRefused(BackendError):
    """Every server that has this model refused the request."""

    code = "backend_refused"


class RelayRefused(BackendError):
    """The MCP relay did not take the call."""

    status, code = 503, "relay_refused"


class RelayUnauthorized(BackendError):
    """The MCP relay wants another token; send it as `Authorization: Bearer <token>`."""

    status, code = 401, "relay_unauthorized"


class RelayNoAnswer(BackendError):
    """The MCP relay ended the call without an answer."""

    code = "relay_no_answer"


class RelayAnswerTooLarge(BackendError):
    """The MCP server's answer is larger than this server passes on (`mcp.max_response_bytes`)."""

    code = "relay_answer_too_large"


class TransferFailed(BackendError):
    """The other end of the transfer channel broke off; what has arrived is not all of it."""

    code = "transfer_failed"


class WorkerRefused(BackendError):
    """The worker takes no requests now, or not this one; it never saw it."""

    status, code, resendable, retry_after_s = 503, "worker_refused", True, 1.0


class WorkerBusy(WorkerRefused):
    """The worker has all the requests it takes at once; it never saw this one."""

    code = "worker_busy"
