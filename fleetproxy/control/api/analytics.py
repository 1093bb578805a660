"""`GET /api/analytics`: traffic, latency, tokens, errors and routing of the last hours."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router, get

from fleetproxy.control.api import series
from fleetproxy.control.api.guard import USER
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, hours
from fleetproxy.control.api.requests import MAX_HOURS, records_of


@get("/api/analytics", opt=USER)
async def analytics(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """Traffic of the last `hours` (24; a year at most), by hour up to a week, by day beyond it.

    `fill=true` adds the hours or days in which nobody asked.
    """
    fill = request.query_params.get("fill", "").lower() in ("1", "true", "yes")
    found = await records_of(request).analytics(hours(request, 24, MAX_HOURS), fill=fill)
    return Response(found, headers={"cache-control": "no-store"})


handlers = [
    Router(path="/", route_handlers=[analytics], exception_handlers=EXCEPTION_HANDLERS, tags=["records"]),
    *series.handlers,
]
