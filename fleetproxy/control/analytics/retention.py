"""Forgetting old rows, a little at a time, between two loads."""

# ruff: noqa: S608  (SQL here is made of our own tables' names)

from __future__ import annotations

from collections.abc import Collection

import duckdb

from fleetproxy import log
from fleetproxy.control.analytics import rollups, schema
from fleetproxy.settings import Analytics

_log = log.get("store")

#: Rows of one delete. Loading waits for at most one of them (about 20 ms).
CHUNK_ROWS = 10_000
#: How long after the end of one sweep the next begins.
SWEEP_S = 3600.0
SEGMENTS_DAYS = 2
#: Requests that are not in the roll-ups yet are waited for this long.
PATIENCE_S = 600.0
_DAY_US = 86_400_000_000


class Sweep:
    """One time through the tables."""

    def __init__(self, days: int | None = None, tables: Collection[str] | None = None) -> None:
        #: Whatever the settings say, rows older than this go...
        self.days = days
        #: ...of these tables; None: of all but the roll-ups.
        self.tables = tables


class Retention:
    """Sweeps the tables once an hour. Blocks; runs in the store's thread.

    `roll` adds hours up that are about to be forgotten; None: nobody does.
    """

    def __init__(self, settings: Analytics, roll: rollups.Rollups | None = None) -> None:
        days = settings.retention_days
        own = {
            "segments": min(days, SEGMENTS_DAYS),
            "metric_samples": min(days, settings.samples_days),
            # What is on disk for weeks without a change must not vanish from the residency statistics first.
            "model_events": max(days, 30),
            "requests_hourly": max(days, settings.rollup_days),
            **settings.table_days,
        }
        self._plan = tuple((table, own.get(table.name, days)) for table in schema.TABLES if table.time)
        self._roll = roll
        self._at = 0
        self._due_s = 0.0
        self._deleted = 0
        self._waiting_since_s: float | None = None
        #: The sweep under way, and the next one.
        self._sweep = Sweep()
        self._asked: Sweep | None = None
        #: Rows deleted since start.
        self.deleted = 0
        self.sweeps = 0

    def ask(self, days: int, tables: Collection[str] | None = None) -> None:
        """Begin a sweep soon, that keeps no row longer than `days`. May be called from any thread."""
        self._asked = Sweep(days, tables)

    @property
    def asked(self) -> bool:
        """A sweep that was asked for has not ended yet."""
        return self._asked is not None or self._sweep.days is not None

    def step(self, connection: duckdb.DuckDBPyConnection, now_us: int, clock_s: float) -> bool:
        """Delete one chunk, if a sweep is due or under way. True when there is more to do."""
        if self._at == 0 and not self._deleted and self._asked is not None:
            self._sweep, self._asked = self._asked, None
            self._due_s = clock_s
        if clock_s < self._due_s:
            return False
        table, days = self._plan[self._at]
        before_us = now_us - self._days(table, days) * _DAY_US
        if table is schema.REQUESTS:
            before_us = before_us // rollups.HOUR_US * rollups.HOUR_US
            if self._waits(connection, before_us, clock_s):
                return False
        # The latest batch number is kept whatever its age: it says whether rows were lost.
        kept = " AND batch < (SELECT max(batch) FROM segments)" if table is schema.SEGMENTS else ""
        row = connection.execute(
            f"DELETE FROM {table.name} WHERE rowid IN ("
            f"SELECT rowid FROM {table.name} WHERE {table.time} < make_timestamp(?){kept} LIMIT {CHUNK_ROWS})",
            [before_us],
        ).fetchone()
        gone = row[0] if row else 0
        self._deleted += gone
        self.deleted += gone
        if gone == CHUNK_ROWS:
            return True
        self._at += 1
        if self._at < len(self._plan):
            return True
        if self._deleted:
            _checkpoint(connection)
        self._at = self._deleted = 0
        self._sweep = Sweep()
        self._due_s = clock_s + SWEEP_S
        self.sweeps += 1
        return False

    def _days(self, table: schema.Table, days: int) -> int:
        sweep = self._sweep
        if sweep.days is None:
            return days
        asked = table is not schema.REQUESTS_HOURLY if sweep.tables is None else table.name in sweep.tables
        return min(days, sweep.days) if asked else days

    def _waits(self, connection: duckdb.DuckDBPyConnection, before_us: int, clock_s: float) -> bool:
        """Whether requests cannot be forgotten yet; when they can, the roll-ups are told."""
        if before_us <= rollups.raw_since_us(connection):
            return False
        oldest_us = rollups.oldest_pending_us(connection)
        if self._roll is not None and oldest_us is not None and oldest_us < before_us:
            self._roll.hurry_before_us = before_us
            if self._waiting_since_s is None:
                self._waiting_since_s = clock_s
            if clock_s < self._waiting_since_s + PATIENCE_S:
                return True
            _log.warning("requests are forgotten that could not be added up by hour: long times will not know of them")
        self._waiting_since_s = None
        rollups.forget_before(connection, before_us)
        return False


def _checkpoint(connection: duckdb.DuckDBPyConnection) -> None:
    """Give the room back to new rows."""
    try:
        connection.execute("CHECKPOINT")
    except duckdb.TransactionException:
        pass  # somebody else is writing: DuckDB does it by itself later
