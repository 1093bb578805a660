"""Copies of the operational state: making one at any time, putting one back while nothing runs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from fleetproxy.control.state import StoreBroken, upgrade
from fleetproxy.folders import Lock, Running, data_folder, prepare_data
from fleetproxy.settings import Settings

FILE = "state.db"


def backup(settings: Settings, target: Path | None) -> Path:
    """Copy users, keys, servers, jobs and settings to `target` (a file or a folder), also while fleetproxy runs.

    Returns the file. Raises StoreBroken, or OSError.
    """
    source = data_folder(settings) / FILE
    if not source.exists():
        raise StoreBroken(f"there is no state to copy: {source} does not exist")
    name = f"fleetproxy-state-{_stamp()}.db"
    chosen = Path(name) if target is None else target / name if target.is_dir() else target
    upgrade.copy_database(source, chosen)
    upgrade.check_copy(chosen)
    return chosen


def restore(settings: Settings, copy: Path) -> Path | None:
    """Put a copy in the place of the state, whose old file is kept beside it (returned). Everybody is logged out.

    Raises FolderError (a fleetproxy runs), StoreBroken (the copy cannot be used, nothing was changed).
    """
    folder = data_folder(settings)
    prepare_data(folder)
    lock = Lock(folder, Running(pid=os.getpid(), runtime=""))
    try:
        upgrade.check_copy(copy)
        fresh = folder / f"{FILE}.restoring"
        upgrade.copy_database(copy, fresh)
        _log_everybody_out(fresh)
        kept = _set_aside(folder / FILE)
        fresh.replace(folder / FILE)
        return kept
    finally:
        lock.release()


def _log_everybody_out(path: Path) -> None:
    """A session that has ended since the copy was made must not live again."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("DELETE FROM sessions")


def _set_aside(path: Path) -> Path | None:
    if not path.exists():
        return None
    kept = path.with_name(f"{path.name}.before-restore-{_stamp()}")
    for suffix in ("-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(kept.with_name(kept.name + suffix))
    path.rename(kept)
    return kept


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
