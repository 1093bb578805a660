"""A question under way: its cursor, and the end that its asker, its time limit or the store may put to it."""

from __future__ import annotations

import threading

import duckdb


class Reading:
    """One question, from its asking to its answer."""

    def __init__(self, *, asked: bool = False) -> None:
        #: It is somebody's own SQL.
        self.asked = asked
        self.cursor: duckdb.DuckDBPyConnection | None = None
        #: Its time is over, or its asker has gone.
        self.stopped = False
        self._lock = threading.Lock()

    def start(self, cursor: duckdb.DuckDBPyConnection) -> None:
        with self._lock:
            if self.stopped:
                cursor.close()
                raise duckdb.InterruptException("stopped before it began")
            self.cursor = cursor

    def end(self) -> None:
        with self._lock:
            cursor, self.cursor = self.cursor, None
        if cursor is not None:
            cursor.close()

    def interrupt(self) -> None:
        with self._lock:
            if self.cursor is not None:
                self.cursor.interrupt()
