"""The store's file: opening it, bringing it up to date, and what to do when it cannot be used.

    missing                          made
    written by a newer version       refused (`newer`): nothing is lost, update fleetproxy
    held by another process          refused (`locked`): tried again later
    not readable, a folder, no room  refused (`unusable`, `disk`): tried again later
    damaged                          set aside by renaming, loudly; a new file is made
    damaged write-ahead log          only that log is set aside: the rows since the last checkpoint are lost

DuckDB's settings belong to the instance, not to a connection; `harden` closes it for everybody, user SQL included:
no files but those of spool and exports, no extensions, no changes of settings.
"""

# ruff: noqa: S608  (SQL here is made of our own tables' names)

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import duckdb
import msgspec

from fleetproxy import __version__, log
from fleetproxy.control.analytics import schema
from fleetproxy.settings import Analytics

_log = log.get("store")

Trouble = Literal[
    "starting", "disk", "locked", "newer", "damaged", "damaged_wal", "unusable", "invalidated", "memory", "failed",
]  # fmt: skip

#: What DuckDB's messages mean for us; pinned by tests, for the messages are all there is to go by.
_MESSAGES: tuple[tuple[str, Trouble], ...] = (
    ("Could not set lock", "locked"),
    ("Failure while replaying WAL", "damaged_wal"),
    ("database file with version number", "newer"),
    ("not a valid DuckDB database file", "damaged"),
    ("Corrupt database file", "damaged"),
    ("Could not read enough bytes", "damaged"),
    ("No space left", "disk"),
    ("Disk quota exceeded", "disk"),
    ("File too large", "disk"),
    ("Input/output error", "disk"),
    ("Could not write", "disk"),
    ("Could not truncate", "disk"),
    ("Permission denied", "unusable"),
    ("Is a directory", "unusable"),
    ("Read-only file system", "unusable"),
    ("database has been invalidated", "invalidated"),
)
#: Folder beside the file where copies of rows go.
EXPORTS = "exports"
#: Damaged files kept; older ones make room.
KEEP_DAMAGED = 3
_HEADER = struct.Struct("<8x4sQ")


class StoreError(Exception):
    """The store cannot be used now. `trouble` says why in one word, the text what to do."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble: Trouble = trouble


class Opened(msgspec.Struct, frozen=True):
    connection: duckdb.DuckDBPyConnection
    #: Random, new with each file.
    store_id: str
    #: Number of the last transaction that loaded rows.
    batch: int
    #: Damaged files set aside just now.
    set_aside: tuple[Path, ...]


def judge(error: BaseException) -> Trouble:
    """What an error of DuckDB or of the file system means for the store."""
    if isinstance(error, StoreError):
        return error.trouble
    if isinstance(error, duckdb.FatalException | duckdb.InternalException):
        # Some carry their cause, but the instance is of no more use either way.
        return "damaged" if "Corrupt" in str(error) else "invalidated"
    trouble = _told(error)
    if trouble is not None:
        return trouble
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError):
        return "memory"
    if isinstance(error, OSError):
        return "disk"
    return "failed"


def _told(error: BaseException) -> Trouble | None:
    text = str(error)
    return next((trouble for pattern, trouble in _MESSAGES if pattern in text), None)


def open_store(path: Path, spool: Path, settings: Analytics, now_us: int) -> Opened:
    """Open the store, making or mending it where that is possible. Raises StoreError."""
    moved: list[Path] = []
    for _ in range(3):
        try:
            return _open(path, spool, settings, now_us, tuple(moved))
        except (duckdb.Error, StoreError, OSError) as error:
            trouble = judge(error)
            if trouble == "invalidated":
                # While opening: for want of room, say, or because the file is such that DuckDB cannot go on.
                trouble = _told(error) or "damaged"
            if trouble == "damaged_wal":
                moved += set_aside(path, now_us, error, (".wal",))
            elif trouble == "damaged":
                moved += set_aside(path, now_us, error)
            else:
                raise StoreError(trouble, advice(trouble, path, error)) from None
    raise StoreError("failed", f"the analytics file {path} could not be made anew; see the log")


def open_read_only(path: Path, settings: Analytics, *writable: Path) -> duckdb.DuckDBPyConnection:
    """The file of a fleetproxy that does not run, for reading, and folders to write copies to. Raises StoreError."""
    if not path.exists():
        raise StoreError("unusable", f"there is no analytics file at {path} yet: nothing has been recorded")
    connection = None
    try:
        _check_header(path)
        connection = duckdb.connect(str(path), read_only=True, config=_config(path, settings))
        _check_version(connection)
        harden(connection, *writable)
    except (duckdb.Error, OSError, StoreError) as error:
        if connection is not None:
            connection.close()
        trouble = judge(error)
        raise StoreError(trouble, advice(trouble, path, error)) from None
    return connection


def harden(connection: duckdb.DuckDBPyConnection, *folders: Path) -> None:
    """Close the instance: from now on it reaches nothing but its own file and these folders, and no setting changes."""
    connection.execute("SET timezone = 'UTC'")
    if folders:
        allowed = ", ".join(quote(str(folder.absolute())) for folder in folders)
        connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def quote(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All of the block, or nothing."""
    connection.execute("BEGIN TRANSACTION")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        try:
            connection.execute("ROLLBACK")
        except duckdb.Error:
            pass  # a failed COMMIT has ended it already
        raise


