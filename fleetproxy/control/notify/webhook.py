"""Posting notices to a URL of the operator's, signed.

POST <url>
content-type: application/json
x-fleet-signature: sha256=<HMAC-SHA256 of the body with the secret, in hex>      (when there is a secret)

{"notices": [{"kind": "offline", "title": ..., "subject": "gpu1", "text": ..., "serverId": 1, "at": ...}, ...]}
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC

import msgspec

from fleetproxy.control.notify.messages import Notice
from fleetproxy.control.registry import backend_at
from fleetproxy.control.state.notices import Webhook
from fleetproxy.errors import BadResponse
from fleetproxy.transport.base import Call, Transport

TIMEOUT_S = 10.0


async def post(transport: Transport, hook: Webhook, notices: Sequence[Notice]) -> None:
    """Post notices; anything but a 2xx answer raises BackendError."""
    base, _, query = hook.url.partition("?")
    backend = backend_at(base)
    body = msgspec.json.encode({"notices": [_shown(notice) for notice in notices]})
    lines = b"content-type: application/json\r\nuser-agent: fleetproxy\r\n"
    if hook.secret:
        lines += b"x-fleet-signature: %b\r\n" % signature(hook.secret, body).encode()
    target = (backend.path_prefix or "/") + (f"?{query}" if query else "")
    call = Call(method=b"POST", target=target.encode(), header_lines=lines, body=body, fresh=True)
    async with asyncio.timeout(TIMEOUT_S):
        upstream = await transport.open(backend, call, TIMEOUT_S)
        try:
            answer = await upstream.answer()
            if not 200 <= answer.status < 300:
                raise BadResponse(f"the webhook answered {answer.status}")
        finally:
            upstream.close()


def signature(secret: str, body: bytes) -> str:
    """What `x-fleet-signature` says."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _shown(notice: Notice) -> dict[str, object]:
    return {
        "kind": notice.kind,
        "title": notice.title,
        "subject": notice.subject,
        "text": "".join(line if line.startswith(" ") else f"\n{line}" for line in notice.lines).strip(),
        "serverId": notice.server_id,
        "at": notice.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
