from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import msgspec
import pytest

from fleetproxy.control.analytics import store as module
from fleetproxy.control.analytics.journal import Journal
from fleetproxy.control.analytics.rows import ModelEvent
from fleetproxy.errors import BadQuery, QueryLimit, QueryTimeout, StoreUnavailable
from fleetproxy.link.spool import Spool
from tests.control.analytics.analytics_kit import NOON_US, ROOT, SETTINGS, line, put, record, rows, running
from tests.control.analytics.full_disk_child import BATCHES, ROWS

COUNT = "SELECT count(*) FROM requests"
ENDLESS = "SELECT count(*) FROM range(1000000000000) a"
EVENT = ModelEvent(occurred_at_us=NOON_US, server_id=1, server="gpu1", model="m", event="loaded")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_row_is_visible_after_a_flush(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "requests", "b", "proxy-0")

    async def rotate() -> None:
        spool.rotate()

    async with running(tmp_path, rotate=rotate) as store:
        for n in range(3):
            spool.put(line(record(n)))
            await store.flush()
            assert await rows(store, COUNT) == [(n + 1,)]


async def test_rows_are_loaded_without_being_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        put(tmp_path / "spool", [line(record(1))])
        await until(lambda: store.ingest.counters.loaded == 1)
        assert await rows(store, COUNT) == [(1,)]


async def test_what_control_writes_is_visible_after_a_flush(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "spool", "b00t")
    async with running(tmp_path, journal=journal) as store:
        journal.put(EVENT, EVENT)
        await store.flush()
        assert await rows(store, "SELECT id, model FROM model_events") == [(1, "m"), (2, "m")]
        assert (journal.written, journal.dropped) == (2, 0)


async def test_flushes_at_the_same_time_are_one(tmp_path: Path) -> None:
    rotations = 0

    async def rotate() -> None:
        nonlocal rotations
        rotations += 1
        await asyncio.sleep(0)

    async with running(tmp_path, rotate=rotate) as store:
        before = rotations
        await asyncio.gather(*(store.flush() for _ in range(50)))
        # One under way when the others came, one for all of those.
        assert 1 <= rotations - before <= 2


async def test_a_flush_covers_what_was_written_before_it_was_asked_for(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "requests", "b", "proxy-0")

    async def rotate() -> None:
        await asyncio.sleep(0)
        spool.rotate()

    async with running(tmp_path, rotate=rotate) as store:

        async def write_and_look(n: int) -> None:
            row = record(n)
            spool.put(line(row))
            await store.flush()
            assert await rows(store, f"SELECT count(*) FROM requests WHERE request_id = '{row.request_id}'") == [(1,)]

        for start in range(0, 60, 15):
            await asyncio.gather(*(write_and_look(n) for n in range(start, start + 15)))


async def test_the_rest_of_the_spool_is_loaded_before_leaving(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        put(tmp_path / "spool", [line(record(n)) for n in range(10)])
    assert store.ingest.counters.loaded == 10
    assert not (tmp_path / "analytics.duckdb.wal").exists()
    async with running(tmp_path) as again:
        assert await rows(again, COUNT) == [(10,)]


async def test_a_question_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        with pytest.raises(QueryTimeout):
            await store.read(lambda cursor: cursor.execute(ENDLESS).fetchall(), timeout_s=0.1)
        assert store.queries["timeout"] == 1
        assert await rows(store, "SELECT 1") == [(1,)]


async def test_a_question_of_many_statements_is_stopped_between_them(tmp_path: Path) -> None:
    """DuckDB forgets an interrupt that comes while nothing runs."""
    started = 0

    def work(cursor: duckdb.DuckDBPyConnection) -> None:
        nonlocal started
        while True:
            cursor.execute("SELECT 1").fetchall()
            started += 1

    async with running(tmp_path) as store:
        with pytest.raises(QueryTimeout):
            await store.read(work, timeout_s=0.2)
        seen = started
        await asyncio.sleep(0.05)
        assert started == seen


async def test_a_question_nobody_waits_for_any_more_is_stopped(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        asking = asyncio.create_task(store.read(lambda cursor: cursor.execute(ENDLESS).fetchall()))
        await until(lambda: any(reading.cursor for reading in store._reading))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: not store._reading)


async def test_only_so_many_questions_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        most = module.READERS + module.READERS_WAITING
        asking = [
            asyncio.create_task(store.read(lambda cursor: cursor.execute(ENDLESS).fetchall(), timeout_s=0.3))
            for _ in range(most)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueryLimit):
            await rows(store, "SELECT 1")
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(result) for result in results} == {QueryTimeout}
        assert await rows(store, "SELECT 1") == [(1,)]


async def test_two_queries_of_people_at_once_and_the_dashboard_goes_on(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, query_timeout_s=0.5)
    async with running(tmp_path, settings) as store:
        asking = [asyncio.create_task(store.ask(ENDLESS)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueryLimit):
            await store.ask("SELECT 1")
        assert await rows(store, "SELECT 1") == [(1,)]
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(result) for result in results] == [QueryTimeout, QueryTimeout]
        assert (await store.ask("SELECT 1")).rows == [[1]]


