"""nfrx's state surface: the envelope, its stream, the page that shows it, and the pieces the page is made of."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import msgspec
from litestar import Request, Response, asgi, get
from litestar.params import FromPath
from litestar.types import Receive, Scope, Send

from fleetproxy.control import descriptors, pages
from fleetproxy.control.api.guard import FAMILY, PUBLIC
from fleetproxy.control.pages import Page
from fleetproxy.control.watch import Watch
from fleetproxy.errors import MethodRefused, PathUnknown

#: A watcher that does not take a frame in this time is let go.
SEND_S = 10.0
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STREAM = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

StateRequest = Request[Any, Any, Any]


def watch_of(app: Any) -> Watch:
    watch = app.state["watch"]
    assert isinstance(watch, Watch)
    return watch


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
    if scope.get("method") != "GET":
        raise MethodRefused("This path takes GET only", allow="GET")
    bulletin = watch_of(scope["litestar_app"]).bulletin
    with bulletin.watching():
        await send({"type": "http.response.start", "status": 200, "headers": list(_STREAM)})
        leaving = asyncio.ensure_future(_left(receive))
        closing = asyncio.ensure_future(bulletin.closed.wait())
        ends: set[asyncio.Future[Any]] = {leaving, closing}
        try:
            while not leaving.done() and not closing.done():
                try:
                    async with asyncio.timeout(SEND_S):
                        await send({"type": "http.response.body", "body": bulletin.frame(), "more_body": True})
                except TimeoutError:
                    bulletin.dropped += 1
                    return  # without a last piece: the connection is cut
                news = asyncio.ensure_future(bulletin.next())
                await asyncio.wait({news, *ends}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
            if closing.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for end in ends:
                end.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
