"""Series and residency over HTTP: of a whole control process."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from fleetproxy.control.analytics import rows
from fleetproxy.control.analytics.series import METRICS
from fleetproxy.settings import Analytics, Auth, Poll, Settings
from tests.control.analytics.analytics_kit import line, put, record
from tests.control.running import ADMIN, Running, control, short_folder

SETTINGS = Settings(
    auth=Auth(admin_key="admin-key-of-the-tests"),
    poll=Poll(interval_s=1000.0),
    analytics=Analytics(memory_bytes=256 * 1024 * 1024),
)
NOW = datetime.now(UTC)
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def us(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncIterator[Running]:
    spool = folder / "data" / "spool"
    spool.mkdir(parents=True)
    given = [record(n, started_at_us=us(ago(hours=2)) + n, model=f"=m{n % 3}", backend="gpu1") for n in range(30)]
    put(spool, map(line, given))
    events = [("phi", 30, "loaded"), ("phi", 3, "unloaded"), ("qwen", 1, "loaded")]
    put(
        spool,
        [
            line(
                rows.ModelEvent(
                    occurred_at_us=us(ago(hours=hours)), server_id=1, server="gpu1", model=model, event=event,
                    vram_bytes=7, quantization="Q4",
                )  # type: ignore[arg-type]
            )
            for model, hours, event in events
        ],
        table="model_events",
    )  # fmt: skip
    async with control(folder, SETTINGS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with running.browser(**ADMIN) as client:
        yield client


async def test_series_and_residency_answer_as_their_document_says(admin: httpx.AsyncClient) -> None:
    document = (await admin.get("/api/client/openapi.json")).json()
    for path in ("/api/analytics/series?metrics=all&group_by=model", "/api/analytics/residency"):
        answer = await admin.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        operation = document["paths"][path.partition("?")[0]]["get"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        fits(answer.json(), schema, document["components"]["schemas"])
    parameters = {one["name"]: one["schema"] for one in document["paths"]["/api/analytics/series"]["get"]["parameters"]}
    assert parameters["bucket"]["enum"] == ["auto", "1m", "5m", "15m", "1h", "6h", "1d"]
    assert all(name in parameters["metrics"]["description"] for name in METRICS)

    found = (await admin.get("/api/analytics/series?metrics=requests,ttft&group_by=model&top=2&bucket=1h")).json()
    assert list(found) == [
        "from", "to", "bucketSeconds", "groupBy", "metrics", "exact", "percentileError", "groups", "times", "series",
    ]  # fmt: skip
    assert [(one["key"], one["other"], one["total"]["requests"]) for one in found["series"]] == [
        ("=m0", False, 10),
        ("=m1", False, 10),
        (None, True, 10),
    ]
    assert found["series"][0]["total"]["ttftP50Ms"] == 120.0
    assert len(found["times"]) == len(found["series"][0]["values"]["requests"]) in (24, 25)
    assert found["times"][0] <= found["from"] < found["times"][1]
    assert all(moment.endswith(":00:00.000Z") for moment in found["times"])

    window = f"from={ago(hours=24).timestamp()}&to={NOW.timestamp()}"
    stays = (await admin.get(f"/api/analytics/residency?{window}")).json()
    assert [(one["model"], one["unloadedAt"] is None, round(one["seconds"])) for one in stays["stays"]] == [
        ("phi", False, 21 * 3600),
        ("qwen", True, 3600),
    ]
    assert stays["stays"][0]["loadedAt"] < stays["from"]
    assert (stays["stays"][0]["vramBytes"], stays["stays"][0]["quantization"]) == (7, "Q4")
    assert (await admin.get("/api/analytics/residency?model=qwen&server=gpu2")).json()["stays"] == []


def fits(value: Any, schema: dict[str, Any], components: dict[str, Any]) -> None:
    """Whether a JSON value is what a schema says; every object has just the members it names."""
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        schema = next(one for one in schema["anyOf"] if (one.get("type") == "null") == (value is None))
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": int | float, "boolean": bool}
    assert value is None if schema["type"] == "null" else isinstance(value, kinds[schema["type"]])
    if isinstance(value, dict) and "properties" in schema:
        assert set(value) == set(schema["properties"])
        for name, inner in value.items():
            fits(inner, schema["properties"][name], components)
    if isinstance(value, list):
        for item in value:
            fits(item, schema["items"], components)


async def test_tables_for_a_spreadsheet(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/api/analytics/series?group_by=model&bucket=1d&format=csv&hours=48")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="series.csv"'
    found = list(csv.DictReader(io.StringIO(answer.text)))
    assert list(found[0]) == ["time", "model", "requests", "errors"]
    # A model's name is no formula.
    assert {row["model"] for row in found} == {"'=m0", "'=m1", "'=m2"}
    assert sum(int(row["requests"] or 0) for row in found) == 30
    residency = await admin.get("/api/analytics/residency?format=csv")
    assert len(list(csv.DictReader(io.StringIO(residency.text)))) == 2


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("bucket=2h", "`bucket` wants one of auto, 1m"),
        ("group_by=color", "`group_by` wants one of none, model"),
        ("metrics=speed", "Unknown metric 'speed'"),
        ("format=xml", "`format` wants one of json, csv"),
        ("from=yesterday", "`from` wants an instant such as"),
        ("to=1e9999", "`to` wants an instant"),
        ("from=99999999999", "`from` must be before `to`"),
        ("to=0001-01-01T00:00:00%2B14:00", "`to` wants an instant"),
        ("from=2026-01-01&to=2025-01-01", "`from` must be before `to`"),
        ("from=2000-01-01", "At most 8784 hours"),
        ("hours=8784&bucket=1m", "ask for at most 1500 buckets"),
    ],
)
async def test_what_cannot_be_answered_says_why(admin: httpx.AsyncClient, query: str, words: str) -> None:
    for path in ("series", "residency") if query.startswith(("f", "t")) else ("series",):
        answer = await admin.get(f"/api/analytics/{path}?{query}")
        assert answer.status_code == 400
        assert words in answer.json()["error"]


async def test_moments_are_read_in_every_usual_way(admin: httpx.AsyncClient) -> None:
    moment = ago(hours=5).replace(microsecond=0)
    wanted = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for text in (
        wanted,
        moment.isoformat().replace("+", "%2B"),
        moment.isoformat(),
        moment.replace(tzinfo=None).isoformat(),
        moment.replace(tzinfo=None).isoformat(" "),
        str(int(moment.timestamp())),
        f"{moment.timestamp():.1f}",
    ):
        found = (await admin.get(f"/api/analytics/series?from={text}")).json()
        assert found["from"] == wanted, text
        assert found["series"][0]["total"]["requests"] == 30


async def test_only_users_may_look(running: Running) -> None:
    async with running.browser() as stranger, running.browser(authorization="Bearer wrong-key-1234") as wrong:
        for path in ("series", "residency"):
            assert (await stranger.get(f"/api/analytics/{path}")).status_code == 401
            assert (await wrong.get(f"/api/analytics/{path}")).status_code == 401


async def test_what_has_just_been_answered_is_in_the_series(folder: Path, admin: httpx.AsyncClient) -> None:
    """Rows of tomorrow, so that no other test counts them."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    for number in (1, 2, 3):
        put(folder / "data" / "spool", [line(record(99, started_at_us=us(tomorrow)))], boot=f"b{time.time_ns()}")
        found = (await admin.get("/api/analytics/series?hours=1", params={"to": us(tomorrow) / 1e6 + 1})).json()
        assert found["series"][0]["total"]["requests"] == number
