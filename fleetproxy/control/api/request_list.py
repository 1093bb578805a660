"""`GET /api/requests`: the newest requests, who asked what, and the same as a file."""

from __future__ import annotations

from typing import Any, cast

from litestar import Request, Response, Router, get

from fleetproxy.control.analytics.downloads import MAX_ROWS, MEDIA, Kind
from fleetproxy.control.analytics.queries import FILTERS, LIST_ROWS, NEWEST, SORTS, Window
from fleetproxy.control.api.guard import USER
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, hours, integer, limit
from fleetproxy.control.api.requests import MAX_HOURS, records_of
from fleetproxy.control.api.series import window
from fleetproxy.errors import BadRequest

_MAX_CHARACTERS = 512
#: For the API document: what the parameters may be.
LIST: dict[str, Any] = {
    **USER,
    "parameters": {
        "hours": {"type": "number", "default": 24, "maximum": MAX_HOURS, "description": "Unless `from` is given."},
        "from": {"type": "string", "description": "ISO 8601, or seconds since the epoch."},
        "to": {"type": "string", "description": "The same. Now, when it is left out."},
        **{name: {"type": "string", "description": "Only requests with this."} for name in FILTERS},
        "sort": {"type": "string", "enum": [*SORTS, *(f"-{word}" for word in SORTS)], "default": NEWEST},
        "before": {"type": "integer", "description": "The `id` of the last row of the page before."},
        "limit": {"type": "integer"},
        "format": {"type": "string", "enum": ["json", *MEDIA], "default": "json"},
    },
}


@get("/api/requests", opt=LIST)
async def requests(request: Request[Any, Any, Any]) -> Response[Any]:
    """Requests of the last `hours` (24), or `from` and `to`, and their number by source, model and server.

    Newest first unless `sort` says otherwise, 500 at most. Narrowed by `model`, `server`, `source`, `user`, `outcome`,
    `status` (404 or 4xx) and `request_id`; `limit` rows, those after the row id `before` for the next page. `format`
    gives a file with all columns of the table, 100000 rows at most.
    """
    asked = request.query_params
    sort, kind = asked.get("sort") or NEWEST, asked.get("format") or "json"
    if sort.removeprefix("-") not in SORTS:
        raise BadRequest(f"`sort` wants one of {', '.join(SORTS)}, with a minus before it for the largest first")
    if kind not in ("json", *MEDIA):
        raise BadRequest(f"`format` wants one of json, {', '.join(MEDIA)}")
    time: int | Window = hours(request, 24, MAX_HOURS)
    if asked.get("from") or asked.get("to"):
        since, until = window(request)
        time = Window.between(since, until)
    filters = {name: asked[name][:_MAX_CHARACTERS] for name in FILTERS if asked.get(name)}
    headers = {"cache-control": "no-store"}
    if kind == "json":
        before, rows = integer(asked.get("before")), limit(request, LIST_ROWS, LIST_ROWS)
        found = await records_of(request).requests(time, filters=filters, before=before, limit=rows, sort=sort)
        return Response(found, headers=headers)
    file, rows = cast(Kind, kind), limit(request, MAX_ROWS, MAX_ROWS)
    content = await records_of(request).download(time, file, filters=filters, limit=rows, sort=sort)
    headers["content-disposition"] = f'attachment; filename="requests.{file}"'
    return Response(content, headers=headers, media_type=MEDIA[file])


handlers = [Router(path="/", route_handlers=[requests], exception_handlers=EXCEPTION_HANDLERS, tags=["records"])]
