"""The spool: audit rows on their way to the store, as files.

Each process appends one JSON object per line to its own open segment; a line written is safe from a SIGKILL of the
process. Segments are closed (renamed) each second and on demand; control loads a closed segment and its name in one
transaction, then unlinks it: exactly once, also across crashes of either side.

    <spool>/<table>.<boot>.<process>.<sequence>.new       just made, empty, not yet locked
    <spool>/<table>.<boot>.<process>.<sequence>.open      being written; its writer holds a flock
    <spool>/<table>.<boot>.<process>.<sequence>.ndjson    closed, whole lines only

A writer that died leaves an `.open` file without a lock; control adopts it, cutting a torn last line. When the disk is
full the line is dropped and counted; requests go on. Where control takes nothing for so long that a writer's closed
segments outgrow its limit, the oldest of them go, and are counted.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

#: Bytes of closed segments one writer leaves lying around.
LIMIT_BYTES = 1024 * 1024 * 1024


class Spool:
    """The writing end, owned by one process, for one table.

    `boot` must be new at each start of the process: a segment's name is never used twice, for control remembers loaded
    ones by name.
    """

    def __init__(self, folder: Path, table: str, boot: str, process: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stem = folder / f"{table}.{boot}.{process}"
        self._sequence = 0
        self._file = -1
        self._path: Path | None = None
        self._lines = self._bytes = 0
        #: Closed segments that control has perhaps not taken yet, oldest first: path, lines, bytes.
        self._closed: deque[tuple[Path, int, int]] = deque()
        self._closed_bytes = 0
        self._limit_bytes = limit_bytes
        #: Lines written; lines lost to a full or failing disk, or to a control that does not come, since start.
        self.written = 0
        self.dropped = 0

    def put(self, line: bytes | bytearray) -> bool:
        """Append one encoded row (with its newline). False when it could not be written; never raises."""
        try:
            if self._file < 0:
                self._open()
            done = os.write(self._file, line)
            if done != len(line):  # disk filled up inside the line: cut it off again, whole or not at all
                os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_END) - done)
                raise OSError
        except OSError:
            self.dropped += 1
            return False
        self.written += 1
        self._lines += 1
        self._bytes += done
        return True

    def rotate(self) -> None:
        """Close the open segment, if it has lines, so that control can take it."""
        if self._file < 0 or self._path is None:
            return
        file, path = self._file, self._path
        self._file, self._path = -1, None
        closed = path.with_suffix(".ndjson")
        try:
            path.rename(closed)
        except OSError:
            pass  # the lock goes with the file: control adopts it as an orphan
        os.close(file)
        self._closed.append((closed, self._lines, self._bytes))
        self._closed_bytes += self._bytes
        self._lines = self._bytes = 0
        self._keep_to_limit()

    def _keep_to_limit(self) -> None:
        """Forget the segments that control has taken; remove the oldest of what is too much."""
        while self._closed:
            path, lines, size = self._closed[0]
            taken = not path.exists()
            if not taken and self._closed_bytes <= self._limit_bytes:
                return
            if not taken:
                try:
                    path.unlink()
                    self.dropped += lines
                except FileNotFoundError:
                    pass  # control was quicker
                except OSError:
                    return
            self._closed.popleft()
            self._closed_bytes -= size

    def _open(self) -> None:
        self._sequence += 1
        path = self._stem.with_name(f"{self._stem.name}.{self._sequence:08d}.open")
        fresh = path.with_suffix(".new")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # Locked before it is called `.open`: control never finds an open segment of a living writer without a lock.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(path)
        except OSError:
            os.close(file)
            raise
        self._file, self._path = file, path


def closed_segments(folder: Path, table: str) -> list[Path]:
    """Segments of a table ready to load, oldest first by name within each writer."""
    return sorted(folder.glob(f"{table}.*.ndjson"))


def adopt_orphans(folder: Path) -> Iterator[tuple[Path, int]]:
    """Close the open segments whose writers are gone; yields each with the bytes cut from a torn last line."""
    for path in sorted(folder.glob("*.open")):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its writer lives
            cut = _cut_torn_line(file)
            closed = path.with_suffix(".ndjson")
            try:
                path.rename(closed)
            except FileNotFoundError:
                continue  # its writer closed it between our look and our lock
        finally:
            os.close(file)
        yield closed, cut


def _cut_torn_line(file: int) -> int:
    """Truncate after the last newline; the number of bytes cut."""
    size = os.fstat(file).st_size
    end = size
    while end:
        start = max(0, end - 65536)
        piece = os.pread(file, end - start, start)
        newline = piece.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    return size - end
