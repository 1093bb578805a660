"""What a table, a column and a view of the store are. Which ones there are: `schema.py`, `views.py`."""

from __future__ import annotations

import msgspec

LAST_US = 253_402_300_799_999_999  # year 9999: what JSON and Python can still write


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str
    doc: str
    #: Key in the spool's JSON lines; None: the column's name (with `_us` for times); "": made by the store.
    source: str | None = None
    #: Longer text is cut to this many characters; 0: never.
    cut: int = 0

    @property
    def key(self) -> str:
        if self.source is not None:
            return self.source
        return f"{self.name}_us" if self.type == "TIMESTAMP" else self.name

    @property
    def json_type(self) -> str:
        return "BIGINT" if self.type == "TIMESTAMP" else self.type

    @property
    def expression(self) -> str:
        """The column's value, given its JSON key as a column."""
        if self.type == "TIMESTAMP":
            return f"CASE WHEN {self.present} THEN make_timestamp({self.key}) END"
        return f"left({self.key}, {self.cut})" if self.cut else self.key

    @property
    def present(self) -> str:
        """Whether a line has a usable value for it."""
        return f"{self.key} BETWEEN 0 AND {LAST_US}" if self.type == "TIMESTAMP" else f"{self.key} IS NOT NULL"


class Table(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    doc: str
    columns: tuple[Column, ...]
    #: The column retention goes by; also the order rows arrive in.
    time: str
    #: Columns without which a line is no row.
    required: tuple[str, ...] = ()
    #: JSON key of this list inside lines of `parent`; None: the table has spool segments of its own.
    nested: str | None = None
    parent: str | None = None
    #: Counts rows for the `id` column.
    sequence: str | None = None


class View(msgspec.Struct, frozen=True):
    name: str
    doc: str
    sql: str
