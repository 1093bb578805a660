"""`GET /api/query/export/{table}`: a table's rows as a file, for administrators. `fleetproxy export` asks here, too."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, get_args

from litestar import Request, Router, get
from litestar.params import FromPath
from litestar.response import Stream

from fleetproxy.control.analytics.export import FORMATS, TABLES, Span
from fleetproxy.control.api.guard import ADMIN
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, moment_of
from fleetproxy.control.api.requests import records_of
from fleetproxy.control.job_actions import Kept
from fleetproxy.control.services import services_of
from fleetproxy.core.moments import WANTS
from fleetproxy.errors import BadRequest, PathUnknown

PIECE_BYTES = 256 * 1024
_AGO = {"type": "string", "description": f"{WANTS[0].upper()}{WANTS[1:]}."}
#: For the API document: what the parameters may be.
EXPORT: dict[str, Any] = {
    **ADMIN,
    "parameters": {
        "since": {**_AGO, "default": "7d"},
        "until": {**_AGO, "description": "As `since`; now, when it is left out."},
        "format": {"type": "string", "enum": list(FORMATS), "default": "parquet"},
    },
}


@get("/api/query/export/{table:str}", opt=EXPORT)
async def export(request: Request[Any, Any, Any], table: FromPath[str]) -> Stream:
    """A table's rows `since` then as Parquet, CSV or JSON lines, in the order of time, the newest included.

    Tables: requests, attempts, model_events, server_events, system_metrics, metric_samples, job_runs, requests_hourly.
    Two are written at once (429).
    """
    if table not in get_args(Kept) or table not in TABLES:
        raise PathUnknown(f"There is no table {table[:64]!r} to export: known are {', '.join(get_args(Kept))}")
    asked = request.query_params
    form = asked.get("format") or "parquet"
    if form not in FORMATS:
        raise BadRequest(f"`format` wants one of {', '.join(FORMATS)}")
    now = services_of(request).now()
    since = moment_of(asked.get("since") or "7d", "since", now)
    until = moment_of(asked["until"], "until", now) if asked.get("until") else now + timedelta(days=1)
    if since >= until:
        raise BadRequest("`since` must be before `until`")
    name = f"{table}.{FORMATS[form].suffix}"
    target = services_of(request).data / "exports" / f".{secrets.token_hex(8)}-{name}"
    rows = await records_of(request).write_rows(Span(table, since, until), form, target)
    file = await asyncio.to_thread(_take, target)
    headers = {
        "cache-control": "no-store",
        "content-disposition": f'attachment; filename="{name}"',
        "content-length": str(os.fstat(file.fileno()).st_size),
        "x-fleet-rows": str(rows),
    }
    return Stream(_pieces(file), headers=headers, media_type=FORMATS[form].media_type)


def _take(path: Path) -> IO[bytes]:
    """Open a file and take its name away: whatever happens now, nothing is left of it."""
    file = path.open("rb")
    path.unlink()
    return file


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Piece by piece. The file is closed at its end; and by being forgotten, when nobody begins to read."""
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece


handlers = [Router(path="/", route_handlers=[export], exception_handlers=EXCEPTION_HANDLERS, tags=["records"])]
