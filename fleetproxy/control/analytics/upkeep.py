"""What scheduled jobs do to the store: forget old rows, write rows to files. Implements `job_actions.Upkeep`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fleetproxy.control.analytics import export
from fleetproxy.errors import StoreUnavailable

T = TypeVar("T")

LOOK_S = 0.2
FORGET_S = 900.0
EXPORT_S = 1800.0


class Sweeper(Protocol):
    """`control.analytics.retention.Retention`."""

    deleted: int

    @property
    def asked(self) -> bool: ...
    def ask(self, days: int, tables: Collection[str] | None = None) -> None: ...


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

    async def forget(self, before: datetime, tables: Collection[str] | None = None) -> int:
        """Drop rows older than that (whole days), of these tables or of all but the roll-ups; how many.

        The store does it a little at a time.
        """
        sweeper = self._store.retention
        days = max(1, -((before - self._now()) // timedelta(days=1)))
        deleted = sweeper.deleted
        sweeper.ask(days, tables)
        try:
            async with asyncio.timeout(FORGET_S):
                while sweeper.asked:  # noqa: ASYNC110  (it works in a thread of its own and tells nobody)
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise StoreUnavailable("the store did not get round to it; it goes on by itself") from None
        return sweeper.deleted - deleted

    async def export(self, tables: Collection[str], since: datetime, form: str, folder: Path) -> tuple[int, int]:
        """Write the rows since the day of then to a file for each table and day; how many rows, in how many files."""
        await self._store.flush()
        until = self._now()
        written = await self._store.read(
            lambda cursor: export.write_days(
                cursor, [export.Span(table, since, until) for table in tables], form, folder
            ),
            timeout_s=EXPORT_S,
        )
        return written.rows, written.files
