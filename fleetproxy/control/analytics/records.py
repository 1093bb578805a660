"""What the API asks the store about requests: the list, the analytics, people's own SQL. Newest rows included."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleetproxy.control.analytics import downloads, export, queries, series
from fleetproxy.control.analytics.answers import Answer
from fleetproxy.control.analytics.dictionary import Relation, relations
from fleetproxy.control.analytics.downloads import Kind
from fleetproxy.control.analytics.queries import Window
from fleetproxy.control.analytics.store import Store
from fleetproxy.control.analytics.upkeep import EXPORT_S
from fleetproxy.errors import QueryLimit

#: Tables written to files at once.
WRITERS = 2


class Records:
    """In the app's state as "records".

    `hosts` gives the address (host:port) of each backend by name. Raises StoreUnavailable, QueryTimeout, QueryLimit.
    """

    def __init__(
        self,
        store: Store,
        hosts: Callable[[], dict[str, str]],
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.store = store
        self._hosts = hosts
        self._wall_us = wall_us
        self._writing = 0

    async def requests(
        self,
        time: int | Window,
        *,
        filters: dict[str, str],
        before: int | None = None,
        limit: int = queries.LIST_ROWS,
        sort: str = queries.NEWEST,
    ) -> dict[str, Any]:
        """`GET /api/requests`: of the last hours, or of a window."""
        await self.store.flush()
        window, hosts = self._window(time), self._hosts()
        return await self.store.read(
            lambda cursor: queries.requests(
                cursor, window, hosts, filters=filters, before=before, limit=limit, sort=sort
            )
        )

    async def download(
        self, time: int | Window, kind: Kind, *, filters: dict[str, str], limit: int, sort: str = queries.NEWEST
    ) -> bytes:
        """`GET /api/requests?format=`: the same rows, as a file with the columns of the table."""
        await self.store.flush()
        window, folder = self._window(time), self.store.spool
        return await self.store.read(
            lambda cursor: downloads.requests(cursor, window, kind, folder, filters=filters, limit=limit, sort=sort)
        )

    def _window(self, time: int | Window) -> Window:
        return time if isinstance(time, Window) else Window(time, self._wall_us())

    async def analytics(self, hours: int, *, fill: bool = False) -> dict[str, Any]:
        """`GET /api/analytics`."""
        await self.store.flush()
        window = Window(hours, self._wall_us())
        return await self.store.read(lambda cursor: queries.analytics(cursor, window, fill=fill))

    async def series(self, question: series.Question) -> series.Series:
        """`GET /api/analytics/series`. Raises BadRequest too."""
        await self.store.flush()
        return await self.store.read(lambda cursor: series.ask(cursor, question))

    async def write_rows(self, span: export.Span, form: str, target: Path) -> int:
        """`GET /api/query/export/{table}`: rows to a file; how many. Raises QueryLimit while two others are written."""
        if self._writing >= WRITERS:
            raise QueryLimit
        self._writing += 1
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self.store.flush()
            return await self.store.read(
                lambda cursor: export.write_rows(cursor, span, form, target), timeout_s=EXPORT_S
            )
        finally:
            self._writing -= 1

    async def tables(self) -> list[Relation]:
        """`GET /api/query/tables`."""
        return await self.store.read(relations)

    async def ask(self, sql: str) -> Answer:
        """`POST /api/query`. Raises BadQuery too."""
        await self.store.flush()
        return await self.store.ask(sql)
