"""The SQL page: `/api/query/saved` (queries administrators keep) and `GET /api/query/tables` (what can be asked)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.params import FromPath
from msgspec import Meta

from fleetproxy.control.analytics.dictionary import Relation
from fleetproxy.control.analytics.sandbox import SQL_CHARACTERS
from fleetproxy.control.analytics.store import ASKED
from fleetproxy.control.api.guard import ADMIN, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body, path_id, stamp
from fleetproxy.control.api.requests import records_of
from fleetproxy.control.services import services_of
from fleetproxy.control.state import queries
from fleetproxy.errors import BadRequest

FleetRequest = Request[Identity, Any, Any]
_FAULT = (
    'Send {"name": "...", "sql": "...", "description": null, "shared": false}: a name of 1 to 80 characters, '
    f"at most {SQL_CHARACTERS} characters of SQL"
)


class NewQuery(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    sql: Annotated[str, Meta(min_length=1, max_length=SQL_CHARACTERS)]
    description: Annotated[str, Meta(max_length=1000)] | None = None
    #: Other administrators see it, too.
    shared: bool = False
    #: Changes that one instead of keeping a new one.
    id: int | None = None


class SavedQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    id: int
    name: str
    description: str | None
    sql: str
    shared: bool
    #: null: its owner is gone, or it was kept with a key that belongs to nobody.
    owner: str | None
    own: bool
    created_at: str
    updated_at: str


class SavedQueries(msgspec.Struct, frozen=True):
    queries: list[SavedQuery]


class Limits(msgspec.Struct, frozen=True, rename="camel"):
    """What one question may take."""

    rows: int
    seconds: float
    #: Questions of this kind answered at the same time.
    at_once: int


class Tables(msgspec.Struct, frozen=True):
    tables: list[Relation]
    limits: Limits


@get("/api/query/saved", opt=ADMIN)
async def list_saved(request: FleetRequest) -> Response[SavedQueries]:
    """One's own kept queries and those that are shared, by name."""
    found = await services_of(request).store.read(queries.visible, _caller(request))
    return _sent(SavedQueries([_shown(request, one) for one in found]))


@post("/api/query/saved", opt=ADMIN, status_code=201)
async def keep_query(request: FleetRequest) -> Response[SavedQuery]:
    """Keep a query, 200 per user; with `id`, change one of one's own. 409: another one has that name."""
    asked = await body(request, NewQuery, _FAULT)
    name = asked.name.strip()
    if not name or not asked.sql.strip() or not name.isprintable():
        raise BadRequest(_FAULT)
    services = services_of(request)
    kept = await services.store.write(
        queries.keep,
        _caller(request),
        services.now(),
        name=name,
        sql=asked.sql,
        description=asked.description,
        shared=asked.shared,
        query_id=asked.id,
    )
    return _sent(_shown(request, kept), 201 if asked.id is None else 200)


@delete("/api/query/saved/{query_id:str}", opt=ADMIN, status_code=200)
async def delete_saved(request: FleetRequest, query_id: FromPath[str]) -> dict[str, bool]:
    """Delete one of one's own kept queries, or a shared one."""
    await services_of(request).store.write(queries.remove, _caller(request), path_id(query_id, "query ID"))
    return {"success": True}


@get("/api/query/tables", opt=ADMIN)
async def tables(request: FleetRequest) -> Response[Tables]:
    """Tables and views that SQL may ask, their columns and what these mean; rows are about right."""
    records = records_of(request)
    settings = records.store.settings
    limits = Limits(settings.query_rows, settings.query_timeout_s, ASKED)
    return _sent(Tables(await records.tables(), limits))


def _caller(request: FleetRequest) -> int | None:
    """Whose queries: a user's, or those of everybody who calls with a key that belongs to nobody."""
    return None if request.user.user is None else request.user.user.id


def _shown(request: FleetRequest, query: queries.SavedQuery) -> SavedQuery:
    return SavedQuery(
        id=query.id,
        name=query.name,
        description=query.description,
        sql=query.sql,
        shared=query.is_shared,
        owner=query.owner,
        own=query.owner_id == _caller(request),
        created_at=stamp(query.created_at),
        updated_at=stamp(query.updated_at),
    )


def _sent(answer: Any, status: int = 200) -> Response[Any]:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(answer), status_code=status, headers=headers, media_type="application/json")


handlers = [
    Router(
        path="/",
        route_handlers=[list_saved, keep_query, delete_saved, tables],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["records"],
    )
]
