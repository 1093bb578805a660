"""Loading the spool into the store: each row exactly once, whoever dies when.

A batch of closed segments, their rows and their names go into the file in one transaction; then the segments are
unlinked. Dying before the commit changes nothing; dying after it leaves segments whose names are known: those are only
unlinked. A line that is no row costs that line alone, and is counted.

Everything here blocks; it runs in the store's own thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import duckdb
import msgspec

from fleetproxy import log
from fleetproxy.control.analytics import rollups, rows, schema
from fleetproxy.control.analytics.database import judge, transaction
from fleetproxy.control.analytics.shape import LAST_US
from fleetproxy.core.record import AuditRecord
from fleetproxy.link.spool import adopt_orphans

_log = log.get("store")

#: One transaction loads at most this much: half a second's work, so that a flush never waits long.
BATCH_BYTES = 16 * 1024 * 1024
BATCH_SEGMENTS = 256
#: Rows are checked and counted in pieces of this size.
PIECE_BYTES = 2 * 1024 * 1024
#: A line longer than this is no row (DuckDB's reader takes up to 16 MiB).
LINE_BYTES = 8 * 1024 * 1024
#: Segments no transaction takes are kept for a look, this many.
KEEP_REJECTED = 16
#: Left over by a writer that died between making a segment and locking it.
_STALE_NEW_S = 60.0

_ROWS: dict[str, type[Any]] = {"requests": AuditRecord, **{table: row for row, table in rows.TABLES.items()}}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {name: msgspec.json.Decoder(row) for name, row in _ROWS.items()}
_LOADS: dict[str, tuple[str, ...]] = {name: schema.load_statements(table) for name, table in schema.SPOOLED.items()}

#: Errors that speak of the rows, not of the file.
_DATA_ERRORS = (duckdb.DataError, duckdb.InvalidInputException)

Feed = Callable[[Sequence[AuditRecord]], None]


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A closed segment whose lines have been looked at."""

    path: Path
    table: str
    #: What DuckDB reads: `path`, or a copy without its malformed lines.
    source: Path
    rows: int
    malformed: int
    bytes: int
    #: Of audit rows: starts of the hours they belong to, microseconds since the epoch.
    hours_us: frozenset[int] = frozenset()


class Counters(msgspec.Struct, kw_only=True):
    """What has become of rows since start."""

    loaded: int = 0
    #: Lines that were no rows.
    malformed: int = 0
    #: Last lines that a writer could not finish.
    torn: int = 0
    #: Rows deleted unread because the store stayed unusable and the spool full.
    overflowed: int = 0
    #: Rows in segments that no transaction took.
    rejected: int = 0
    batches: int = 0