async def test_a_question_cannot_write(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        with pytest.raises(duckdb.Error, match="read-only"):
            await store.read(lambda cursor: cursor.execute("DELETE FROM meta"))
        with pytest.raises(BadQuery):
            await store.ask("DELETE FROM meta")


async def test_without_a_usable_file_rows_wait_and_questions_say_so(tmp_path: Path) -> None:
    path = tmp_path / "analytics.duckdb"
    path.mkdir()
    async with running(tmp_path) as store:
        put(tmp_path / "spool", [line(record(n)) for n in range(3)])
        await store.flush()
        assert (store.status.ok, store.status.trouble, store.status.backlog_segments) == (False, "unusable", 1)
        with pytest.raises(StoreUnavailable, match="owner and permissions"):
            await rows(store, "SELECT 1")
        with pytest.raises(StoreUnavailable):
            await store.ask("SELECT 1")
        path.rmdir()
        await store.flush()
        assert store.status.ok
        assert await rows(store, COUNT) == [(3,)]


async def test_a_spool_that_cannot_be_loaded_keeps_to_its_cap(tmp_path: Path) -> None:
    (tmp_path / "analytics.duckdb").mkdir()
    settings = msgspec.structs.replace(SETTINGS, spool_bytes=5000)
    fed: list[str] = []
    async with running(tmp_path, settings, feed=lambda records: fed.extend(r.request_id for r in records)) as store:
        for n in range(20):
            put(tmp_path / "spool", [line(record(n))], boot=f"b{n:02d}")
            os.utime(tmp_path / "spool" / f"requests.b{n:02d}.proxy-0.00000001.ndjson", ns=(n, n))
        await store.flush()
        assert store.status.backlog_bytes <= 5000
        assert len(fed) == len(set(fed)) == 20
        (tmp_path / "analytics.duckdb").rmdir()
        await store.flush()
        kept = [row[0] for row in await rows(store, "SELECT request_id FROM requests ORDER BY id")]
        assert kept == [f"{n:032x}" for n in range(20 - len(kept), 20)]
        assert store.ingest.counters.overflowed == 20 - len(kept) > 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("limit", [400_000, 1_200_000])
@pytest.mark.parametrize("what", ["commit", "checkpoint"])
def test_a_full_disk_costs_no_row_and_loading_resumes_by_itself(tmp_path: Path, limit: int, what: str) -> None:
    words = [sys.executable, "-m", "tests.control.analytics.full_disk_child", str(tmp_path), str(limit), what]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # A checkpoint that fails leaves an instance that must be opened anew.
    assert found["failures"].get("invalidated", 0) == (what == "checkpoint"), found
    assert found["troubles"], found
    assert found["waiting"] > 0
    assert found["failures"].get("disk", 0) > 0, found
    assert found["ok_after"]
    assert found["counts"] == [BATCHES * ROWS] * 2
    assert found["fed"] == [BATCHES * ROWS] * 2
    assert found["left"] == []
    assert found["lost"] == 0
    assert "Traceback" not in done.stderr


async def test_rows_lost_with_a_damaged_log_are_noticed(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from tests.control.analytics.analytics_kit import *\n"
        "async def main(folder):\n"
        "    async with running(folder) as store:\n"
        "        for n in range(6):\n"
        "            put(folder / 'spool', [line(record(n))], boot=f'b{n}')\n"
        "            await store.flush()\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main(Path(sys.argv[1])))\n"
    )
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path), cwd=ROOT)
    await dying.wait()
    log = tmp_path / "analytics.duckdb.wal"
    os.truncate(log, log.stat().st_size * 2 // 3)
    async with running(tmp_path) as store:
        assert await rows(store, COUNT) != [(6,)]
        assert store.lost_batches > 0
        put(tmp_path / "spool", [line(record(7))])
        await store.flush()
    async with running(tmp_path) as store:
        assert store.lost_batches == 0  # said once


async def test_one_unreadable_block_does_not_end_the_store(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for part in range(3):
            data = [line(record(part * 2000 + n, user_agent=os.urandom(60).hex())) for n in range(2000)]
            put(tmp_path / "spool", data, boot=f"b{part}")
        await store.flush()
    path = tmp_path / "analytics.duckdb"
    looking = duckdb.connect(str(path), read_only=True)
    blocks = looking.execute(
        "SELECT block_id FROM pragma_storage_info('requests') WHERE column_name = 'user_agent' AND block_id > 0"
    ).fetchall()
    looking.close()
    with path.open("r+b") as file:
        file.seek(12_288 + blocks[0][0] * 262_144 + 5000)
        file.write(b"\xff" * 64)
    async with running(tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="damaged part"):
            await rows(store, "SELECT sum(length(user_agent)) FROM requests")
        assert store.status.ok
        assert store.status.detail is not None
        assert "damaged" in store.status.detail
        put(tmp_path / "spool", [line(record(9000))])
        await store.flush()
        assert await rows(
            store, f"SELECT count(*) FROM requests WHERE started_at > make_timestamp({NOON_US + 8_000_000})"
        ) == [(1,)]


async def test_closing_stops_the_questions_under_way(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        asking = asyncio.create_task(store.read(lambda cursor: cursor.execute(ENDLESS).fetchall()))
        await until(lambda: any(reading.cursor for reading in store._reading))
    with pytest.raises((StoreUnavailable, QueryTimeout)):
        await asking


async def test_old_rows_are_forgotten_and_young_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.control.analytics.retention.CHUNK_ROWS", 100)
    day = 86_400_000_000
    settings = msgspec.structs.replace(SETTINGS, retention_days=7, samples_days=2)
    async with running(tmp_path, settings, wall_us=lambda: NOON_US + 8 * day) as store:
        await until(lambda: store.retention.sweeps == 1)
        old = [record(n) for n in range(250)]
        young = [record(1000 + n, started_at_us=NOON_US + 7 * day) for n in range(250)]
        put(tmp_path / "spool", map(line, [*old, *young]))
        await store.flush()
        store.retention._due_s = 0.0
        await until(lambda: store.retention.sweeps == 2)
        assert await rows(store, "SELECT count(*), min(request_id) FROM requests") == [(250, young[0].request_id)]
        assert await rows(store, "SELECT count(*) FROM attempts") == [(250,)]
        assert store.retention.deleted == 500
        assert await rows(store, "SELECT max(batch) FROM segments") == [(1,)]
