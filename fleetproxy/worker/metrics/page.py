"""What the agent serves: `/metrics`, in the words of whoever asks, and `/healthz`."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable

from fleetproxy.core.access import bearer_token
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.worker.metrics.reading import Reading, as_json, as_prometheus

#: One look serves everybody who asks within this time.
KEEP_S = 1.0
_JSON, _TEXT = b"application/json", b"text/plain; version=0.0.4; charset=utf-8"


class Page:
    """An ASGI app. `look` may take a while (a driver's tool): it runs in a thread, one at a time."""

    def __init__(
        self, look: Callable[[], Reading], key: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = look
        self._key = key
        self._clock = clock
        self._looking = asyncio.Lock()
        self._kept: tuple[float, Reading] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if path not in ("/metrics", "/healthz"):
            await _say(send, 404, b'{"error":"not_found"}')
        elif method not in ("GET", "HEAD"):
            await _say(send, 405, b'{"error":"method_not_allowed"}', extra=(b"allow", b"GET, HEAD"))
        elif path == "/healthz":
            await _say(send, 200, b'{"status":"ok"}', head=method == "HEAD")
        elif not self._may(scope):
            await _say(send, 401, b'{"error":"unauthorized"}', extra=(b"www-authenticate", b"Bearer"))
        else:
            reading = await self.reading()
            if _wants_text(scope):
                await _say(send, 200, as_prometheus(reading).encode(), kind=_TEXT, head=method == "HEAD")
            else:
                await _say(send, 200, as_json(reading), head=method == "HEAD")

    async def reading(self) -> Reading:
        async with self._looking:
            if self._kept is None or self._clock() - self._kept[0] >= KEEP_S:
                self._kept = self._clock(), await asyncio.to_thread(self._look)
            return self._kept[1]

    def _may(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        headers = dict(scope["headers"])
        shown = bearer_token(headers.get(b"authorization", b"")) or headers.get(b"x-api-key", b"")
        return hmac.compare_digest(shown, self._key.encode())


def _wants_text(scope: Scope) -> bool:
    """Prometheus names its text formats; fleet managers, browsers and curl do not."""
    if scope["query_string"] == b"format=prometheus":
        return True
    accepted = dict(scope["headers"]).get(b"accept", b"").lower()
    return b"application/openmetrics-text" in accepted or accepted.startswith(b"text/plain")


async def _say(
    send: Send,
    status: int,
    body: bytes,
    *,
    kind: bytes = _JSON,
    extra: tuple[bytes, bytes] | None = None,
    head: bool = False,
) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"vary", b"accept"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers + ([extra] if extra else [])})
    await send({"type": "http.response.body", "body": b"" if head else body})
