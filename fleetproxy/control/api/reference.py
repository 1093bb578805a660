"""The reference page of the dashboard API, made from its routes: path, who may call it, what it does."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.types import ControllerRouterHandler

from fleetproxy.control.api import (
    analytics,
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
from fleetproxy.control.api.guard import policy_of

_HEAD = """\
# Dashboard API

JSON in and out, on the public port (and on `dashboard.listen`, when that is set). Instants are ISO 8601 in UTC with
milliseconds. Refusals are `{"error": "<text>"}`: 400 what was sent cannot be used, 401 nobody we know, 403 not
allowed, 404 not there, 409 a rule of the present state, 413 too large, 415 not JSON, 429 too often (`Retry-After`),
503 try again.

Who is calling is told by the cookie `fleet_session` (`POST /api/auth/login`), or by a key in `Authorization: Bearer`,
`X-Ollama-Api-Key` or `x-api-key`: a user's API key with the scope `read` (looking) or `manage` (everything its user may
do), or `auth.admin_key`. A key that is sent decides alone. State-changing calls with a cookie must come from pages of
the same origin; bodies must be `application/json`.

`hours` takes what begins with a positive number; anything else means the default.

| who | may be called by |
|---|---|
| public | everybody |
| family | everybody until `auth.api_key` or `auth.api_http_roles` is set; then any key in force, a session, or a role |
| user | every user |
| self-or-admin | that user, and administrators |
| admin | administrators |

"""


def every_handler() -> list[ControllerRouterHandler]:
    """The routes of every part of control."""
    parts = (request_list, analytics, query, metrics, state, explain, story, live, workers, fleet)
    return [*routes.HANDLERS, *(handler for part in parts for handler in part.handlers)]


def page(handlers: Sequence[ControllerRouterHandler]) -> str:
    """The page, in Markdown."""
    sections: dict[str, list[str]] = {}
    for path, handler in sorted(_routes(handlers), key=lambda one: (one[0], sorted(one[1].http_methods))):
        tag = next(iter(sorted(handler.resolve_tags())), "other") if handler.resolve_tags() else "other"
        methods = ", ".join(sorted(handler.http_methods))
        words = " ".join((inspect.getdoc(handler.fn) or "").split())
        row = f"| {methods} `{_plain(path)}` | {policy_of(handler)} | {words.replace('|', '&#124;')} |"
        sections.setdefault(tag, []).append(row)
    text = _HEAD
    for tag, rows in sorted(sections.items()):
        text += f"## {tag}\n\n| call | who | what |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
    return text.rstrip() + "\n"


def _routes(handlers: Sequence[ControllerRouterHandler]) -> Iterable[tuple[str, HTTPRouteHandler]]:
    app = Litestar(list(handlers), openapi_config=None)
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if isinstance(handler, HTTPRouteHandler) and handler.http_methods != {"OPTIONS"}:
                yield route.path, handler


def _plain(path: str) -> str:
    """`/api/users/{user_id:str}` as people write it."""
    return path.replace(":str}", "}")
