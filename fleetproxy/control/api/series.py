"""Charts: `GET /api/analytics/series` (numbers over time) and `GET /api/analytics/residency` (models in memory)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
from litestar import Request, Response, Router, get

from fleetproxy.control.analytics.answers import Answer, as_csv
from fleetproxy.control.analytics.series import (
    BUCKETS,
    DEFAULT_TOP,
    FAMILIES,
    FILTERS,
    GROUPS,
    MAX_TOP,
    METRICS,
    Question,
    Series,
    metrics_of,
    table,
)
from fleetproxy.control.api.guard import USER
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, hours, integer, moment_of, stamp
from fleetproxy.control.api.requests import MAX_HOURS, records_of
from fleetproxy.control.services import services_of
from fleetproxy.core.moments import microseconds
from fleetproxy.core.residency import Interval, intervals
from fleetproxy.errors import BadRequest

_MAX_CHARACTERS = 512
MAX_STAYS = 5000

_MOMENT = {"type": "string", "description": "ISO 8601, seconds since the epoch, or how long ago: 7d, 12h."}
_WINDOW: dict[str, Any] = {
    "hours": {"type": "number", "default": 24, "maximum": MAX_HOURS, "description": "Unless `from` is given."},
    "from": _MOMENT,
    "to": {**_MOMENT, "description": f"{_MOMENT['description']} Now, when it is left out."},
    "format": {"type": "string", "enum": ["json", "csv"], "default": "json"},
}
#: For the API document: what the parameters may be.
SERIES: dict[str, Any] = {
    **USER,
    "parameters": {
        **_WINDOW,
        "bucket": {"type": "string", "enum": ["auto", *BUCKETS], "default": "auto"},
        "group_by": {"type": "string", "enum": list(GROUPS), "default": "none"},
        "metrics": {
            "type": "string",
            "default": "requests,errors",
            "description": f"Comma-separated, of: {', '.join(METRICS)}; or {', '.join(FAMILIES)} for several.",
        },
        "top": {"type": "integer", "default": DEFAULT_TOP, "minimum": 1, "maximum": MAX_TOP},
        **{name: {"type": "string", "description": "Only requests with this."} for name in FILTERS},
    },
}
RESIDENCY: dict[str, Any] = {
    **USER,
    "parameters": {**_WINDOW, "server": {"type": "string"}, "model": {"type": "string"}},
}


class Stay(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A model in a server's memory."""

    server_id: int
    server_name: str
    model: str
    #: May be before `from`.
    loaded_at: str
    #: null: still there at `to`.
    unloaded_at: str | None
    #: Of it, between `from` and `to`.
    seconds: float
    size_bytes: int
    vram_bytes: int
    parameter_size: str | None
    quantization: str | None


