"""`/api/client/*`: the OpenAPI document, and Swagger UI to read and try it; all of it served from here."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.params import FromPath

from fleetproxy.control import pages
from fleetproxy.control.api import openapi, reference
from fleetproxy.control.api.guard import PUBLIC
from fleetproxy.control.api.state import page_response
from fleetproxy.control.services import services_of

#: Swagger UI 5 needs nothing inline (tried in Chromium), and nothing comes from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

ClientRequest = Request[Any, Any, Any]
#: Families that are on -> the document. There are few such sets, one as a rule.
_made: dict[tuple[str, ...], bytes] = {}


@get("/api/client/openapi.json", opt=PUBLIC, tags=["client"])
async def show_document(request: ClientRequest) -> Response[bytes]:
    """The OpenAPI 3.1 document of every path that answers here."""
    plugins = services_of(request).settings().plugins
    if plugins not in _made:
        _made.clear()
        _made[plugins] = await asyncio.to_thread(_make, plugins)
    return Response(_made[plugins], media_type="application/json", headers={"cache-control": "no-cache"})


@get(["/api/client", "/api/client/{path:path}"], opt=PUBLIC, tags=["client"])
async def show_client(request: ClientRequest, path: FromPath[str] = "") -> Response[bytes]:
    """Swagger UI; under any name that is no file of it."""
    files = pages.folder("client")
    page = files.get(path.removeprefix("/"), files["client.html"])
    return page_response(page, _POLICY, accepts=request.headers.get("accept-encoding", ""))


def _make(plugins: tuple[str, ...]) -> bytes:
    return msgspec.json.encode(openapi.document([*reference.every_handler(), *handlers], plugins))


handlers: list[Any] = [show_document, show_client]
