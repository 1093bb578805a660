"""`POST /api/query`: SQL over the store, for administrators. One SELECT or EXPLAIN, read only, bounded."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
import orjson
from litestar import Request, Response, Router, post

from fleetproxy.control.analytics.answers import as_csv
from fleetproxy.control.api import export, saved_queries
from fleetproxy.control.api.guard import ADMIN
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body
from fleetproxy.control.api.requests import records_of
from fleetproxy.errors import BadRequest

_JSON = "application/json"
_FAULT = 'Send {"sql": "select …"}'


class Query(msgspec.Struct):
    sql: str
    #: "objects": an array of objects. "table": columns, types and rows apart, and whether that is all. "csv": a file.
    shape: Literal["objects", "table", "csv"] = "objects"


@post("/api/query", opt=ADMIN, status_code=200)
async def query(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer one SELECT or EXPLAIN over the tables of the store, rows of the last second included.

    At most `analytics.query_rows` rows; `x-fleet-truncated` says when there were more. `analytics.query_timeout_s` is
    the time limit (504). Two queries run at once (429).
    """
    asked = await body(request, Query, _FAULT)
    if not asked.sql.strip():
        raise BadRequest(_FAULT)
    began_s = time.perf_counter()
    answer = await records_of(request).ask(asked.sql)
    elapsed_ms = round((time.perf_counter() - began_s) * 1000, 1)
    headers = {"cache-control": "no-store", "x-fleet-query-ms": str(elapsed_ms)}
    if answer.truncated:
        headers["x-fleet-truncated"] = answer.truncated
    if asked.shape == "csv":
        headers["content-disposition"] = 'attachment; filename="query.csv"'
        return Response(as_csv(answer).encode(), headers=headers, media_type="text/csv")
    shown: Any = answer.objects()
    if asked.shape == "table":
        shown = {
            "columns": [{"name": n, "type": kind} for n, kind in zip(answer.columns, answer.types, strict=True)],
            "rows": answer.rows,
            "truncated": answer.truncated,
            "elapsedMs": elapsed_ms,
        }
    return Response(orjson.dumps(shown), headers=headers, media_type=_JSON)


handlers = [
    Router(
        path="/",
        route_handlers=[query],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["records"],
    ),
    *saved_queries.handlers,
    *export.handlers,
]
