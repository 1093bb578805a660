"""One shape of errors, one set of headers, whatever a handler does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Request, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.response import Response

from fleetproxy.control.app import build, with_headers
from fleetproxy.errors import StoreUnavailable


async def nobody_is_kept_out(_connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None: ...


@get("/boom")
async def boom() -> None:
    raise ZeroDivisionError("secret words of a fault")


@get("/away")
async def away() -> None:
    raise StoreUnavailable


@get("/own")
async def own() -> Response[str]:
    return Response("x", headers={"cache-control": "max-age=60", "content-security-policy": "default-src 'self'"})


@post("/big")
async def big(request: Request[Any, Any, Any]) -> int:
    return len(await request.body())


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = with_headers(build([boom, away, own, big], nobody_is_kept_out, {}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:  # type: ignore[arg-type]
        yield client


async def test_a_fault_of_ours_says_nothing_of_itself(client: httpx.AsyncClient) -> None:
    answer = await client.get("/boom")
    assert (answer.status_code, answer.json()) == (500, {"error": "Internal error; see the log"})
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_errors_of_ours_keep_their_status_and_their_hint(client: httpx.AsyncClient) -> None:
    answer = await client.get("/away")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert set(answer.json()) == {"error"}


async def test_a_handler_may_say_otherwise(client: httpx.AsyncClient) -> None:
    answer = await client.get("/own")
    assert answer.headers.get_list("cache-control") == ["max-age=60"]
    assert answer.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert answer.headers.get_list("x-frame-options") == ["DENY"]


async def test_bodies_are_bounded(client: httpx.AsyncClient) -> None:
    answer = await client.post("/big", content=b"x" * (300 * 1024))
    assert answer.status_code == 413
    assert set(answer.json()) == {"error"}
