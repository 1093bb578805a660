"""nfrx's state surface: the envelope, its stream, the page that shows it, and the pieces the page is made of."""

from __future__ import annotations

import gzip
from typing import Any

import msgspec
from litestar import Request, Response, asgi, get
from litestar.params import FromPath
from litestar.types import Receive, Scope, Send

from fleetproxy.control import descriptors, pages
from fleetproxy.control.api import stream
from fleetproxy.control.api.guard import FAMILY, PUBLIC, Guard
from fleetproxy.control.pages import Page
from fleetproxy.control.watch import Watch
from fleetproxy.errors import PathUnknown

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
StateRequest = Request[Any, Any, Any]


def watch_of(app: Any) -> Watch:
    watch = app.state["watch"]
    assert isinstance(watch, Watch)
    return watch


def guard_of(app: Any) -> Guard:
    guard = app.state["services"].guard
    assert isinstance(guard, Guard)
    return guard


@get("/api/state", opt=FAMILY, tags=["state"])
async def show_state(request: StateRequest) -> Response[bytes]:
    """The state of every family, and of the fleet: `{"plugins": {"llm": {...}, ...}}`."""
    return Response(watch_of(request.app).envelope.make(), media_type="application/json")


@get("/api/state/descriptors", opt=FAMILY, tags=["state"])
async def describe_families(request: StateRequest) -> Response[bytes]:
    """Every family, on or off, and the settings that steer it."""
    return Response(msgspec.json.encode(descriptors.all_of_them()) + b"\n", media_type="application/json")


@get("/api/state/view/{name:str}", opt=FAMILY, tags=["state"])
async def show_view(request: StateRequest, name: FromPath[str]) -> Response[bytes]:
    """How the state page shows one element: `{id}.html`, a piece of HTML without script; 204 where there is none."""
    element = name.removesuffix(".html")
    page = pages.folder("state/views").get(name) if element in watch_of(request.app).envelope.elements() else None
    if page is None:
        return Response(b"", status_code=204, media_type="text/html")
    return Response(page.content, media_type=page.media_type)


@get("/state", opt=PUBLIC, tags=["state"])
async def show_page() -> Response[bytes]:
    """The state page. It asks for the key itself where one is needed."""
    return page_response(pages.folder("state")["state.html"], _PAGE_POLICY)


@get("/state/{name:str}", opt=PUBLIC, tags=["state"])
async def show_asset(request: StateRequest, name: FromPath[str]) -> Response[bytes]:
    """What the state page loads: its style sheet and its script."""
    page = pages.folder("state").get(name)
    if page is None:
        raise PathUnknown("There is nothing at this path")
    return page_response(page, _PAGE_POLICY, accepts=request.headers.get("accept-encoding", ""))


async def stream_state(scope: Scope, receive: Receive, send: Send) -> None:
    """The envelope as server-sent events: one at once, then every 2 s, sooner when something changes."""
    app = scope["litestar_app"]
    bulletin = watch_of(app).bulletin
    with bulletin.watching():
        await stream.serve(scope, receive, send, bulletin, stream.credentials(guard_of(app), scope))


def page_response(page: Page, policy: str, *, accepts: str = "") -> Response[bytes]:
    """A file of ours, compressed where it is kept so and the caller takes that."""
    headers = {"content-security-policy": policy, "cache-control": "no-cache"}
    content = page.content
    if page.gzipped:
        headers["vary"] = "Accept-Encoding"
        if "gzip" in accepts.lower():
            headers["content-encoding"] = "gzip"
        else:
            content = gzip.decompress(content)
    return Response(content, headers=headers, media_type=page.media_type)


handlers: list[Any] = [
    show_state,
    describe_families,
    show_view,
    show_page,
    show_asset,
    asgi("/api/state/stream", opt=FAMILY, copy_scope=False)(stream_state),
]
