"""Where the answer about a stretch of time comes from: the rows themselves, or hours that have been added up.

Few rows are asked themselves: their percentiles are exact. Of many, whole hours come from `requests_hourly`; what is
left at both ends, and hours that are not added up yet, come from the rows. Both count times by size then
(`core.histogram`), and each request is in the answer once.
"""

from __future__ import annotations

from typing import Any

import duckdb
import msgspec

from fleetproxy.control.analytics.rollups import HOUR_US, raw_since_us

#: Up to this many requests are asked themselves: a tenth of a second.
RAW_ROWS = 100_000

Span = tuple[int, int]

_COUNT = """SELECT coalesce(sum(requests), 0)::BIGINT FROM requests_hourly WHERE dimension = 'all'
AND hour >= make_timestamp(?) AND hour < make_timestamp(?) AND NOT list_contains(?, epoch_us(hour))"""
_COUNT_ROWS = "SELECT count(*) FROM requests WHERE started_at >= make_timestamp(?) AND started_at < make_timestamp(?)"
_PENDING = """SELECT DISTINCT epoch_us(hour) FROM rollup_pending
WHERE hour >= make_timestamp(?) AND hour < make_timestamp(?) ORDER BY 1"""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All times in microseconds since the epoch; spans have their first moment in them, not their last."""

    since_us: int
    until_us: int
    #: Hours taken from the roll-ups, but for those pending; None: rows only.
    rolled: Span | None = None
    pending_us: tuple[int, ...] = ()
    #: Stretches taken from the rows.
    raw: tuple[Span, ...] = ()
    #: Percentiles are told from the rows, one by one; else from counts by size.
    exact: bool = True
    #: Requests in it, before anything narrows them.
    requests: int = 0


def plan_of(cursor: duckdb.DuckDBPyConnection, since_us: int, until_us: int, *, rows_only: bool = False) -> Plan:
    """The plan for [since, until). `rows_only`: the roll-ups do not tell apart what is asked."""
    kept_us = raw_since_us(cursor)
    first, last = -(-since_us // HOUR_US) * HOUR_US, until_us // HOUR_US * HOUR_US
    if first >= last:
        first = last = until_us
    pending = tuple(row[0] for row in cursor.execute(_PENDING, [first, last]).fetchall())
    spans = [(since_us, first), *((hour, hour + HOUR_US) for hour in pending), (last, until_us)]
    # Rows of forgotten hours may still be there for a while: they are in the roll-ups.
    spans = [(max(start, kept_us), end) for start, end in spans]
    raw = tuple(_joined([span for span in spans if span[0] < span[1]]))
    requests = _number(cursor, _COUNT, [first, last, list(pending)])
    requests += sum(_number(cursor, _COUNT_ROWS, list(span)) for span in raw)
    few = requests <= RAW_ROWS
    if rows_only or first == last or (few and since_us >= kept_us):
        return Plan(since_us=since_us, until_us=until_us, raw=((since_us, until_us),), exact=few, requests=requests)
    return Plan(
        since_us=since_us,
        until_us=until_us,
        rolled=(first, last),
        pending_us=pending,
        raw=raw,
        exact=False,
        requests=requests,
    )


def _number(cursor: duckdb.DuckDBPyConnection, sql: str, values: list[Any]) -> int:
    row = cursor.execute(sql, values).fetchone()
    return int(row[0]) if row else 0


def _joined(spans: list[Span]) -> list[Span]:
    result: list[Span] = []
    for start, end in spans:
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result
