"""What the tests of the store share: rows, a spool to put them in, a store that runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from fleetproxy.control.analytics import database
from fleetproxy.control.analytics.ingest import Feed, Ingest
from fleetproxy.control.analytics.journal import Journal
from fleetproxy.control.analytics.store import Store
from fleetproxy.core.record import Attempt, AuditRecord
from fleetproxy.link.spool import Spool
from fleetproxy.settings import Analytics

#: Children are started here, so that they find this module.
ROOT = Path(__file__).parents[3]
#: 2026-11-21 12:00:00 UTC.
NOON_US = 1_795_262_400_000_000
SETTINGS = Analytics(memory_bytes=256 * 1024 * 1024)


def record(number: int = 0, **changes: Any) -> AuditRecord:
    """An ordinary streamed chat; `number` makes it unique and a millisecond later."""
    values: dict[str, Any] = {
        "request_id": f"{number:032x}",
        "started_at_us": NOON_US + number * 1000,
        "process": "proxy-0",
        "sequence": number,
        "source": "10.0.0.9",
        "endpoint": "/api/chat",
        "method": "POST",
        "path": "/api/chat",
        "model": "llama3:8b",
        "model_served": "llama3:8b",
        "backend": "gpu1",
        "server_id": 1,
        "route_reason": "model_loaded",
        "status": 200,
        "streamed": True,
        "ttft_ms": 120.0,
        "overhead_ms": 0.5,
        "total_ms": 1120.0,
        "bytes_in": 300,
        "bytes_out": 9000,
        "chunks_out": 50,
        "tokens_in": 20,
        "tokens_out": 50,
        "eval_ms": 1000.0,
        "attempts": (Attempt(backend="gpu1", status=200, started_ms=0.4, total_ms=1119.0),),
    }
    return AuditRecord(**{**values, **changes})


def line(row: msgspec.Struct) -> bytes:
    return msgspec.json.encode(row) + b"\n"


def put(
    folder: Path, lines: Iterable[bytes], *, process: str = "proxy-0", boot: str = "b00t", table: str = "requests"
) -> None:
    """Write lines as one closed segment, as a process does."""
    spool = Spool(folder, table, boot, process)
    for one in lines:
        assert spool.put(one)
    spool.rotate()


def opened(folder: Path, feed: Feed = lambda records: None) -> tuple[Ingest, duckdb.DuckDBPyConnection]:
    """A file and the loader for a spool in `folder`, without threads."""
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    found = database.open_store(folder / "analytics.duckdb", spool, SETTINGS, NOON_US)
    ingest = Ingest(spool, feed)
    ingest.batch = found.batch
    return ingest, found.connection


def load(ingest: Ingest, connection: duckdb.DuckDBPyConnection) -> None:
    while ingest.step(connection, NOON_US):
        pass


def ids(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT request_id FROM requests ORDER BY id").fetchall()]


@asynccontextmanager
async def running(folder: Path, settings: Analytics = SETTINGS, **options: Any) -> AsyncIterator[Store]:
    """A store that runs on `folder`, and is closed at the end."""
    fed: list[Sequence[AuditRecord]] = []
    options.setdefault("feed", fed.append)
    options.setdefault("journal", Journal(folder / "spool", "b00t"))
    store = Store(folder / "analytics.duckdb", folder / "spool", settings, **options)
    stop = asyncio.Event()
    task = asyncio.create_task(store.run(stop))
    try:
        await store.flush()
        yield store
    finally:
        stop.set()
        await task


async def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    return await store.read(lambda cursor: cursor.execute(sql).fetchall())
