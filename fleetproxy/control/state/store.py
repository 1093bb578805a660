"""The database of the operational state: one engine, one thread, one transaction per call.

SQLite calls are short (well under a millisecond, plus one fsync for a change) but they block, so they run in a thread
of their own; one thread makes every change wait for the one before it, which is what keeps rules such as "exactly one
first administrator" simple. A commit is on the disk when `write` returns.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from fleetproxy import log
from fleetproxy.control.state import seal, upgrade
from fleetproxy.control.state.seal import Seal
from fleetproxy.errors import StoreUnavailable

_log = log.get("control.state")

P = ParamSpec("P")
R = TypeVar("R")

#: Calls that may wait for the thread; further ones are refused (503) and counted.
MAX_WAITING = 512


class Store:
    """The operational state. Made by `open`; ends with `close`."""

    def __init__(self, engine: Engine, path: Path | None, seal: Seal | None = None) -> None:
        self._engine = engine
        self._seal = seal
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._waiting = 0
        self._changed: list[Callable[[], None]] = []
        #: The SQLite file; None when the state lives in a server.
        self.path = path
        #: Calls turned away because too many were waiting.
        self.refused = 0
        #: Set when the file was damaged and the last good backup was put in its place.
        self.restored_from: Path | None = None

    @classmethod
    async def open(cls, where: Path | str) -> Self:
        """Open (and create or migrate) the state: a path of a SQLite file, or a database URL.

        Raises StoreBroken (damaged, foreign, unreadable, and no backup) or StoreNewer (written by a newer version).
        """
        return await asyncio.to_thread(cls.open_now, where)

    @classmethod
    def open_now(cls, where: Path | str) -> Self:
        """`open` for callers without an event loop."""
        path = _file_of(where)
        restored = upgrade.prepare_file(path) if path else None
        engine = create_engine(f"sqlite+pysqlite:///{path}" if path else str(where), **_engine_options(path))
        if path:
            _tune_sqlite(engine)
        try:
            upgrade.migrate(engine, path)
            store = cls(engine, path, _seal_of(path))
            store.write_now(seal.seal_all)
        except BaseException:
            engine.dispose()
            raise
        store.restored_from = restored
        return store

    async def read(self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work(session, ...)` in a transaction that changes nothing."""
        return await self._run(False, lambda session: work(session, *args, **kwargs))

    async def write(self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work(session, ...)` in a transaction; committed (and on the disk) when this returns."""
        return await self._run(True, lambda session: work(session, *args, **kwargs))

    def read_now(self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`read` for callers without an event loop."""
        return self._transact(False, lambda session: work(session, *args, **kwargs))

    def write_now(self, work: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`write` for callers without an event loop."""
        return self._transact(True, lambda session: work(session, *args, **kwargs))

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` (in the event loop) after each committed change: the publisher looks again then."""
        self._changed.append(callback)

    async def backup(self, target: Path) -> None:
        """Copy the whole state to `target` while it is in use. SQLite only."""
        if self.path is None:
            raise StoreUnavailable("the state lives in a database server: use that server's own backup")
        path = self.path
        await asyncio.get_running_loop().run_in_executor(self._thread, upgrade.copy_database, path, target)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=False)

    def close_now(self) -> None:
        self._engine.dispose()
        self._thread.shutdown(wait=False)

    async def _run(self, write: bool, work: Callable[[Session], R]) -> R:
        if self._waiting >= MAX_WAITING:
            self.refused += 1
            raise StoreUnavailable("too many calls are waiting for the store; try again shortly")
        self._waiting += 1
        # Shielded: a caller that leaves must not leave a change half reported; the thread finishes it either way.
        call = asyncio.get_running_loop().run_in_executor(self._thread, self._transact, write, work)
        call.add_done_callback(lambda done: self._ended(write, done))
        try:
            return await asyncio.shield(call)
        except DBAPIError as error:
            _log.error("the operational state cannot be used: %s", error.orig)
            raise StoreUnavailable("the store cannot be read or written now; see the log") from error

    def _ended(self, write: bool, call: asyncio.Future[Any]) -> None:
        """The thread is done with a call, whether or not anybody still waits for it."""
        self._waiting -= 1
        if call.cancelled() or call.exception() is not None:
            return
        if write:
            for callback in self._changed:
                callback()

    def _transact(self, write: bool, work: Callable[[Session], R]) -> R:
        with self._engine.connect().execution_options(fleet_write=write) as connection, connection.begin():
            session = Session(bind=connection, expire_on_commit=False, info=seal.info(self._seal))
            result = work(session)
            session.flush()
            session.close()
        return result


def _seal_of(path: Path | None) -> Seal | None:
    try:
        return Seal.beside(path) if path else None
    except OSError as error:
        raise upgrade.StoreBroken(f"cannot open {error.filename}: {error.strerror}; check its owner") from error


def _file_of(where: Path | str) -> Path | None:
    if isinstance(where, Path):
        return where
    url = make_url(where)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _engine_options(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {"isolation_level": "SERIALIZABLE", "pool_pre_ping": True}
    # One connection is all one thread can use.
    return {"connect_args": {"check_same_thread": False, "timeout": 10.0}, "pool_size": 1, "max_overflow": 0}


def _tune_sqlite(engine: Engine) -> None:
    """Real transactions (the driver leaves DDL and reads outside of its own), durable commits, checked references."""

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        write = connection.get_execution_options().get("fleet_write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
