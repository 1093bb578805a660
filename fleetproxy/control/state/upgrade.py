"""Bringing the database file into shape at start: is it whole, is it ours, is it of this version?

missing                      create it
damaged (or cut to nothing)  set it aside as state.db.damaged-<time>; put the last good backup in its place, or refuse
not ours, unreadable         refuse, touching nothing
older schema                 copy it to backups/, then migrate: all steps in one transaction
newer schema                 refuse: an older program must not write it
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

#: The newest schema this version knows (the last file in `migrations/versions`).
HEAD = "0002"
#: Every schema this version can start from.
KNOWN = ("0001", "0002")
#: Daily copies kept; copies made before a migration are never deleted by us.
DAILY_KEPT = 7


class StoreBroken(Exception):
    """The operational state cannot be used; the text says why and what to do."""


class StoreNewer(StoreBroken):
    """The operational state was written by a newer fleetproxy."""


def prepare_file(path: Path) -> Path | None:
    """Make sure `path` is missing or a whole database of ours. Returns the backup put in its place, if any."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
            return None
        _check(path)
    except _DamagedError as damage:
        return _restore(path, str(damage))
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreBroken(f"cannot open the operational state {path}: {error}; check the path and its owner") from error
    return None


def migrate(engine: Engine, path: Path | None) -> None:
    """Bring the schema to HEAD, in one transaction: killed at any step, the old schema is still there."""
    with engine.connect() as connection:
        current = _revision(connection)
    if current == HEAD:
        return
    if current is not None and current not in KNOWN:
        raise StoreNewer(
            f"the operational state was written by a newer fleetproxy (schema {current}; this one knows {HEAD}): "
            "start that version, or restore the copy it made in backups/ before it migrated"
        )
    if path is not None and current is not None:
        copy_database(path, backups_folder(path) / f"state-before-{HEAD}-{_stamp()}.db")
    with engine.connect().execution_options(fleet_write=True) as connection, connection.begin():
        # Looked at again under the lock: another process may have been quicker.
        if _revision(connection) != HEAD:
            _run_alembic(connection)


def copy_database(source: Path, target: Path) -> None:
    """Copy a database, also while it is written to; `target` appears whole or not at all."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    with (
        contextlib.closing(sqlite3.connect(f"file:{_uri(source)}?mode=ro", uri=True)) as origin,
        contextlib.closing(sqlite3.connect(unfinished)) as copy,
    ):
        origin.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(target)


def backups_folder(path: Path) -> Path:
    return path.parent / "backups"


def daily_copy(path: Path, now: datetime) -> Path | None:
    """Keep one copy a day of a state that has proved readable; returns it when one was made."""
    target = backups_folder(path) / f"state-daily-{now:%Y%m%d}.db"
    if target.exists():
        return None
    copy_database(path, target)
    for old in sorted(backups_folder(path).glob("state-daily-*.db"))[:-DAILY_KEPT]:
        old.unlink(missing_ok=True)
    return target


def check_copy(path: Path) -> None:
    """Raise StoreBroken unless `path` is a whole state of a schema this version can use."""
    try:
        _check(path)
    except (_DamagedError, OSError, sqlite3.Error) as error:
        raise StoreBroken(f"{path} is not a usable copy of the operational state: {error}") from error
    with contextlib.closing(sqlite3.connect(f"file:{_uri(path)}?mode=ro", uri=True)) as connection:
        revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if revision is None or revision[0] not in KNOWN:
        raise StoreNewer(f"{path} has schema {revision and revision[0]}, which this version does not know")


class _DamagedError(Exception):
    """What is wrong with the file."""


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    # A first page at once: later an empty file means that something cut it, not that it is new.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=1")


def _check(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise _DamagedError("the file is empty")
    if head != b"SQLite format 3\0":
        raise _DamagedError("it does not begin like a database")
    with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as connection:
        try:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise _DamagedError(str(error)) from error
    if verdict != "ok":
        raise _DamagedError(verdict.splitlines()[0])
    if names and "alembic_version" not in names:
        raise StoreBroken(f"{path} is a database of another program; name another data folder (`data_dir`)")


def _restore(path: Path, damage: str) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{_stamp()}")
    copies = sorted(backups_folder(path).glob("state-*.db"), key=lambda copy: copy.stat().st_mtime, reverse=True)
    for copy in copies:
        try:
            check_copy(copy)
        except StoreBroken:
            continue
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        copy_database(copy, path)
        return copy
    raise StoreBroken(
        f"the operational state {path} is damaged ({damage}) and there is no usable copy in {backups_folder(path)}: "
        "restore one with `fleetproxy restore <file>`, or move the file away to begin anew"
    )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "") or None


def _run_alembic(connection: Connection) -> None:
    # Imported here: a start that has nothing to migrate need not pay for it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _uri(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
