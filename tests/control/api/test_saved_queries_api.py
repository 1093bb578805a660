"""The SQL page over HTTP: of a whole control process."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from fleetproxy.control.analytics import schema
from fleetproxy.settings import Analytics, Auth, Poll, Settings
from tests.control.analytics.analytics_kit import line, put, record
from tests.control.running import ADMIN, Running, control, short_folder

pytestmark = pytest.mark.asyncio(loop_scope="module")
SETTINGS = Settings(
    auth=Auth(admin_key="admin-key-of-the-tests", admin_username="root", admin_password="correct horse 7"),
    poll=Poll(interval_s=1000.0),
    analytics=Analytics(memory_bytes=256 * 1024 * 1024),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncIterator[Running]:
    async with control(folder, SETTINGS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def key(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with running.browser(**ADMIN) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def root(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with running.browser() as client:
        login = {"username": "root", "password": "correct horse 7"}
        assert (await client.post("/api/auth/login", json=login)).status_code == 200
        yield client


async def test_a_query_is_kept_changed_shared_and_deleted(root: httpx.AsyncClient, key: httpx.AsyncClient) -> None:
    made = await root.post("/api/query/saved", json={"name": " Slow ones ", "sql": "from v_slowest"})
    assert made.status_code == 201
    query = made.json()
    assert {**query, "id": 0, "createdAt": "", "updatedAt": ""} == {
        "id": 0, "name": "Slow ones", "description": None, "sql": "from v_slowest", "shared": False, "owner": "root",
        "own": True, "createdAt": "", "updatedAt": "",
    }  # fmt: skip
    assert query["createdAt"].endswith("Z")
    assert (await root.get("/api/query/saved")).json() == {"queries": [query]}
    assert (await key.get("/api/query/saved")).json() == {"queries": []}
    assert (await root.post("/api/query/saved", json={"name": "Slow ones", "sql": "x"})).status_code == 409

    changed = await root.post("/api/query/saved", json={**query, "shared": True, "sql": "from requests"})
    assert changed.status_code == 200
    (seen,) = (await key.get("/api/query/saved")).json()["queries"]
    assert (seen["id"], seen["sql"], seen["own"], seen["owner"]) == (query["id"], "from requests", False, "root")
    # Somebody else's is not changed...
    assert (await key.post("/api/query/saved", json={**query, "name": "z"})).status_code == 404
    # ...but what is shared may be cleared away.
    assert (await key.delete(f"/api/query/saved/{query['id']}")).json() == {"success": True}
    for client in (root, key):
        assert (await client.delete(f"/api/query/saved/{query['id']}")).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {}, {"name": "x"}, {"sql": "x"}, {"name": "", "sql": "x"}, {"name": " ", "sql": "x"}, {"name": "x", "sql": " "},
        {"name": "x" * 81, "sql": "x"}, {"name": "x", "sql": "x" * 100_001}, {"name": "a\nb", "sql": "x"},
        {"name": "x", "sql": "x", "shared": "yes"}, {"name": "x", "sql": "x", "id": "1"}, [], 5,
    ],
    ids=str,
)  # fmt: skip
async def test_what_cannot_be_kept_says_what_is_wanted(key: httpx.AsyncClient, body: object) -> None:
    answer = await key.post("/api/query/saved", json=body)
    assert answer.status_code == 400
    assert "1 to 80 characters" in answer.json()["error"]


async def test_tables_and_views_are_told_with_their_columns(folder: Path, key: httpx.AsyncClient) -> None:
    put(folder / "data" / "spool", [line(record(n)) for n in range(5)])
    await key.get("/api/requests")
    answer = (await key.get("/api/query/tables")).json()
    assert answer["limits"] == {"rows": 10_000, "seconds": 10.0, "atOnce": 2}
    found = {one["name"]: one for one in answer["tables"]}
    assert list(found) == [table.name for table in schema.TABLES] + [view.name for view in schema.VIEWS]
    requests = found["requests"]
    assert (requests["kind"], requests["doc"], requests["rows"]) == ("table", schema.REQUESTS.doc, 5)
    assert [(one["name"], one["doc"]) for one in requests["columns"]] == [
        (column.name, column.doc) for column in schema.REQUESTS.columns
    ]
    assert requests["columns"][2] == {"name": "started_at", "type": "TIMESTAMP", "doc": schema.REQUESTS.columns[2].doc}
    slowest = found["v_slowest"]
    assert (slowest["kind"], slowest["rows"]) == ("view", None)
    assert slowest["columns"][0] == {"name": "started_at", "type": "TIMESTAMP", "doc": None}
    # Whatever is listed can be asked.
    for name in found:
        answer = await key.post("/api/query", json={"sql": f"select * from {name} limit 1"})
        assert answer.status_code == 200, name


async def test_only_administrators_may(running: Running, root: httpx.AsyncClient) -> None:
    assert (await root.post("/api/users", json={"username": "ben", "password": "correct horse 8"})).status_code == 201
    async with running.browser() as user, running.browser() as stranger:
        await user.post("/api/auth/login", json={"username": "ben", "password": "correct horse 8"})
        for client, status in ((user, 403), (stranger, 401)):
            assert (await client.get("/api/query/saved")).status_code == status
            assert (await client.get("/api/query/tables")).status_code == status
            assert (await client.post("/api/query/saved", json={"name": "x", "sql": "x"})).status_code == status
            assert (await client.delete("/api/query/saved/1")).status_code == status
