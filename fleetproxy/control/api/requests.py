"""The store behind the routes that tell of requests."""

from __future__ import annotations

from typing import Any

from litestar import Request

from fleetproxy.control.analytics.records import Records

#: A year: what the store may be asked about at once.
MAX_HOURS = 8784


def records_of(request: Request[Any, Any, Any]) -> Records:
    records = request.app.state["records"]
    assert isinstance(records, Records)
    return records
