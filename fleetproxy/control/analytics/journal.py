"""Control's own pen: rows of the poller, the calendar and the exporter, on their way to the store."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fleetproxy.control.analytics.rows import TABLES, Row
from fleetproxy.link.spool import Spool


class Journal:
    """Puts rows into the spool segment of their table. Lives on control's loop; one `write` per row.

    A row that cannot be written (disk full) is dropped and counted, as with audit rows.
    """

    def __init__(self, folder: Path, boot: str, process: str = "control") -> None:
        self._spools = {table: Spool(folder, table, boot, process) for table in TABLES.values()}
        self._encoder = msgspec.json.Encoder()

    def put(self, *rows: Row) -> None:
        for row in rows:
            self._spools[TABLES[type(row)]].put(self._encoder.encode(row) + b"\n")

    def rotate(self) -> None:
        """Close the open segments, so that they can be loaded."""
        for spool in self._spools.values():
            spool.rotate()

    @property
    def written(self) -> int:
        return sum(spool.written for spool in self._spools.values())

    @property
    def dropped(self) -> int:
        return sum(spool.dropped for spool in self._spools.values())