# --- opening -----------------------------------------------------------------------------------------------------


def _open(path: Path, spool: Path, settings: Analytics, now_us: int, set_aside: tuple[Path, ...]) -> Opened:
    if "?" in str(path):
        raise StoreError(
            "unusable", f"{path}: DuckDB cannot use a path with a question mark; choose another --data-dir"
        )
    if path.exists():
        _check_header(path)
    connection = duckdb.connect(str(path), config=_config(path, settings))
    try:
        path.chmod(0o600)
        bring_up_to_date(connection, now_us)
        store_id = connection.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
        batch = connection.execute("SELECT coalesce(max(batch), 0) FROM segments").fetchone()
        assert store_id
        assert batch
        harden(connection, spool, path.parent / EXPORTS)
    except BaseException:
        connection.close()
        raise
    return Opened(connection, store_id[0], batch[0], set_aside)


def _config(path: Path, settings: Analytics) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        # Else a table name could be the name of a Python variable of ours.
        "python_enable_replacements": "false",
        "memory_limit": f"{settings.memory_bytes}B",
        "temp_directory": str(path.with_suffix(".tmp")),
        "max_temp_directory_size": f"{4 * settings.memory_bytes}B",
        # Rows loaded at full speed are then written down once, not twice: a fifth faster, replayed in half a second.
        "checkpoint_threshold": "64MB",
        # Half the machine at most: the other half serves requests.
        "threads": str(max(1, min(4, (os.cpu_count() or 2) // 2))),
    }


def _check_header(path: Path) -> None:
    """Refuse what DuckDB would misread: an SQLite file, for one, makes it look for an extension on the internet."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or _HEADER.unpack(head)[0] != b"DUCK":
        raise StoreError("damaged", f"{path} is not a valid DuckDB database file")


def set_aside(path: Path, now_us: int, error: BaseException, suffixes: tuple[str, ...] = ("", ".wal")) -> list[Path]:
    """Rename a damaged file out of the way, and say so loudly. The names it has now."""
    stamp = now_us // 1000
    moved = []
    for suffix in suffixes:
        old = path.with_name(path.name + suffix)
        if old.exists():
            new = path.with_name(f"{path.name}.damaged-{stamp}{suffix}")
            old.rename(new)
            moved.append(new)
    _log.error(
        "the analytics file was damaged and has been set aside as %s; recording goes on in a new one (%s)",
        ", ".join(map(str, moved)) or "nothing",
        str(error).splitlines()[0],
    )
    stamps = {_stamp(kept, path) for kept in path.parent.glob(f"{path.name}.damaged-*")}
    for stale in sorted(stamps)[:-KEEP_DAMAGED]:
        for kept in path.parent.glob(f"{path.name}.damaged-{stale}*"):
            _log.warning("an older damaged analytics file was removed: %s", kept)
            kept.unlink()
    return moved


def _stamp(kept: Path, path: Path) -> str:
    return kept.name.removeprefix(f"{path.name}.damaged-").removesuffix(".wal")


_ADVICE: dict[Trouble, str] = {
    "starting": "it is being opened; try again shortly",
    "disk": "the disk is full or failing; free some space, recording resumes by itself",
    "locked": "another process holds it; end that one, recording resumes by itself",
    "newer": "it was written by a newer version; update fleetproxy, or choose another data folder",
    "unusable": "it cannot be opened; look at its owner and permissions",
    "memory": "it needs more memory; raise analytics.memory_bytes",
}


def told_to_callers(trouble: Trouble) -> str:
    """Why questions are not answered, without names of files."""
    return f"The request history cannot be read now: {_ADVICE.get(trouble, 'its file cannot be used; see the log')}"


def advice(trouble: Trouble, path: Path, error: BaseException) -> str:
    """The sentence for the operator."""
    if isinstance(error, StoreError) and trouble != "damaged":
        return str(error)
    words = _ADVICE.get(trouble, "it cannot be used")
    return f"the analytics file {path}: {words} ({str(error).splitlines()[0]})"


# --- versions ----------------------------------------------------------------------------------------------------


def bring_up_to_date(
    connection: duckdb.DuckDBPyConnection,
    now_us: int,
    *,
    version: int = schema.SCHEMA_VERSION,
    tables: tuple[schema.Table, ...] = schema.TABLES,
    views: tuple[schema.View, ...] = schema.VIEWS,
    migrations: dict[int, tuple[str, ...]] | None = None,
) -> None:
    """Make the file's tables those of this version. Each step is one transaction; a step is never half done.

    Raises StoreError("newer") when a newer version has written the file.
    """
    found = _check_version(connection, version)
    if found == version:
        return
    steps = schema.MIGRATIONS if migrations is None else migrations
    # A file without a version is empty: there is nothing to migrate, only to make.
    for step in range(found + 1, version) if found else ():
        with transaction(connection):
            for statement in steps.get(step, ()):
                connection.execute(statement)
            set_meta(connection, "schema_version", str(step))
    with transaction(connection):
        for statement in steps.get(version, ()) if found else ():
            connection.execute(statement)
        for statement in _ddl(connection, tables, views):
            connection.execute(statement)
        if not found:
            set_meta(connection, "store_id", secrets.token_hex(8))
            set_meta(connection, "created_at_us", str(now_us))
            set_meta(connection, "created_by", __version__)
        set_meta(connection, "schema_version", str(version))
    connection.execute("CHECKPOINT")


def _check_version(connection: duckdb.DuckDBPyConnection, version: int = schema.SCHEMA_VERSION) -> int:
    """The schema version of the file, 0 for an empty one."""
    known = connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'meta'").fetchone()
    if not known or not known[0]:
        return 0
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    found = int(row[0]) if row else 0
    if found > version:
        raise StoreError(
            "newer",
            f"the analytics file has schema version {found}, this fleetproxy knows up to {version}; "
            "update fleetproxy, or choose another data folder",
        )
    return found


def set_meta(connection: duckdb.DuckDBPyConnection, key: str, value: str) -> None:
    connection.execute("DELETE FROM meta WHERE key = ?", [key])
    connection.execute("INSERT INTO meta VALUES (?, ?)", [key, value])


def _ddl(
    connection: duckdb.DuckDBPyConnection, tables: tuple[schema.Table, ...], views: tuple[schema.View, ...]
) -> Iterator[str]:
    for table in tables:
        if table.sequence:
            yield f"CREATE SEQUENCE IF NOT EXISTS {table.sequence}"
        columns = ", ".join(f'"{column.name}" {column.type}' for column in table.columns)
        yield f"CREATE TABLE IF NOT EXISTS {table.name} ({columns})"
        present = {
            row[0] for row in connection.execute(f"SELECT name FROM pragma_table_info('{table.name}')").fetchall()
        }
        for column in table.columns:
            if column.name not in present:
                yield f'ALTER TABLE {table.name} ADD COLUMN "{column.name}" {column.type}'
        yield f"COMMENT ON TABLE {table.name} IS {quote(table.doc)}"
        for column in table.columns:
            yield f'COMMENT ON COLUMN {table.name}."{column.name}" IS {quote(column.doc)}'
    for view in views:
        yield f"CREATE OR REPLACE VIEW {view.name} AS {view.sql}"
        yield f"COMMENT ON VIEW {view.name} IS {quote(view.doc)}"
