"""Forgetting old rows, a little at a time, between two loads."""

# ruff: noqa: S608  (SQL here is made of our own tables' names)

from __future__ import annotations

import duckdb

from fleetproxy.control.analytics import schema
from fleetproxy.settings import Analytics

#: Rows of one delete. Loading waits for at most one of them (about 20 ms).
CHUNK_ROWS = 10_000
#: How long after the end of one sweep the next begins.
SWEEP_S = 3600.0
SEGMENTS_DAYS = 2
_DAY_US = 86_400_000_000


class Retention:
    """Sweeps the tables once an hour. Blocks; runs in the store's thread."""

    def __init__(self, settings: Analytics) -> None:
        days = settings.retention_days
        own = {
            "segments": min(days, SEGMENTS_DAYS),
            "metric_samples": min(days, settings.samples_days),
            # What is on disk for weeks without a change must not vanish from the residency statistics first.
            "model_events": max(days, 30),
        }
        self._plan = tuple((table, own.get(table.name, days)) for table in schema.TABLES if table.time)
        self._at = 0
        self._due_s = 0.0
        self._deleted = 0
        #: For the sweep under way, and for the next one: rows older than this go, whatever the settings say.
        self._within_days: int | None = None
        self._asked_days: int | None = None
        #: Rows deleted since start.
        self.deleted = 0
        self.sweeps = 0

    def ask(self, days: int) -> None:
        """Begin a sweep soon, that keeps no row longer than `days`. May be called from any thread."""
        self._asked_days = days

    @property
    def asked(self) -> bool:
        """A sweep that was asked for has not ended yet."""
        return self._asked_days is not None or self._within_days is not None

    def step(self, connection: duckdb.DuckDBPyConnection, now_us: int, clock_s: float) -> bool:
        """Delete one chunk, if a sweep is due or under way. True when there is more to do."""
        if self._at == 0 and not self._deleted and self._asked_days is not None:
            self._within_days, self._asked_days = self._asked_days, None
            self._due_s = clock_s
        if clock_s < self._due_s:
            return False
        table, days = self._plan[self._at]
        days = min(days, self._within_days or days)
        # The latest batch number is kept whatever its age: it says whether rows were lost.
        kept = " AND batch < (SELECT max(batch) FROM segments)" if table is schema.SEGMENTS else ""
        row = connection.execute(
            f"DELETE FROM {table.name} WHERE rowid IN ("
            f"SELECT rowid FROM {table.name} WHERE {table.time} < make_timestamp(?){kept} LIMIT {CHUNK_ROWS})",
            [now_us - days * _DAY_US],
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
            connection.execute("CHECKPOINT")  # gives the room back to new rows
        self._at = self._deleted = 0
        self._within_days = None
        self._due_s = clock_s + SWEEP_S
        self.sweeps += 1
        return False
