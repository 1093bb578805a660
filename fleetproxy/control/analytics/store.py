"""The store as the rest of control sees it: rows come in from the spool by themselves, questions are asked with `read`.

One thread loads and forgets rows; a few others answer questions, each with a cursor of its own. None of them is the
event loop's. When the file cannot be used, rows wait in the spool, questions get `StoreUnavailable`, and `status` says
why; it is opened again by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import duckdb

from fleetproxy import log
from fleetproxy.control.analytics import database, export, rollups
from fleetproxy.control.analytics.answers import Answer
from fleetproxy.control.analytics.database import StoreError, Trouble, judge
from fleetproxy.control.analytics.ingest import Feed, Ingest
from fleetproxy.control.analytics.journal import Journal
from fleetproxy.control.analytics.mark import Mark
from fleetproxy.control.analytics.reading import Reading
from fleetproxy.control.analytics.retention import Retention
from fleetproxy.control.analytics.sandbox import answer
from fleetproxy.control.analytics.status import Status
from fleetproxy.errors import QueryLimit, QueryTimeout, StoreUnavailable
from fleetproxy.settings import Analytics

_log = log.get("store")

#: How often the spool is looked at. Writers rotate each second, so a row is visible within two.
LOOK_S = 0.5
#: Questions answered at once, and how many more may wait.
READERS = 4
READERS_WAITING = 16
#: Of those, how many may be people's own SQL.
ASKED = 2
#: A flush gives up on a long backlog after this; what is left comes with the next looks.
FLUSH_S = 2.0
BACK_OFF_MAX_S = 30.0
#: How long after its time limit a question may take to notice.
GRACE_S = 1.0
#: How often hours are looked for that are over.
ROLL_S = 1.0
_LEAVE_S = 5.0

T = TypeVar("T")
Work = Callable[[duckdb.DuckDBPyConnection], T]


class Store:
    """Owner of the analytics file. `run` it; `flush` before asking for the newest rows; `read` to ask."""

    def __init__(
        self,
        path: Path,
        spool: Path,
        settings: Analytics,
        *,
        feed: Feed,
        journal: Journal | None = None,
        rotate: Callable[[], Awaitable[object]] | None = None,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self.settings = settings
        self.ingest = Ingest(spool, feed)
        self.rollups = rollups.Rollups()
        self.retention = Retention(settings, self.rollups)
        #: Failures of the file, by trouble; questions answered, by result.
        self.failures: Counter[Trouble] = Counter()
        self.queries: Counter[str] = Counter()
        #: Loads that were committed once and are no longer in the file.
        self.lost_batches = 0
        self._spool = spool
        self._journal = journal
        self._rotate = rotate
        self._wall_us = wall_us
        self._mark = Mark(path.with_suffix(".mark"))
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._store_id = ""
        self._trouble: StoreError | None = StoreError("starting", "the store is starting")
        self._failed_in_a_row = 0
        self._retry_at_s = 0.0
        self._loaded_at_s: float | None = None
        self._set_aside: list[str] = []
        self._loader = ThreadPoolExecutor(1, "store-load")
        self._readers = ThreadPoolExecutor(READERS, "store-read")
        self._roller = ThreadPoolExecutor(1, "store-roll")
        self._reading: set[Reading] = set()
        self._rolling = Reading()
        self._reopen = False
        #: What a question found unreadable.
        self._damage: str | None = None
        self._cursors = threading.Lock()
        self._flushing = asyncio.Lock()
        self._flush_began_s = 0.0
        self.ingest.tidy()
        export.tidy(path.parent / database.EXPORTS)

    @property
    def spool(self) -> Path:
        """The one folder the database may write files to."""
        return self._spool

    @property
    def status(self) -> Status:
        trouble = self._trouble
        return Status(
            ok=trouble is None,
            trouble=trouble.trouble if trouble else None,
            detail=str(trouble) if trouble else self._damage,
            backlog_segments=self.ingest.backlog_segments,
            backlog_bytes=self.ingest.backlog_bytes,
            loaded_at_s=self._loaded_at_s,
            set_aside=tuple(self._set_aside),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Load rows until `stop` is set; then load the rest of the spool and close the file."""
        loop = asyncio.get_running_loop()
        rolling = asyncio.ensure_future(self._keep_rolling(stop))
        try:
            while not stop.is_set():
                if self._journal is not None:
                    self._journal.rotate()
                if not await loop.run_in_executor(self._loader, self._work):
                    try:
                        async with asyncio.timeout(LOOK_S):
                            await stop.wait()
                    except TimeoutError:
                        pass
            await self.flush(limit_s=60.0)
        finally:
            rolling.cancel()
            await asyncio.shield(loop.run_in_executor(self._loader, self._close))
            self._loader.shutdown(wait=False)
            self._roller.shutdown(wait=False, cancel_futures=True)
            self._readers.shutdown(wait=False, cancel_futures=True)

    async def _keep_rolling(self, stop: asyncio.Event) -> None:
        """Add up the hours that are over, one after the other."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            if not await loop.run_in_executor(self._roller, self._roll):
                try:
                    async with asyncio.timeout(ROLL_S):
                        await stop.wait()
                except TimeoutError:
                    pass

    async def flush(self, limit_s: float = FLUSH_S) -> None:
        """Have every process close its segment, and load what is there. Callers at the same time share one flush.

        Never raises for the file's sake: whoever reads next is told.
        """
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        async with self._flushing:
            if self._flush_began_s > asked_s:
                return  # it began after we came: our rows are in
            self._flush_began_s = began_s = loop.time()
            if self._rotate is not None:
                await self._rotate()
            if self._journal is not None:
                self._journal.rotate()
            while await loop.run_in_executor(self._loader, self._work, True):
                if loop.time() - began_s > limit_s:
                    return

    async def ask(self, sql: str) -> Answer:
        """Answer somebody's own SQL: one SELECT or EXPLAIN. Raises BadQuery besides what `read` raises."""
        if sum(reading.asked for reading in self._reading) >= ASKED:
            self.queries["refused"] += 1
            raise QueryLimit
        return await self._run(Reading(asked=True), lambda cursor: answer(cursor, sql, self.settings.query_rows))

    async def read(self, work: Work[T], *, timeout_s: float | None = None) -> T:
        """Run `work` with a cursor, off the loop, in one read-only transaction.

        Raises QueryTimeout, QueryLimit, StoreUnavailable; DuckDB's errors about the SQL itself go through.
        """
        if len(self._reading) >= READERS + READERS_WAITING:
            self.queries["refused"] += 1
            raise QueryLimit
        return await self._run(Reading(), work, timeout_s)

    async def _run(self, reading: Reading, work: Work[T], timeout_s: float | None = None) -> T:
        loop = asyncio.get_running_loop()
        self._reading.add(reading)
        limit_s = timeout_s or self.settings.query_timeout_s
        timer = loop.call_later(limit_s, self._stop, reading, loop)
        running = loop.run_in_executor(self._readers, self._read, reading, work)
        running.add_done_callback(lambda future: self._ended(reading, future))
        try:
            done, _ = await asyncio.wait({running}, timeout=limit_s + GRACE_S)
            if not done:
                # Building one huge value cannot be interrupted: the caller need not wait for it.
                raise duckdb.InterruptException("still running")
            result = running.result()
        except asyncio.CancelledError:
            self._stop(reading, loop)
            raise
        except duckdb.InterruptException:
            self.queries["timeout" if reading.stopped else "stopped"] += 1
            if reading.stopped:
                raise QueryTimeout from None
            raise StoreUnavailable from None
        except Exception:
            self.queries["error"] += 1
            raise
        finally:
            timer.cancel()
        self.queries["ok"] += 1
        return result

    def _stop(self, reading: Reading, loop: asyncio.AbstractEventLoop) -> None:
        """Interrupt a question until it has ended: an interrupt between two statements is forgotten by DuckDB."""
        if reading in self._reading:
            reading.stopped = True
            reading.interrupt()
            loop.call_later(GRACE_S / 10, self._stop, reading, loop)

    def _ended(self, reading: Reading, future: asyncio.Future[T]) -> None:
        self._reading.discard(reading)
        if not future.cancelled():
            future.exception()  # seen, also when nobody waits for it any more

    # --- the loading thread ----------------------------------------------------------------------------------

    def _work(self, at_once: bool = False) -> bool:
        """One step of loading or forgetting. True when there is more to do right now."""
        try:
            if self._reopen:
                self._close()
            if time.monotonic() < self._retry_at_s and not at_once:
                self.ingest.look()
                return False
            connection = self._connection or self._open()
            before = self.ingest.batch
            more = self.ingest.step(connection, self._wall_us())
            self._recovered()
            if self.ingest.batch != before:
                self._loaded_at_s = self._wall_us() / 1e6
                self._mark.write(self._store_id, self.ingest.batch)
            if more or at_once:
                return more
            return self.retention.step(connection, self._wall_us(), time.monotonic())
        except (duckdb.Error, StoreError, OSError) as error:
            self._fail(error)
        except Exception as error:
            _log.exception("loading rows failed unexpectedly")
            self._fail(error)
        return False

    def _open(self) -> duckdb.DuckDBPyConnection:
        opened = database.open_store(self.path, self._spool, self.settings, self._wall_us())
        try:
            rollups.bring_up_to_date(opened.connection, self._wall_us())
        except BaseException:
            opened.connection.close()
            raise
        self._connection = opened.connection
        self._store_id = opened.store_id
        self.ingest.batch = opened.batch
        self._set_aside += [path.name for path in opened.set_aside]
        self._damage = None
        lost = self._mark.ahead(opened.store_id, opened.batch)
        if lost:
            self.lost_batches += lost
            _log.error("the last %d loads of rows are missing from the analytics file: its log was damaged", lost)
            self.ingest.batch += lost
        return opened.connection

    def _recovered(self) -> None:
        if self._trouble is not None:
            if self._failed_in_a_row:
                _log.info("the store works again")
            self._trouble = None
        self._failed_in_a_row = 0
        self._retry_at_s = 0.0

    def _fail(self, error: BaseException) -> None:
        trouble = self._judge(error)
        self.failures[trouble] += 1
        self._failed_in_a_row += 1
        wait_s = min(BACK_OFF_MAX_S, LOOK_S * 2 ** min(self._failed_in_a_row, 10))
        self._retry_at_s = time.monotonic() + wait_s
        text = str(error) if isinstance(error, StoreError) else database.advice(trouble, self.path, error)
        if self._trouble is None or self._trouble.trouble != trouble or self._failed_in_a_row == 1:
            _log.error("rows are not being stored, they wait in the spool: %s", text)
        self._trouble = StoreError(trouble, text)
        try:
            if trouble in ("damaged", "invalidated"):
                self._close()
            if trouble == "damaged" and self.path.exists():
                self._set_aside += [path.name for path in database.set_aside(self.path, self._wall_us(), error)]
                self._retry_at_s = 0.0
            self.ingest.look()
            self.ingest.trim(self.settings.spool_bytes)
        except (OSError, duckdb.Error) as further:
            _log.error("the spool cannot be read: %s", further)

    def _judge(self, error: BaseException) -> Trouble:
        """As `judge`, but a short read counts as damage only when it is the file's own, not a segment's."""
        trouble, text = judge(error), str(error)
        return "failed" if trouble == "damaged" and "orrupt" not in text and str(self.path) not in text else trouble

    def _close(self) -> None:
        """Close the file. Questions under way are stopped first: a cursor of theirs would keep it open."""
        connection, self._connection = self._connection, None
        self._reopen = False
        if connection is None:
            return
        deadline_s = time.monotonic() + _LEAVE_S
        while time.monotonic() < deadline_s:
            with self._cursors:
                everybody = (*self._reading, self._rolling)
                held = [reading for reading in everybody if reading.cursor is not None]
            # No new one can begin: `_connection` is None.
            if not held:
                break
            for reading in held:
                reading.interrupt()
            time.sleep(0.01)
        try:
            connection.close()
        except duckdb.Error as error:
            _log.warning("closing the store: %s", error)

    # --- the adding-up thread --------------------------------------------------------------------------------

    def _roll(self) -> bool:
        """Add up one hour. True when there is more to do right now; what fails now is tried again later."""
        cursor = None
        try:
            cursor = self._begin(self._rolling)
            return self.rollups.step(cursor, self._wall_us())
        except StoreUnavailable:
            return False
        except duckdb.Error as error:
            trouble = self._judge(error)
            if trouble == "invalidated":
                self._reopen = True
            if not isinstance(error, duckdb.InterruptException):
                _log.warning("an hour could not be added up; it is tried again: %s", str(error).splitlines()[0])
            return False
        finally:
            if cursor is not None:
                self._rolling.end()

    # --- the reading threads ---------------------------------------------------------------------------------

    def _read(self, reading: Reading, work: Work[T]) -> T:
        cursor = self._begin(reading)
        try:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            return work(cursor)
        except duckdb.Error as error:
            trouble = self._judge(error)
            if trouble == "invalidated":
                self._reopen = True
                raise StoreUnavailable from None
            if trouble == "damaged":
                # The rest of the file is still good: it is not set aside for one unreadable block.
                self._damage = "a part of the analytics file is damaged: " + str(error).splitlines()[0]
                _log.error("a question could not be answered: %s", self._damage)
                raise StoreUnavailable("the rows asked for are in a damaged part of the analytics file") from None
            if trouble in ("memory", "disk"):
                raise StoreUnavailable(f"The answer needs more {trouble} than there is; ask for less time") from None
            raise
        finally:
            reading.end()

    def _begin(self, reading: Reading) -> duckdb.DuckDBPyConnection:
        """A cursor of its own, which `_close` knows of. Raises StoreUnavailable."""
        with self._cursors:
            connection = self._connection
            if connection is None:
                raise StoreUnavailable(database.told_to_callers(self._trouble.trouble if self._trouble else "failed"))
            cursor = connection.cursor()
            reading.start(cursor)
        return cursor
