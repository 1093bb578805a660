"""`GET /api/requests`: the newest requests, and who asked what."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router, get

from fleetproxy.control.analytics.queries import FILTERS, LIST_ROWS
from fleetproxy.control.analytics.records import Records
from fleetproxy.control.api.guard import USER
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, hours, integer, limit

#: A year: what the store may be asked about at once.
MAX_HOURS = 8784
_MAX_CHARACTERS = 512


def records_of(request: Request[Any, Any, Any]) -> Records:
    records = request.app.state["records"]
    assert isinstance(records, Records)
    return records


@get("/api/requests", opt=USER)
async def requests(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """Requests of the last `hours` (24), newest first, 500 at most, and their number by source, model and server.

    Narrowed by `model`, `server`, `source`, `user`, `outcome`, `status` (404 or 4xx) and `request_id`; `limit` rows,
    those before the row id `before` for the next page.
    """
    asked = request.query_params
    found = await records_of(request).requests(
        hours(request, 24, MAX_HOURS),
        filters={name: asked[name][:_MAX_CHARACTERS] for name in FILTERS if asked.get(name)},
        before=integer(asked.get("before")),
        limit=limit(request, LIST_ROWS, LIST_ROWS),
    )
    return Response(found, headers={"cache-control": "no-store"})


handlers = [Router(path="/", route_handlers=[requests], exception_handlers=EXCEPTION_HANDLERS, tags=["records"])]
