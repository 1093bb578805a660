"""Where control answers: control.sock, which the proxies relay to, and TCP addresses of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litestar import Litestar

from fleetproxy import log
from fleetproxy.control import app
from fleetproxy.control.api import (
    analytics,
    client,
    dashboard,
    explain,
    fleet,
    live,
    metrics,
    query,
    request_list,
    routes,
    state,
    story,
    workers,
)
from fleetproxy.control.api.peer import direct, linked
from fleetproxy.listen import App, Listener, serve
from fleetproxy.settings import Settings, Tls
from fleetproxy.settings.servers import parse_listen

_log = log.get("control")

#: A TCP address that cannot be had is tried again after this.
LISTEN_AGAIN_S = 5.0

HANDLERS: list[Any] = [
    *routes.HANDLERS,
    *request_list.handlers,
    *analytics.handlers,
    *query.handlers,
    *metrics.handlers,
    *state.handlers,
    *client.handlers,
    *dashboard.handlers,
    *explain.handlers,
    *story.handlers,
    *live.handlers,
    *workers.handlers,
    *fleet.handlers,
]


class Web:
    """`state()` is what the handlers work with; listeners end when `closing` is set."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        runtime: Path,
        state: Callable[[], dict[str, Any]],
        closing: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._state = state
        self._closing = closing

    def application(self) -> Litestar:
        known = self._state()
        return app.build(HANDLERS, known["services"].guard, known)

    def inside(self) -> App:
        """What control.sock answers."""
        return linked(app.with_headers(self.application()))

    async def answer(self, ready: asyncio.Event) -> None:
        """Serve control.sock, once there is something to tell: the supervisor starts the proxies then."""
        await ready.wait()
        path = self._runtime / "control.sock"
        path.unlink(missing_ok=True)
        await serve(self.inside(), Listener(uds=str(path)), self._closing)

    def addresses(self) -> list[tuple[str, App, Listener]]:
        """TCP addresses of our own: what they are for, what answers there, where."""
        settings = self._settings()
        found: list[tuple[str, App, Listener]] = []
        if settings.dashboard.listen:
            whole = direct(app.with_headers(self.application()), lambda: self._settings().auth.trusted_proxies)
            found.append(("dashboard.listen", whole, self._listener(settings.dashboard.listen, settings.tls)))
        if settings.metrics.listen:
            known = self._state()
            alone = app.build(metrics.handlers, known["services"].guard, {"metrics": known["metrics"]})
            found.append(
                (
                    "metrics.listen",
                    direct(app.with_headers(alone), lambda: ()),
                    self._listener(settings.metrics.listen),
                )
            )
        return found

    async def listen(self, name: str, served: App, listener: Listener) -> None:
        """Serve a TCP address; one that is taken is tried again, for the rest of control goes on without it."""
        while not self._closing.is_set():
            try:
                await serve(served, listener, self._closing)
            except Exception as error:
                _log.error("%s: cannot listen on %s:%d: %s; trying again", name, listener.host, listener.port, error)
                await asyncio.sleep(LISTEN_AGAIN_S)

    def _listener(self, address: str, tls: Tls | None = None) -> Listener:
        host, port = parse_listen(address, self._settings().host)
        certificate, key = (tls.cert, tls.key) if tls else (None, None)
        return Listener(host=host, port=port, connections=1024, tls_cert=certificate, tls_key=key)