class Ingest:
    """The reading end of the spool. `feed` sees every audit row once, before it is loaded."""

    def __init__(self, folder: Path, feed: Feed) -> None:
        self._folder = folder
        self._feed = feed
        self._prepared: dict[str, Segment] = {}
        #: Number of the last transaction in the file.
        self.batch = 0
        self.counters = Counters()
        self.backlog_segments = 0
        self.backlog_bytes = 0

    def tidy(self) -> None:
        """Remove what an earlier life left half done."""
        for copy in self._folder.glob("*.clean"):
            copy.unlink(missing_ok=True)
        for fresh in self._folder.glob("*.new"):
            try:
                if time.time() - fresh.stat().st_mtime > _STALE_NEW_S:
                    fresh.unlink()
            except FileNotFoundError:
                pass  # its writer has just locked and renamed it

    def step(self, connection: duckdb.DuckDBPyConnection, now_us: int) -> bool:
        """Load one batch. True when more is waiting. Raises duckdb.Error or OSError; then nothing was loaded."""
        waiting = self._waiting()
        batch: list[Segment] = []
        size = 0
        for name, path in waiting[:BATCH_SEGMENTS]:
            segment = self._prepared.get(name) or self._prepare(path)
            if segment is None:
                continue
            batch.append(segment)
            size += segment.bytes
            if size >= BATCH_BYTES:
                break
        if batch:
            self._load(connection, batch, now_us)
        return len(batch) < len(waiting)

    def look(self) -> None:
        """Look at new segments without loading them: counting goes on while the store cannot be used."""
        for name, path in self._waiting():
            if name not in self._prepared:
                self._prepare(path)

    def trim(self, limit_bytes: int) -> None:
        """Delete the oldest segments beyond the limit: the spool's cap while the store cannot be used."""
        waiting = self._waiting()
        for name, path in waiting:
            if self.backlog_bytes <= limit_bytes:
                return
            segment = self._prepared.pop(name, None) or self._prepare(path)
            if segment is None:
                continue
            self._prepared.pop(name, None)
            self.counters.overflowed += segment.rows
            self.backlog_bytes -= path.stat().st_size
            self.backlog_segments -= 1
            _remove(segment)

    # --- looking ---------------------------------------------------------------------------------------------

    def _waiting(self) -> list[tuple[str, Path]]:
        """Closed segments, oldest first. Segments of dead writers are closed on the way."""
        for path, cut in adopt_orphans(self._folder):
            if cut:
                self.counters.torn += 1
                _log.warning("the last line of %s was torn; %d bytes were cut", path.name, cut)
        found: list[tuple[int, str, Path]] = []
        size = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                table, _, rest = entry.name.partition(".")
                if rest.endswith(".ndjson") and table in schema.SPOOLED:
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue
                    size += stat.st_size
                    found.append((stat.st_mtime_ns, entry.name, Path(entry.path)))
        self.backlog_segments, self.backlog_bytes = len(found), size
        return [(name, path) for _, name, path in sorted(found)]

    def _prepare(self, path: Path) -> Segment | None:
        """Check every line, once; audit rows are fed to the counters on the way."""
        table = path.name.partition(".")[0]
        decoder = _DECODERS[table]
        good = malformed = offset = 0
        clean: IO[bytes] | None = None
        source = path
        hours_us: set[int] = set()
        try:
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    piece += file.readline()
                    try:
                        decoded = _all_lines(decoder, piece)
                        kept = piece
                    except (msgspec.MsgspecError, ValueError, RecursionError):
                        decoded, kept, bad = _line_by_line(decoder, piece)
                        malformed += bad
                        if clean is None:
                            source = path.with_suffix(".clean")
                            clean = source.open("wb")
                            _copy(path, clean, offset)
                    if clean is not None:
                        clean.write(kept)
                    offset += len(piece)
                    good += len(decoded)
                    if table == "requests":
                        hours_us.update({row.started_at_us // rollups.HOUR_US * rollups.HOUR_US for row in decoded})
                        self._count(decoded)
        except FileNotFoundError:
            return None
        finally:
            if clean is not None:
                clean.close()
        if malformed:
            self.counters.malformed += malformed
            _log.warning("%d lines of %s were no rows and have been left out", malformed, path.name)
        segment = Segment(
            path=path,
            table=table,
            source=source,
            rows=good,
            malformed=malformed,
            bytes=offset,
            hours_us=frozenset(hour for hour in hours_us if 0 <= hour <= LAST_US),
        )
        self._prepared[path.name] = segment
        return segment

    def _count(self, records: Sequence[AuditRecord]) -> None:
        try:
            self._feed(records)
        except Exception:
            _log.exception("rows could not be counted; they are stored all the same")

    # --- loading ---------------------------------------------------------------------------------------------

    def _load(self, connection: duckdb.DuckDBPyConnection, batch: list[Segment], now_us: int) -> None:
        try:
            loaded, refused = self._commit(connection, batch, now_us)
        except duckdb.Error as error:
            data, memory = isinstance(error, _DATA_ERRORS) and judge(error) == "failed", judge(error) == "memory"
            if len(batch) > 1 and (data or memory):
                # One of them is at fault, or they are too much together: the others need not wait.
                half = len(batch) // 2
                self._load(connection, batch[:half], now_us)
                self._load(connection, batch[half:], now_us)
            elif data:
                self._reject(batch[0], error)
            else:
                raise
            return
        self.counters.batches += 1
        self.counters.loaded += loaded
        self.counters.malformed += refused
        for segment in batch:
            self._prepared.pop(segment.path.name, None)
            _remove(segment)
            self.backlog_segments -= 1
            self.backlog_bytes -= segment.bytes

    def _commit(self, connection: duckdb.DuckDBPyConnection, batch: list[Segment], now_us: int) -> tuple[int, int]:
        """Rows loaded, and lines whose values no column could take."""
        loaded = expected = 0
        names = [segment.path.name for segment in batch]
        with transaction(connection):
            found = connection.execute("SELECT name FROM segments WHERE list_contains(?, name)", [names]).fetchall()
            known = {row[0] for row in found}
            fresh = [segment for segment in batch if segment.path.name not in known]
            hours_us = frozenset().union(*(segment.hours_us for segment in fresh))
            marking = _Marking(connection, hours_us) if hours_us else None
            for table, statements in _LOADS.items():
                files = [str(segment.source) for segment in fresh if segment.table == table and segment.rows]
                if not files:
                    continue
                row = connection.execute(statements[0], [files]).fetchone()
                loaded += row[0] if row else 0
                for statement in statements[1:]:
                    connection.execute(statement, [files])
            if marking is not None:
                marking.mark(now_us)
            expected = sum(segment.rows for segment in fresh)
            if fresh:
                connection.execute(
                    "INSERT INTO segments SELECT unnest(?), ?, make_timestamp(?), unnest(?), unnest(?)",
                    [
                        [segment.path.name for segment in fresh],
                        self.batch + 1,
                        now_us,
                        [segment.rows for segment in fresh],
                        [segment.malformed for segment in fresh],
                    ],
                )
        if fresh:
            self.batch += 1
        return loaded, expected - loaded

    def _reject(self, segment: Segment, error: duckdb.Error) -> None:
        self.counters.rejected += segment.rows
        kept = segment.path.with_suffix(".rejected")
        _log.error("a segment cannot be loaded and is kept as %s: %s", kept, str(error).splitlines()[0])
        self._prepared.pop(segment.path.name, None)
        segment.path.rename(kept)
        if segment.source != segment.path:
            segment.source.unlink(missing_ok=True)
        for stale in sorted(self._folder.glob("*.rejected"), key=lambda path: path.stat().st_mtime)[:-KEEP_REJECTED]:
            stale.unlink(missing_ok=True)


class _Marking:
    """What the roll-ups must be told of one batch. Made before its rows go in."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, hours_us: frozenset[int]) -> None:
        self._connection = connection
        self._raw_since_us = rollups.raw_since_us(connection)
        self._hours_us = [hour for hour in hours_us if hour >= self._raw_since_us]
        self._after_id: int | None = None
        if len(self._hours_us) < len(hours_us):
            row = connection.execute("SELECT coalesce(max(id), 0) FROM requests").fetchone()
            self._after_id = row[0] if row else 0

    def mark(self, now_us: int) -> None:
        if self._hours_us:
            rollups.mark(self._connection, self._hours_us, now_us)
        if self._after_id is not None:
            rollups.add_late(self._connection, self._after_id, self._raw_since_us)


def _remove(segment: Segment) -> None:
    segment.path.unlink(missing_ok=True)
    if segment.source != segment.path:
        segment.source.unlink(missing_ok=True)


def _copy(path: Path, to: IO[bytes], size: int) -> None:
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, PIECE_BYTES))):
            to.write(piece)
            size -= len(piece)


def _all_lines(decoder: msgspec.json.Decoder[Any], piece: bytes) -> list[Any]:
    """The rows of a piece whose every line is one. Raises ValueError or MsgspecError for any other piece.

    The decoder alone is not enough: it takes two objects on one line, and one object on two.
    """
    lines = piece.count(b"}\n")
    if len(piece) > LINE_BYTES or piece[:1] != b"{" or piece.count(b"\n{") != lines - 1:
        raise ValueError("not one object per line")
    decoded = decoder.decode_lines(piece)
    if not len(decoded) == lines == piece.count(b"\n"):
        raise ValueError("not one object per line")
    return decoded


def _line_by_line(decoder: msgspec.json.Decoder[Any], piece: bytes) -> tuple[list[Any], bytes, int]:
    """The rows of a piece, their lines, and how many lines were none."""
    decoded: list[Any] = []
    kept: list[bytes] = []
    bad = 0
    for line, row in _rows(decoder, piece):
        if row is None:
            bad += 1
        else:
            decoded.append(row)
            kept.append(line + b"\n")
    return decoded, b"".join(kept), bad


def _rows(decoder: msgspec.json.Decoder[Any], piece: bytes) -> Iterator[tuple[bytes, Any]]:
    for line in piece.split(b"\n"):
        if not line.strip(b" \t\r"):
            continue
        try:
            yield line, decoder.decode(line) if len(line) <= LINE_BYTES else None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            yield line, None
