"""A store whose files cannot grow beyond a limit, as on a full disk; then the limit is lifted.

`python full_disk_child.py <folder> <limit in bytes> <commit|checkpoint>` prints what happened as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path
from typing import Any

import duckdb

from fleetproxy.control.analytics.store import Store
from fleetproxy.errors import StoreUnavailable
from tests.control.analytics.analytics_kit import SETTINGS, line, put, record

BATCHES, ROWS = 30, 200


async def main(folder: Path, limit: int, what: str) -> dict[str, Any]:
    fed: list[str] = []
    store = Store(
        folder / "analytics.duckdb",
        folder / "spool",
        SETTINGS,
        feed=lambda records: fed.extend(row.request_id for row in records),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(store.run(stop))
    await store.flush()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    seen = set()
    for batch in range(BATCHES):
        rows = [record(batch * ROWS + n, error=f"{batch}-{n}-" + f"{batch * n:x}" * 20) for n in range(ROWS)]
        put(folder / "spool", map(line, rows), boot=f"b{batch:03d}")
        await store.flush()
        seen.add(store.status.trouble)
    if what == "checkpoint":
        try:
            store._loader.submit(lambda: store._connection and store._connection.execute("CHECKPOINT")).result()
        except duckdb.FatalException:
            seen.add("fatal")
        await store.flush()
        await store.flush()
    full = store.status
    waiting = full.backlog_segments
    try:
        answered: int | str = await store.read(
            lambda cursor: cursor.execute("SELECT count(*) FROM requests").fetchall()[0][0]
        )
    except StoreUnavailable:
        answered = "unavailable"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await store.flush()
    await store.flush()
    after = store.status
    counts = await store.read(
        lambda cursor: cursor.execute("SELECT count(*), count(DISTINCT request_id) FROM requests").fetchall()[0]
    )
    stop.set()
    await running
    return {
        "troubles": sorted(str(trouble) for trouble in seen if trouble),
        "failures": dict(store.failures),
        "detail": full.detail,
        "waiting": waiting,
        "answered": answered,
        "ok_after": after.ok,
        "counts": counts,
        "fed": [len(fed), len(set(fed))],
        "left": [path.name for path in (folder / "spool").iterdir()],
        "lost": store.lost_batches,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))))
