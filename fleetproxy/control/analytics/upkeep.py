"""What scheduled jobs do to the store: forget old rows, write requests to a file. Implements `job_actions.Upkeep`."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fleetproxy.errors import StoreUnavailable

T = TypeVar("T")

LOOK_S = 0.2
FORGET_S = 900.0
EXPORT_S = 1800.0
CHUNK_ROWS = 5_000


class Sweeper(Protocol):
    """`control.analytics.retention.Retention`."""

    deleted: int

    @property
    def asked(self) -> bool: ...
    def ask(self, days: int) -> None: ...


class Shelves(Protocol):
    """`control.analytics.store.Store`."""

    @property
    def retention(self) -> Sweeper: ...
    async def flush(self) -> None: ...
    async def read(self, work: Callable[[Any], T], *, timeout_s: float | None = None) -> T: ...


class StoreUpkeep:
    def __init__(self, store: Shelves, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._now = now

    async def forget(self, before: datetime) -> int:
        """Drop rows older than that (whole days); how many. The store does it a little at a time."""
        sweeper = self._store.retention
        days = max(1, -((before - self._now()) // timedelta(days=1)))
        deleted = sweeper.deleted
        sweeper.ask(days)
        try:
            async with asyncio.timeout(FORGET_S):
                while sweeper.asked:  # noqa: ASYNC110  (it works in a thread of its own and tells nobody)
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise StoreUnavailable("the store did not get round to it; it goes on by itself") from None
        return sweeper.deleted - deleted

    async def export(self, since: datetime, target: Path) -> int:
        """Write the requests since then as compressed JSON lines; how many rows. The file appears whole."""
        await self._store.flush()
        return await self._store.read(lambda cursor: _write(cursor, since, target), timeout_s=EXPORT_S)


def _write(cursor: Any, since: datetime, target: Path) -> int:
    unfinished = target.with_name(target.name + ".unfinished")
    rows = 0
    try:
        with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6) as file:
                found = cursor.execute(
                    "SELECT * FROM requests WHERE started_at >= ? ORDER BY started_at",
                    [since.astimezone(UTC).replace(tzinfo=None)],
                )
                names = [column[0] for column in found.description]
                while chunk := found.fetchmany(CHUNK_ROWS):
                    rows += len(chunk)
                    file.write("".join(_line(names, row) for row in chunk).encode())
            raw.flush()
            os.fsync(raw.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


def _line(names: list[str], row: tuple[Any, ...]) -> str:
    plain = {
        name: value.isoformat(timespec="microseconds") + "Z" if isinstance(value, datetime) else value
        for name, value in zip(names, row, strict=True)
    }
    return json.dumps(plain, ensure_ascii=False) + "\n"
