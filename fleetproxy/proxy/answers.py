"""Answers of our own: refusals in the caller's dialect, health, the fleet's lists from memory."""

from __future__ import annotations

import msgspec

from fleetproxy.core.operation import Voice
from fleetproxy.core.table import Snapshot
from fleetproxy.errors import FleetError, MethodRefused, UpgradeRequired
from fleetproxy.families.llm import errors as dialect_errors
from fleetproxy.listen import Send
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.transport.base import Headers

JSON = (b"content-type", b"application/json; charset=utf-8")
_NO_RETRIES, _NO_QUEUE = (b"x-fleet-retries", b"0"), (b"x-fleet-queue-ms", b"0")
_NOSNIFF = (b"x-content-type-options", b"nosniff")


async def respond(send: Send, status: int, headers: Headers, body: bytes, *, head_only: bool = False) -> None:
    """One complete answer."""
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else body, "more_body": False})


def explain_headers(exchange: Exchange) -> Headers:
    """Why the answer came from where it came: on every answer, refusals included."""
    backend = exchange.backend
    queue_ms = exchange.queue_s * 1000
    headers: Headers = [
        _NO_RETRIES if not exchange.retries else (b"x-fleet-retries", b"%d" % exchange.retries),
        _NO_QUEUE if not queue_ms else (b"x-fleet-queue-ms", b"%d" % queue_ms),
    ]
    if exchange.route_reason is not None:
        headers.append((b"x-fleet-route", exchange.route_reason.encode()))
    if backend is not None and not exchange.snapshot.access.hide_backends:
        headers.append((b"x-fleet-backend", backend.name.encode("ascii", "backslashreplace")))
    if exchange.pin_ignored:
        headers.append((b"x-fleet-pin", b"ignored"))
    return headers


def error_event(exchange: Exchange, error: FleetError) -> bytes:
    """What a broken stream ends with, in its own format; nothing where that would be no part of it."""
    if not (exchange.takes_event or exchange.started_by_us):
        return b""
    tap = exchange.tap
    mid_line = tap is not None and tap.mid_line
    return dialect_errors.event(exchange.endpoint, error, exchange.request_id, mid_line=mid_line)


def refusal_headers(error: FleetError, request_id: str, *, draining: bool = False) -> Headers:
    """What a client needs to act on an error: when to try again, whether to, and the id to ask about."""
    identifier = request_id.encode()
    headers: Headers = [JSON, _NOSNIFF, (b"x-request-id", identifier), (b"request-id", identifier)]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % round(error.retry_after_s * 1000)))
    elif error.status < 500 and error.status not in (408, 409):
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, MethodRefused) and error.allow:
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, UpgradeRequired):
        headers.append((b"upgrade", b"websocket"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if draining or error.status in (400, 408, 413, 414, 431):
        headers.append((b"connection", b"close"))
    return headers


async def refuse(
    send: Send,
    voice: Voice,
    error: FleetError,
    request_id: str,
    *,
    head_only: bool = False,
    draining: bool = False,
    extra: Headers | None = None,
) -> None:
    headers = refusal_headers(error, request_id, draining=draining)
    if extra:
        headers += extra
    body = dialect_errors.body(voice, error, request_id)
    await respond(send, error.status, headers, body, head_only=head_only)


def health(path: bytes, snapshot: Snapshot, *, draining: bool, hub: bool) -> tuple[int, bytes]:
    """Status and body of /healthz, /livez and /readyz: no key needed, no backend asked."""
    if path != b"/readyz":
        return 200, b'{"status":"ok"}'
    checks = {
        "snapshot": snapshot.version > 0,
        "backends": any(routed.usable for routed in snapshot.table.backends),
        "hub": hub,
        "accepting": not draining,
    }
    failed = [name for name, passed in checks.items() if not passed]
    if not failed:
        return 200, b'{"status":"ok"}'
    return 503, msgspec.json.encode({"status": "not_ready", "failed": failed})
