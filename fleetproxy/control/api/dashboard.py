"""`/dashboard`: the web application. Files as they were built, and its first page for every address inside it."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, get
from litestar.params import FromPath
from litestar.response import Redirect

from fleetproxy.control import pages
from fleetproxy.control.api.guard import PUBLIC
from fleetproxy.control.pages import Asset
from fleetproxy.errors import PathUnknown

#: Nothing inline, nothing from elsewhere, never in a frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FIRST = "index.html"
#: Named by their content: they never change.
_HASHED = "assets/"
_FOREVER = "public, max-age=31536000, immutable"
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_NOT_BUILT = (
    b"This installation has no dashboard: it runs from a checkout in which it was not built. Run `just ui`, or install "
    b"the package (`pip install .`), and restart fleetproxy. The API is at /api/client/, the state page at /state.\n"
)

DashboardRequest = Request[Any, Any, Any]


@get("/", opt=PUBLIC, include_in_schema=False)
async def lead_on() -> Redirect:
    """To the dashboard: on an address of control's own there is nothing else at `/`."""
    return Redirect("/dashboard/", status_code=307)


@get(["/dashboard", "/dashboard/{path:path}"], opt=PUBLIC, tags=["dashboard"])
async def show_dashboard(request: DashboardRequest, path: FromPath[str] = "") -> Response[bytes]:
    """The dashboard. It asks for the login itself; addresses inside it are its own to read."""
    files = await asyncio.to_thread(pages.built, "dashboard")
    if _FIRST not in files:
        return Response(_NOT_BUILT, status_code=503, media_type="text/plain")
    name = path.removeprefix("/")
    if name.startswith(_HASHED) and name not in files:
        raise PathUnknown("There is nothing at this path; the dashboard was updated: reload it")
    hashed = name.startswith(_HASHED)
    return _answer(request, files.get(name, files[_FIRST]), _FOREVER if hashed else "no-cache")


def _answer(request: DashboardRequest, asset: Asset, keep: str) -> Response[bytes]:
    headers = {**_HEADERS, "cache-control": keep, "etag": asset.etag, "vary": "Accept-Encoding"}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(b"", status_code=304, headers=headers)
    content = asset.content
    if asset.gzipped is not None and "gzip" in request.headers.get("accept-encoding", "").lower():
        headers["content-encoding"] = "gzip"
        content = asset.gzipped
    return Response(content, headers=headers, media_type=asset.media_type)


handlers: list[Any] = [lead_on, show_dashboard]
