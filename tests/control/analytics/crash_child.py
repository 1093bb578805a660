"""Loads a spool until it is killed. `python crash_child.py <folder> [<os call to die at> <which time>]`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import duckdb

from fleetproxy.control.analytics import ingest as module
from tests.control.analytics.analytics_kit import opened


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(what: str, time: int) -> None:
    """Be killed at the n-th removal of a segment, or right after the n-th commit or before it."""
    left = [time]

    def counted() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    if what == "unlink":
        remove = module._remove

        def remove_or_die(segment: Any) -> None:
            counted()
            remove(segment)

        module._remove = remove_or_die
        return
    real = module.transaction

    class Transaction:
        def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
            self._inner = real(connection)

        def __enter__(self) -> None:
            self._inner.__enter__()

        def __exit__(self, *error: Any) -> bool | None:
            if what == "before_commit":
                counted()
            result = self._inner.__exit__(*error)
            if what == "after_commit":
                counted()
            return result

    module.transaction = Transaction  # type: ignore[assignment,misc]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if len(sys.argv) > 3:
        die_at(sys.argv[2], int(sys.argv[3]))
    module.BATCH_SEGMENTS = 3  # many transactions
    ingest, connection = opened(folder)
    ingest.tidy()
    print("open", flush=True)
    while True:
        if not ingest.step(connection, 0) and sys.argv[2:3] != ["linger"]:
            break
    connection.close()
    print("done", flush=True)
