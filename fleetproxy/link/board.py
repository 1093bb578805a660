"""The load board: requests in flight, in a file every process maps.

A matrix of 32-bit counters. Row 0 belongs to the hub and holds how many exchanges wait for each column; rows 1..N
belong to the proxy processes. A cell has exactly one writer, so no lock is taken and no message sent: a reader sums a
column.

    header  16 bytes: magic "fpB1", rows, columns, 0 (little-endian u32)
    cells   rows x columns x int32

Columns are given out by control (`Backend.column`), those of dial-in workers by the hub.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COLUMNS = 4096
#: Of these the hub gives to dial-in workers; control gives the others to configured servers.
WORKER_COLUMNS = range(2048, COLUMNS)
_HEADER = struct.Struct("<4sIII")
_MAGIC = b"fpB1"


def create(path: Path, processes: int) -> None:
    """Write an all-zero board for `processes` proxy processes, replacing any old one whole."""
    temporary = path.with_suffix(".new")
    rows = processes + 1
    with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(_HEADER.pack(_MAGIC, rows, COLUMNS, 0))
        # Written, not only sized: a page of a file with holes that a full disk has no room for kills who touches it.
        file.write(bytes(rows * COLUMNS * 4))
    temporary.replace(path)


class Board:
    """A mapped board, seen from one row.

    `row` is the row this process writes: 0 for the hub, 1 + index for a proxy process, None for readers.
    """

    def __init__(self, path: Path, row: int | None = None) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        magic, rows, columns, _ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or columns != COLUMNS:
            raise ValueError(f"{path} is not a load board of this version")
        self.rows = rows
        self.cells = memoryview(self._map)[_HEADER.size :].cast("i")
        self.row = row
        #: Offset of this process's row; adding a column gives its cell.
        self.base = (row or 0) * COLUMNS
        self._proxy_bases = tuple(r * COLUMNS for r in range(1, rows))

    def load(self, column: int) -> int:
        """Requests in flight on a column, over all proxy processes."""
        cells = self.cells
        total = 0
        for base in self._proxy_bases:
            total += cells[base + column]
        return total

    def waiting(self, column: int) -> int:
        """Exchanges that stand in line for a column (the hub's row)."""
        return self.cells[column]

    def add(self, column: int, by: int) -> None:
        """Change this process's own cell."""
        self.cells[self.base + column] += by

    @contextmanager
    def hold(self, column: int) -> Iterator[None]:
        """One request in flight on a column, for the length of the block."""
        cell = self.base + column
        self.cells[cell] += 1
        try:
            yield
        finally:
            self.cells[cell] -= 1

    def clear_row(self, row: int) -> None:
        """Zero the row of a process that died; the supervisor's right alone."""
        start = row * COLUMNS
        self.cells[start : start + COLUMNS] = memoryview(bytes(COLUMNS * 4)).cast("i")

    def close(self) -> None:
        self.cells.release()
        self._map.close()
