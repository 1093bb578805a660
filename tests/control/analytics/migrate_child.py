"""Brings a file up to date and is killed before its n-th statement. `python migrate_child.py <folder> <n>`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import duckdb

from tests.control.analytics.migration_case import migrate


class Counting:
    """A connection whose process dies before one of its statements."""

    def __init__(self, inner: duckdb.DuckDBPyConnection, left: int) -> None:
        self._inner = inner
        self._left = left

    def execute(self, sql: str, *values: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._inner.execute(sql, *values)


connection = duckdb.connect(str(Path(sys.argv[1]) / "analytics.duckdb"))
migrate(Counting(connection, int(sys.argv[2])))  # type: ignore[arg-type]
connection.close()