class Residency(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `GET /api/analytics/residency`."""

    from_: str = msgspec.field(name="from")
    to: str
    #: There were more; the newest are here.
    truncated: bool
    stays: list[Stay]


@get("/api/analytics/series", opt=SERIES)
async def series(request: Request[Any, Any, Any]) -> Response[Series]:
    """Numbers and percentiles over time, told apart by one property of the requests.

    Buckets are aligned to UTC; the first and the last may be cut by `from` and `to`. The `top` values with most
    requests have a series each, the rest is one more. A count is null where nobody asked at all, a percentile where
    there was nothing to measure. Long times are told from hourly counts by size: `exact` is false then, and
    percentiles are right to `percentileError`.
    """
    since, until = window(request)
    asked = request.query_params
    question = Question(
        since_us=microseconds(since),
        until_us=microseconds(until),
        bucket_s=BUCKETS.get(_word(asked.get("bucket"), ("auto", *BUCKETS), "bucket")),
        group_by=_word(asked.get("group_by"), GROUPS, "group_by"),
        metrics=metrics_of(asked.get("metrics", "")),
        top=max(1, min(integer(asked.get("top")) or DEFAULT_TOP, MAX_TOP)),
        filters={name: asked[name][:_MAX_CHARACTERS] for name in FILTERS if asked.get(name)},
    )
    csv = _csv(request)
    found = await records_of(request).series(question)
    return _sent(found, table(found) if csv else None, "series")


@get("/api/analytics/residency", opt=RESIDENCY)
async def residency(request: Request[Any, Any, Any]) -> Response[Residency]:
    """Which model was in which server's memory from when to when, by server, model and time; 5000 stays at most."""
    since, until = window(request)
    asked = request.query_params
    server, model = asked.get("server"), asked.get("model")
    csv = _csv(request)
    await records_of(request).store.flush()
    sightings = await services_of(request).records.sightings(since)
    found = [
        stay
        for stay in intervals(sightings, since, until)
        if server in (None, "", stay.server) and model in (None, "", stay.model)
    ]
    shown = sorted(found, key=lambda stay: stay.loaded_at, reverse=True)[:MAX_STAYS]
    stays = [_stay(stay) for stay in sorted(shown, key=lambda stay: (stay.server_id, stay.model, stay.loaded_at))]
    answer = Residency(from_=stamp(since), to=stamp(until), truncated=len(found) > MAX_STAYS, stays=stays)
    return _sent(answer, _table_of(stays) if csv else None, "residency")


def window(request: Request[Any, Any, Any]) -> tuple[datetime, datetime]:
    """The time asked about: `from` and `to`, else the last `hours`. Raises BadRequest."""
    asked = request.query_params
    now = services_of(request).now()
    until = _moment(asked.get("to"), "to", now) or now
    since = _moment(asked.get("from"), "from", now) or until - timedelta(hours=hours(request, 24, MAX_HOURS))
    if since >= until:
        raise BadRequest("`from` must be before `to`")
    if until - since > timedelta(hours=MAX_HOURS):
        raise BadRequest(f"At most {MAX_HOURS} hours can be asked about at once")
    return since, until


def _moment(text: str | None, name: str, now: datetime) -> datetime | None:
    return moment_of(text, name, now) if text else None


def _word(text: str | None, known: tuple[str, ...], name: str) -> str:
    """One of the words; the first one when nothing is asked for. Raises BadRequest."""
    if not text:
        return known[0]
    if text not in known:
        raise BadRequest(f"`{name}` wants one of {', '.join(known)}")
    return text


def _csv(request: Request[Any, Any, Any]) -> bool:
    return _word(request.query_params.get("format"), ("json", "csv"), "format") == "csv"


def _sent(answer: Any, rows: Answer | None, name: str) -> Response[Any]:
    headers = {"cache-control": "no-store"}
    if rows is None:
        return Response(msgspec.json.encode(answer), headers=headers, media_type="application/json")
    headers["content-disposition"] = f'attachment; filename="{name}.csv"'
    return Response(as_csv(rows).encode(), headers=headers, media_type="text/csv")


def _stay(stay: Interval) -> Stay:
    return Stay(
        server_id=stay.server_id,
        server_name=stay.server,
        model=stay.model,
        loaded_at=stamp(stay.loaded_at),
        unloaded_at=None if stay.unloaded_at is None else stamp(stay.unloaded_at),
        seconds=round(stay.seconds, 3),
        size_bytes=stay.size_bytes,
        vram_bytes=stay.vram_bytes,
        parameter_size=stay.parameter_size,
        quantization=stay.quantization,
    )


def _table_of(stays: list[Stay]) -> Answer:
    columns = tuple(field.encode_name for field in msgspec.structs.fields(Stay))
    return Answer(columns, ("VARCHAR",) * len(columns), [list(msgspec.structs.astuple(stay)) for stay in stays])


handlers = [
    Router(path="/", route_handlers=[series, residency], exception_handlers=EXCEPTION_HANDLERS, tags=["records"])
]
