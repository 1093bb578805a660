"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router, get

from fleetproxy.control.api.guard import PUBLIC
from fleetproxy.control.metrics import Metrics


@get("/metrics", opt=PUBLIC, include_in_schema=True)
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Every metric of this fleetproxy: OpenMetrics when `Accept` asks for it, else Prometheus' text format."""
    exporter = request.app.state["metrics"]
    assert isinstance(exporter, Metrics)
    body, content_type = await exporter.scrape(request.headers.get("accept", ""))
    # As a header: to a media type of its own Litestar would add the charset once more.
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})


handlers = [Router(path="/", route_handlers=[metrics], tags=["metrics"])]
