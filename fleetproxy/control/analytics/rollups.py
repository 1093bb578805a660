"""Hours of `requests` added up in `requests_hourly`: exactly once, whatever comes late and whoever dies when.

Loading rows marks their hours, in the same transaction (`mark`). An hour that is over is added up anew from its rows,
all of it, and its marks go, in one transaction of a thread of its own (`Rollups.step`): a mark that comes meanwhile
stays, and the hour is done again. So an hour either has marks, and its rows are asked, or it is whole.

Forgetting rows moves `raw_since_us` first: hours before it are never added up again. Rows of them that come even later
are added to what is there while they are loaded.
"""

# ruff: noqa: S608  (SQL here is made of our own tables' names)

from __future__ import annotations

from collections.abc import Collection, Iterator

import duckdb

from fleetproxy.control.analytics.database import set_meta, transaction
from fleetproxy.control.analytics.measures import COUNTS, DIMENSIONS, HISTOGRAMS, OPEN

HOUR_US = 3_600_000_000
#: Raised with the meaning of `requests_hourly`: everything is added up anew then.
ROLLUP_VERSION = 2
#: An hour is added up this long after its end, and after the last row that came late...
SETTLE_US = 120_000_000
#: ...but the trickle of late ones is waited for no longer than this.
PATIENCE_US = 10 * SETTLE_US
#: Names told apart in one hour, for each dimension.
NAMES = 1000

_COLUMNS = ", ".join(("hour", "dimension", "value", "folded", "server_id", *COUNTS, *HISTOGRAMS))
_DUE = """SELECT epoch_us(hour) FROM rollup_pending WHERE hour <= make_timestamp(?) GROUP BY hour
HAVING hour < make_timestamp(?) OR max(marked_at) <= make_timestamp(?) OR min(marked_at) <= make_timestamp(?)
ORDER BY (hour < make_timestamp(?)) DESC, hour DESC LIMIT 2"""


class Rollups:
    """Adds up hours. Blocks; runs in a thread of its own, beside loading."""

    def __init__(self) -> None:
        #: Hours added up since start, hours done again among them.
        self.rolled = 0
        #: Hours before this are not waited for: their rows are about to be forgotten.
        self.hurry_before_us = 0

    def step(self, cursor: duckdb.DuckDBPyConnection, now_us: int) -> bool:
        """Add up one hour, if one is due. True when there are more. Raises duckdb.Error; then nothing was done."""
        settled, hurry = now_us - SETTLE_US, self.hurry_before_us
        due = cursor.execute(_DUE, [settled - HOUR_US, hurry, settled, now_us - PATIENCE_US, hurry]).fetchall()
        if not due:
            return False
        roll(cursor, due[0][0])
        self.rolled += 1
        return len(due) > 1


def roll(cursor: duckdb.DuckDBPyConnection, hour_us: int) -> None:
    """Add up one hour anew."""
    with transaction(cursor):
        cursor.execute("DELETE FROM requests_hourly WHERE hour = make_timestamp(?)", [hour_us])
        for statement in _sums("started_at >= make_timestamp($since) AND started_at < make_timestamp($until)"):
            cursor.execute(statement, {"since": hour_us, "until": hour_us + HOUR_US})
        cursor.execute("DELETE FROM rollup_pending WHERE hour = make_timestamp(?)", [hour_us])


def mark(connection: duckdb.DuckDBPyConnection, hours_us: Collection[int], now_us: int) -> None:
    """Within the transaction that loads rows: their hours are to be added up."""
    connection.execute(
        "INSERT INTO rollup_pending SELECT make_timestamp(unnest(?)), make_timestamp(?)", [list(hours_us), now_us]
    )


def add_late(connection: duckdb.DuckDBPyConnection, after_id: int, raw_since: int) -> None:
    """Within the transaction that loads rows: add those whose hour will never be added up from its rows."""
    for statement in _sums("id > $after_id AND started_at < make_timestamp($until)", fold=False):
        connection.execute(statement, {"after_id": after_id, "until": raw_since})


def raw_since_us(connection: duckdb.DuckDBPyConnection) -> int:
    """From this hour on every row is there; what was before is only in the roll-ups."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'raw_since_us'").fetchone()
    return int(row[0]) if row else 0


def forget_before(connection: duckdb.DuckDBPyConnection, hour_us: int) -> None:
    """Rows before that hour are going to be deleted: from now on its roll-ups are all there is."""
    with transaction(connection):
        connection.execute("DELETE FROM rollup_pending WHERE hour < make_timestamp(?)", [hour_us])
        set_meta(connection, "raw_since_us", str(hour_us))


def oldest_pending_us(connection: duckdb.DuckDBPyConnection) -> int | None:
    row = connection.execute("SELECT epoch_us(min(hour)) FROM rollup_pending").fetchone()
    return row[0] if row else None


def bring_up_to_date(connection: duckdb.DuckDBPyConnection, now_us: int) -> None:
    """Where the roll-ups are of another version, or there are none yet, have them made anew."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'rollup_version'").fetchone()
    if row is None or row[0] != str(ROLLUP_VERSION):
        rebuild(connection, now_us)


def rebuild(connection: duckdb.DuckDBPyConnection, now_us: int) -> None:
    """Have every hour added up anew whose rows are there; until then they are asked."""
    with transaction(connection):
        since = raw_since_us(connection)
        connection.execute("DELETE FROM requests_hourly WHERE hour >= make_timestamp(?)", [since])
        connection.execute(
            "INSERT INTO rollup_pending SELECT DISTINCT date_trunc('hour', started_at), make_timestamp(?) "
            "FROM requests WHERE started_at >= make_timestamp(?)",
            [now_us - PATIENCE_US, since],
        )
        set_meta(connection, "rollup_version", str(ROLLUP_VERSION))


def _sums(where: str, *, fold: bool = True) -> Iterator[str]:
    """One INSERT for each dimension."""
    counts = ", ".join(count.sql for count in COUNTS.values())
    histograms = ", ".join(f"histogram({one.bucket}) FILTER ({one.where})" for one in HISTOGRAMS.values())
    for dimension, name in DIMENSIONS.items():
        server = "any_value(server_id)" if dimension == "server" else "NULL"
        told, folded = "true", "0"
        if fold and dimension in OPEN:
            told = (
                f"{name} IS NULL OR {name} IN (SELECT {name} FROM requests WHERE {where} AND {name} IS NOT NULL "
                f"GROUP BY {name} ORDER BY count(*) DESC, {name} LIMIT {NAMES})"
            )
            folded = "count(DISTINCT named) FILTER (NOT told)"
        yield (
            f"INSERT INTO requests_hourly ({_COLUMNS}) SELECT date_trunc('hour', started_at) AS hour, "
            f"'{dimension}', CASE WHEN told THEN named END AS value, "
            f"{folded}, {server}, {counts}, {histograms} "
            f"FROM (SELECT *, {name} AS named, {told} AS told FROM requests WHERE {where}) GROUP BY hour, value, told"
        )
