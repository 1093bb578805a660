"""Requests, analytics, SQL and metrics over HTTP, and `fleetproxy query`: of a whole control process."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import duckdb
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleetproxy import cli
from fleetproxy.folders import Lock
from fleetproxy.folders import Running as Note
from fleetproxy.settings import Analytics, Auth, Poll, Settings
from tests.control.analytics.analytics_kit import line, put, record
from tests.control.running import ADMIN, Running, control, prepare, short_folder

SETTINGS = Settings(
    auth=Auth(admin_key="admin-key-of-the-tests"),
    poll=Poll(interval_s=1000.0),
    analytics=Analytics(memory_bytes=256 * 1024 * 1024, query_timeout_s=1.0, query_rows=50),
)
ENDLESS = "select count(*) from range(1000000000000)"


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Running]:
    async with control(folder, SETTINGS) as running:
        yield running


@pytest.fixture
async def admin(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with running.browser(**ADMIN) as client:
        yield client


def now_us() -> int:
    return time.time_ns() // 1000


def served(folder: Path, count: int = 1, **changes: object) -> None:
    """A proxy process has answered requests just now."""
    rows = [record(n, **{"started_at_us": now_us() - 1_000_000 + n, **changes}) for n in range(count)]
    put(folder / "data" / "spool", map(line, rows), boot=f"b{now_us()}")


async def test_a_request_is_in_the_list_the_moment_it_is_asked_for(folder: Path, admin: httpx.AsyncClient) -> None:
    for n in range(1, 4):
        served(folder)
        answer = await admin.get("/api/requests?hours=1")
        assert answer.status_code == 200
        assert len(answer.json()["requests"]) == n
        assert answer.json()["summary"][0]["count"] == n
    row = answer.json()["requests"][0]
    assert list(row)[:9] == [
        "id", "sourceIp", "model", "endpoint", "method", "targetHost", "statusCode", "durationMs", "createdAt",
    ]  # fmt: skip
    assert row["createdAt"].endswith("Z")


@pytest.mark.parametrize("hours", ["", "abc", "0", "-5", "1.9", "12abc", "1e9", "99999999999999999999", "%00", "24 "])
async def test_hours_are_read_leniently(folder: Path, admin: httpx.AsyncClient, hours: str) -> None:
    served(folder)
    for path in ("requests", "analytics"):
        answer = await admin.get(f"/api/{path}?hours={hours}")
        assert answer.status_code == 200, answer.text
    assert answer.json()["summary"]["totalRequests"] == 1


async def test_the_list_is_narrowed_and_paged(folder: Path, admin: httpx.AsyncClient) -> None:
    served(folder, 5)
    served(folder, 3, model="qwen3:4b", status=404, outcome="refused")
    answer = await admin.get("/api/requests", params={"model": "qwen3:4b", "status": "4xx", "limit": 2})
    ids = [row["id"] for row in answer.json()["requests"]]
    assert ids == [8, 7]
    answer = await admin.get("/api/requests", params={"model": "qwen3:4b", "before": 7})
    assert [row["id"] for row in answer.json()["requests"]] == [6]
    for nonsense in ({"before": "x"}, {"limit": "-1"}, {"status": "'; drop table requests"}, {"model": "\x00"}):
        assert (await admin.get("/api/requests", params=nonsense)).status_code == 200


async def test_analytics_has_the_fleet_managers_keys(folder: Path, admin: httpx.AsyncClient) -> None:
    served(folder, 4)
    found = (await admin.get("/api/analytics?hours=24&fill=true")).json()
    assert {
        "summary", "requestsOverTime", "latencyOverTime", "modelDistribution", "sourceDistribution",
        "serverDistribution", "errorBreakdown", "routingReasons",
    } <= set(found)  # fmt: skip
    assert found["summary"]["totalRequests"] == 4
    assert found["summary"]["tokensOut"] == 200
    assert len(found["requestsOverTime"]) == 25


async def test_nobody_reads_without_a_key_and_only_administrators_write_sql(running: Running) -> None:
    async with running.browser() as stranger:
        for path in ("/api/requests", "/api/analytics"):
            assert (await stranger.get(path)).status_code == 401
        assert (await stranger.post("/api/query", json={"sql": "select 1"})).status_code == 401
        assert (await stranger.get("/metrics")).status_code == 200


async def test_sql_gives_objects_a_table_or_a_file(folder: Path, admin: httpx.AsyncClient) -> None:
    served(folder, 3)
    sql = "select model, count(*) as n, '=1+1' as f from requests group by all"
    answer = await admin.post("/api/query", json={"sql": sql})
    assert answer.json() == [{"model": "llama3:8b", "n": 3, "f": "=1+1"}]
    assert float(answer.headers["x-fleet-query-ms"]) >= 0
    table = (await admin.post("/api/query", json={"sql": sql, "shape": "table"})).json()
    assert table["columns"] == [
        {"name": "model", "type": "VARCHAR"}, {"name": "n", "type": "BIGINT"}, {"name": "f", "type": "VARCHAR"},
    ]  # fmt: skip
    assert (table["rows"], table["truncated"]) == ([["llama3:8b", 3, "=1+1"]], None)
    file = await admin.post("/api/query", json={"sql": sql, "shape": "csv"})
    assert file.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(io.StringIO(file.text))) == [["model", "n", "f"], ["llama3:8b", "3", "'=1+1"]]


async def test_sql_is_bounded_and_says_so(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/api/query", json={"sql": "from range(1000)"})
    assert len(answer.json()) == 50
    assert answer.headers["x-fleet-truncated"] == "rows"
    answers = await asyncio.gather(*(admin.post("/api/query", json={"sql": ENDLESS}) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [429] * 4 + [504] * 2
    busy = next(answer for answer in answers if answer.status_code == 429)
    assert int(busy.headers["retry-after"]) >= 1
    assert (await admin.post("/api/query", json={"sql": "select 1"})).json() == [{"1": 1}]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"sql": "drop table requests"}, 400),
        ({"sql": "select * from read_text('/etc/passwd')"}, 400),
        ({"sql": "select nothing"}, 400),
        ({"sql": " "}, 400),
        ({"sql": 5}, 400),
        ({}, 400),
        ({"sql": "select 1", "shape": "xml"}, 400),
        ([], 400),
    ],
)
async def test_what_cannot_be_answered_is_refused_with_a_reason(
    admin: httpx.AsyncClient, body: object, status: int
) -> None:
    answer = await admin.post("/api/query", json=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]


async def test_metrics_are_for_prometheus(folder: Path, admin: httpx.AsyncClient) -> None:
    served(folder, 3)
    await admin.get("/api/requests")
    answer = await admin.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {
        sample.name: sample.value for family in text_string_to_metric_families(answer.text) for sample in family.samples
    }
    assert samples["fleetproxy_requests_total"] == 3
    assert samples["fleetproxy_store_up"] == 1
    answer = await admin.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


async def test_without_its_file_the_store_says_so_and_the_rest_goes_on(folder: Path) -> None:
    (folder / "data" / "analytics.duckdb").mkdir(parents=True)
    async with control(folder, SETTINGS) as running, running.browser(**ADMIN) as admin:
        served(folder)
        for answer in (
            await admin.get("/api/requests"),
            await admin.get("/api/analytics"),
            await admin.post("/api/query", json={"sql": "select 1"}),
        ):
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert str(folder) not in answer.json()["error"]
        assert (await admin.get("/api/servers")).status_code == 200
        assert "fleetproxy_store_up 0.0" in (await admin.get("/metrics")).text


# --- fleetproxy query --------------------------------------------------------------------------------------------


@pytest.fixture
def held(folder: Path) -> Iterator[Path]:
    """The data folder, held by a running supervisor."""
    prepare(folder, SETTINGS)
    lock = Lock(folder / "data", Note(os.getpid(), str(folder)))
    yield folder / "data"
    lock.release()


async def query(*words: str) -> int:
    return await asyncio.to_thread(cli.main, ["query", *words])


async def test_a_running_fleetproxy_is_asked_and_its_newest_rows_are_in(
    held: Path, folder: Path, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    served(folder, 2)
    assert await query("select count(*) as n from requests", "--json", "--data-dir", str(held)) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ([{"n": 2}], "")
    assert await query("select 1 as a, 'x' as b", "--data-dir", str(held)) == 0
    assert capsys.readouterr().out == "a  b\n-  -\n1  x\n"
    assert await query("select '=x' as b", "--csv", "--data-dir", str(held)) == 0
    assert capsys.readouterr().out.split() == ["b", "'=x"]
    assert await query("from range(60)", "--data-dir", str(held)) == 0
    assert "only the first 50 rows" in capsys.readouterr().err
    assert await query("drop table requests", "--data-dir", str(held)) == cli.FAILED
    assert "Only SELECT and EXPLAIN" in capsys.readouterr().err
    assert await query(ENDLESS, "--data-dir", str(held)) == cli.TIMEOUT
    assert "took longer" in capsys.readouterr().err


async def test_a_key_that_is_not_control_s_is_refused(
    held: Path, folder: Path, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "local.key").write_text("f" * 64)
    assert await query("select 1", "--data-dir", str(held)) == cli.UNAUTHORIZED
    assert capsys.readouterr().err


async def test_a_control_that_does_not_answer_is_named(
    held: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetproxy.control.analytics.asking.ask.__kwdefaults__", {"wait_s": 0.3})
    assert await query("select 1", "--data-dir", str(held)) == cli.UNREACHABLE
    err = capsys.readouterr().err
    assert str(os.getpid()) in err
    assert "control process" in err


async def test_without_a_running_one_the_file_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder / "data"
    assert await query("select 1", "--data-dir", str(data)) == cli.NOT_FOUND
    assert "nothing has been recorded" in capsys.readouterr().err
    async with control(folder, SETTINGS):
        served(folder, 3)
    assert await query("select count(*) as n from requests", "--json", "--data-dir", str(data)) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ([{"n": 3}], "")
    served(folder, 1)
    assert await query("select count(*) as n from requests", "--json", "--data-dir", str(data)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [{"n": 3}]
    assert "not been loaded yet" in err
    assert await query("select * from read_text('/etc/passwd')", "--data-dir", str(data)) == cli.FAILED
    assert await query("select nothing", "--data-dir", str(data)) == cli.FAILED
    assert "nothing" in capsys.readouterr().err
    before = (data / "analytics.duckdb").read_bytes()
    assert await query("from v_slowest", "--data-dir", str(data)) == 0
    assert (data / "analytics.duckdb").read_bytes() == before


async def test_the_statement_comes_from_standard_input_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control(folder, SETTINGS):
        pass
    monkeypatch.setattr("sys.stdin", io.StringIO("select 7 as n"))
    assert await query("-", "--json", "--data-dir", str(folder / "data")) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 7}]
    assert await query(" ", "--data-dir", str(folder / "data")) == cli.USAGE


async def test_the_order_of_rows_is_the_order_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with control(folder, SETTINGS):
        pass
    sql = "select range as n from range(40) order by n desc"
    assert await query(sql, "--json", "--data-dir", str(folder / "data")) == 0
    assert [row["n"] for row in json.loads(capsys.readouterr().out)] == list(range(39, -1, -1))


async def test_the_list_is_sorted_by_the_server_and_paged_in_that_order(folder: Path, admin: httpx.AsyncClient) -> None:
    for total_ms in (30.0, 10.0, 20.0, 10.0):
        served(folder, total_ms=total_ms)
    served(folder, ttft_ms=None)

    async def pages(sort: str) -> list[int]:
        found: list[int] = []
        while True:
            after = {"before": found[-1]} if found else {}
            rows = (await admin.get("/api/requests", params={"sort": sort, "limit": 2, **after})).json()["requests"]
            if not rows:
                return found
            found += [row["id"] for row in rows]

    everything = (await admin.get("/api/requests")).json()["requests"]
    took = {row["id"]: (row["durationMs"], row["id"]) for row in everything}
    assert await pages("duration") == sorted(took, key=lambda one: took[one])
    assert await pages("-duration") == sorted(took, key=lambda one: took[one], reverse=True)
    assert await pages("started") == sorted(took)
    first_token = {row["id"]: row["ttftMs"] for row in everything}
    for sort in ("ttft", "-ttft"):
        assert first_token[(await pages(sort))[-1]] is None
    refused = await admin.get("/api/requests?sort=password")
    assert (refused.status_code, refused.json()["error"][:18]) == (400, "`sort` wants one o")


async def test_the_list_is_of_any_stretch_of_time(folder: Path, admin: httpx.AsyncClient) -> None:
    at_s = now_us() // 1_000_000
    for ago_s in (7200, 3600, 10):
        served(folder, started_at_us=(at_s - ago_s) * 1_000_000)

    async def listed(**asked: object) -> int:
        answer = await admin.get("/api/requests", params={name: str(value) for name, value in asked.items()})
        return len(answer.json()["requests"])

    assert await listed(**{"from": at_s - 5000, "to": at_s - 1000}) == 1
    assert await listed(**{"from": at_s - 5000}) == 2
    assert (await admin.get("/api/requests?from=tomorrow")).status_code == 400
    assert (await admin.get(f"/api/requests?from={at_s}&to={at_s}")).status_code == 400


async def test_the_list_is_a_file_too(folder: Path, admin: httpx.AsyncClient) -> None:
    served(folder, 3, source="=1+1")
    served(folder, 2, model="qwen3:4b")
    asked = {"model": "llama3:8b", "sort": "started"}
    answer = await admin.get("/api/requests", params={**asked, "format": "csv"})
    assert answer.headers["content-disposition"] == 'attachment; filename="requests.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["model"], row["source"], row["tokens_out"]) for row in rows] == [("llama3:8b", "'=1+1", "50")] * 3
    answer = await admin.get("/api/requests", params={**asked, "format": "ndjson", "limit": 2})
    lines = [json.loads(text) for text in answer.text.splitlines()]
    assert [line["id"] for line in lines] == [1, 2]
    assert lines[0]["started_at"].endswith("Z")
    answer = await admin.get("/api/requests", params={**asked, "format": "parquet"})
    (folder / "got.parquet").write_bytes(answer.content)
    with duckdb.connect() as fresh:
        found = fresh.execute(f"SELECT id, source FROM '{folder / 'got.parquet'}' ORDER BY id").fetchall()
    assert found == [(1, "=1+1"), (2, "=1+1"), (3, "=1+1")]
    assert not list((folder / "data" / "spool").glob(".*.parquet"))
    assert (await admin.get("/api/requests?format=xls")).status_code == 400
