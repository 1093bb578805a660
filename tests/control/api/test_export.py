"""Tables as files, over HTTP and by `fleetproxy export`; jobs that export and forget. Of a whole control process."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest
import pytest_asyncio

from fleetproxy import cli
from fleetproxy.control.analytics import fetching
from fleetproxy.folders import Lock
from fleetproxy.folders import Running as Note
from fleetproxy.settings import Analytics, Auth, Poll, Settings
from tests.control.analytics.analytics_kit import line, put, record
from tests.control.running import ADMIN, Running, control, short_folder

pytestmark = pytest.mark.asyncio(loop_scope="module")
SETTINGS = Settings(
    auth=Auth(admin_key="admin-key-of-the-tests"),
    poll=Poll(interval_s=1000.0),
    analytics=Analytics(memory_bytes=256 * 1024 * 1024),
)
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncIterator[Running]:
    now_us = time.time_ns() // 1000
    given = [record(n, started_at_us=now_us - n * DAY_US - 1_000_000, model="=m") for n in (0, 1, 2, 9, 20, 50)]
    put(folder / "data" / "spool", map(line, given))
    async with control(folder, SETTINGS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with running.browser(**ADMIN) as client:
        yield client


@pytest.fixture
def held(folder: Path, running: Running) -> Iterator[Path]:
    """The data folder, held as the supervisor holds it."""
    lock = Lock(folder / "data", Note(pid=os.getpid(), runtime=str(folder)))
    yield folder / "data"
    lock.release()


async def exported(*words: str) -> int:
    return await asyncio.to_thread(cli.main, ["export", *words])


async def test_a_table_comes_as_a_file_in_each_format(folder: Path, admin: httpx.AsyncClient, tmp_path: Path) -> None:
    parquet = await admin.get("/api/query/export/requests?since=25d")
    assert parquet.status_code == 200
    assert parquet.headers["content-type"].startswith("application/vnd.apache.parquet")
    assert parquet.headers["content-disposition"] == 'attachment; filename="requests.parquet"'
    assert parquet.headers["x-fleet-rows"] == "5"
    assert parquet.headers["cache-control"] == "no-store"
    (tmp_path / "x.parquet").write_bytes(parquet.content)
    with duckdb.connect() as reader:
        found = reader.execute(f"SELECT count(*), min(model) FROM '{tmp_path}/x.parquet'").fetchone()
    assert found == (5, "=m")
    table = list(csv.DictReader(io.StringIO((await admin.get("/api/query/export/requests?format=csv")).text)))
    assert [row["model"] for row in table] == ["'=m"] * 3
    assert [row["started_at"] for row in table] == sorted(row["started_at"] for row in table)
    several = (await admin.get("/api/query/export/attempts?format=ndjson&since=60d&until=30h")).text.splitlines()
    assert len([json.loads(one) for one in several]) == 4
    assert not list((folder / "data" / "exports").glob(".*"))


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("meta", 404, "known are requests"),
        ("segments", 404, "no table 'segments'"),
        ("requests'--", 404, "no table"),
        ("requests?format=xlsx", 400, "`format` wants one of parquet, csv, ndjson"),
        ("requests?since=1.5d", 400, "`since` wants an instant"),
        ("requests?since=1d&until=2d", 400, "`since` must be before `until`"),
    ],
)
async def test_what_cannot_be_exported_says_why(admin: httpx.AsyncClient, path: str, status: int, words: str) -> None:
    answer = await admin.get(f"/api/query/export/{path}")
    assert answer.status_code == status
    assert words in answer.json()["error"]


async def test_only_administrators_may(running: Running) -> None:
    async with running.browser() as stranger:
        assert (await stranger.get("/api/query/export/requests")).status_code == 401


async def test_the_command_asks_a_running_fleetproxy(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "requests.csv"
    assert await exported("-o", str(target), "--since", "25d", "--data-dir", str(held)) == 0
    assert capsys.readouterr().err == "5 rows of requests\n"
    assert len(list(csv.DictReader(io.StringIO(target.read_text())))) == 5
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    # What cannot be had leaves the file of before.
    (held.parent / "local.key").rename(held.parent / "kept.key")
    (held.parent / "local.key").write_text("f" * 64)
    try:
        assert await exported("-o", str(target), "--data-dir", str(held)) == cli.UNAUTHORIZED
    finally:
        (held.parent / "kept.key").rename(held.parent / "local.key")
    assert len(list(csv.DictReader(io.StringIO(target.read_text())))) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["requests.csv"]
    assert await exported("-o", str(tmp_path / "no" / "x.csv"), "--data-dir", str(held)) == cli.FAILED
    assert "cannot write" in capsys.readouterr().err


async def test_a_control_that_is_gone_is_named(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "WAIT_S", 0.2)
    (held.parent / "control.sock").rename(held.parent / "away.sock")
    try:
        assert await exported("-o", str(tmp_path / "x.csv"), "--data-dir", str(held)) == cli.UNREACHABLE
    finally:
        (held.parent / "away.sock").rename(held.parent / "control.sock")
    assert str(os.getpid()) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "x", "--since", "then"], "--since wants an instant"),
        (["-o", "x", "--since", "1d", "--until", "2d"], "--since must be before --until"),
        (["-o", "x", "--table", "meta"], "invalid choice"),
        (["--since", "1d"], "-o/--output"),
    ],
)
async def test_wrong_words_are_told(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    with contextlib.suppress(SystemExit):  # argparse leaves by itself
        assert await exported(*words) == cli.USAGE
    assert said in capsys.readouterr().err


async def run_job(admin: httpx.AsyncClient, action: str, options: dict[str, Any]) -> str:
    """Make a job, run it now, wait for its end; what it said."""
    made = await admin.post(
        "/api/scheduled-jobs",
        json={
            "name": f"nightly {action}", "cronExpression": "0 3 * * *", "sourceIdentifier": "us", "targetModel": "-",
            "action": action, "actionOptions": options,
        },
    )  # fmt: skip
    assert made.status_code == 201, made.text
    job = made.json()["id"]
    assert (await admin.post(f"/api/scheduled-jobs/{job}/run")).status_code in (200, 202)
    async with asyncio.timeout(30):
        while True:
            (run,) = (await admin.get(f"/api/scheduled-jobs/{job}/runs")).json()
            if run["outcome"] != "running":
                break
            await asyncio.sleep(0.05)
    assert run["outcome"] == "ok", run
    return str(run["detail"])


async def test_the_jobs_export_and_forget(folder: Path, admin: httpx.AsyncClient) -> None:
    exports = folder / "data" / "exports"
    said = await run_job(admin, "export", {"days": 365, "tables": ["requests", "attempts"]})
    assert said == "wrote 12 rows of requests, attempts to 12 files in exports/"
    with duckdb.connect() as reader:
        days = reader.execute(
            f"SELECT date::VARCHAR, strftime(started_at, '%Y-%m-%d') FROM "
            f"read_parquet('{exports}/requests/*/*.parquet', hive_partitioning = true)"
        ).fetchall()
    assert len(days) == 6
    assert all(date == day for date, day in days)
    before = (await admin.get("/api/analytics?hours=8784")).json()["summary"]["totalRequests"]
    said = await run_job(admin, "retention", {"days": 30, "tables": ["requests"]})
    assert said == "forgot 1 rows older than 30 days"
    answer = await admin.post(
        "/api/query", json={"sql": "select (select count(*) from requests), count(*) from attempts"}
    )
    assert list(answer.json()[0].values()) == [5, 6]
    # The numbers stay, in the roll-ups.
    assert (await admin.get("/api/analytics?hours=8784")).json()["summary"]["totalRequests"] == before == 6
    assert len(list(exports.glob("requests/*/*.parquet"))) == 6


async def test_without_a_running_one_the_file_is_read(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = short_folder()
    data = folder / "data"
    try:
        assert await exported("-o", str(tmp_path / "x.csv"), "--data-dir", str(data)) == cli.NOT_FOUND
        put(data / "spool", [line(record(1, started_at_us=time.time_ns() // 1000))])
        async with control(folder, SETTINGS):
            pass
        put(data / "spool", [line(record(2, started_at_us=time.time_ns() // 1000))], boot="later")
        capfdbinary.readouterr()
        assert await exported("-o", "-", "--format", "ndjson", "--data-dir", str(data)) == 0
        out, err = capfdbinary.readouterr()
        assert [json.loads(one)["request_id"] for one in out.splitlines()] == [f"{1:032x}"]
        assert b"not been loaded yet" in err
        assert await exported("-o", str(tmp_path / "x.parquet"), "--data-dir", str(data)) == 0
        with duckdb.connect() as reader:
            assert reader.execute(f"SELECT count(*) FROM '{tmp_path}/x.parquet'").fetchone() == (1,)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
