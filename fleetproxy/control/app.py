"""Control's web application: every handler behind one guard, one shape of errors, one set of headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.routes import HTTPRoute
from litestar.types import ControllerRouterHandler, Guard

from fleetproxy import log
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES
from fleetproxy.listen import App, Message, Receive, Scope, Send

_log = log.get("control.api")

#: Added to every answer that does not say otherwise itself.
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


def build(handlers: Sequence[ControllerRouterHandler], guard: Guard, state: dict[str, Any]) -> Litestar:
    """The application. `state` is what its handlers work with, by name."""
    return Litestar(
        list(handlers),
        guards=[guard],
        state=State(state),
        exception_handlers={**EXCEPTION_HANDLERS, Exception: failed},
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=None,
        debug=False,
        logging_config=None,
    )


def failed(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    """A fault of ours: the caller learns that there was one, the log learns which."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Response({"error": "Internal error; see the log"}, status_code=500, media_type="application/json")


def with_headers(app: Litestar) -> App:
    """Put the security headers on every answer, those of errors included; and all methods of a path in `Allow`."""
    # The framework's own answer to OPTIONS knows the methods of whichever handler of a path came first.
    allowed = {
        route.path_format: ", ".join(sorted(route.methods)) for route in app.routes if isinstance(route, HTTPRoute)
    }

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                methods = allowed.get(scope.get("path_template", "")) if scope["method"] == "OPTIONS" else None
                if methods is not None:
                    headers = [pair for pair in headers if pair[0].lower() != b"allow"]
                    headers.append((b"allow", methods.encode()))
                there = {name.lower() for name, _ in headers}
                headers.extend(pair for pair in _HEADERS if pair[0] not in there)
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_with if scope["type"] == "http" else send)  # type: ignore[arg-type]

    return call
