"""The questions of the dashboard API, in SQL. Each takes a cursor and plain values and gives what the API shows.

Percentiles are computed from the rows themselves, never from averages. `now_us` is an argument: rows of the future, by
a clock that was wrong once, stay out.
"""

# ruff: noqa: S608  (SQL here is made of our own columns' names; values are bound)

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import msgspec

from fleetproxy.control.analytics.schema import FAILED, TOKENS_PER_SECOND

Row = dict[str, Any]
Cursor = duckdb.DuckDBPyConnection

LIST_ROWS = 500
SUMMARY_ROWS = 100
TOP = 20
_HOUR_US = 3_600_000_000
#: Up to a week the buckets are hours, beyond it days.
_HOURLY_HOURS = 168

#: Server had the model in memory.
_RESIDENT = "route_reason LIKE 'model_loaded%'"


class Window(msgspec.Struct, frozen=True):
    """The time asked about: the last `hours` before `now_us` (microseconds since the epoch)."""

    hours: int
    now_us: int

    @property
    def since_us(self) -> int:
        return max(0, self.now_us - self.hours * _HOUR_US)

    @property
    def bounds(self) -> list[int]:
        return [self.since_us, self.now_us]

    @property
    def bucket(self) -> str:
        return "hour" if self.hours <= _HOURLY_HOURS else "day"


_IN_WINDOW = "started_at >= make_timestamp(?) AND started_at <= make_timestamp(?)"

# --- the list of requests ----------------------------------------------------------------------------------------

#: Parameters of the list -> condition with one value.
FILTERS: dict[str, str] = {
    "model": "model = ?",
    "server": "lower(backend) = lower(?)",
    "source": "source = ?",
    "user": '"user" = ?',
    "outcome": "outcome = ?",
    "status": "(status::VARCHAR = ? OR (status // 100)::VARCHAR || 'xx' = lower(?))",
    "request_id": "request_id = ?",
}

_LIST = """SELECT id, source, model, path, method, backend, status, total_ms, started_at, request_id, "user",
       server_id, route_reason, outcome, error, retries, streamed, queue_ms, ttft_ms, overhead_ms, bytes_in, bytes_out,
       tokens_in, tokens_out, family, dialect, endpoint, model_served
FROM requests WHERE {where} ORDER BY started_at DESC, id DESC LIMIT {limit}"""
_SUMMARY = """SELECT source, model, backend, count(*), avg(total_ms)
FROM requests WHERE {where} GROUP BY ALL ORDER BY count(*) DESC, source, model, backend LIMIT {limit}"""


def requests(
    cursor: Cursor,
    window: Window,
    hosts: dict[str, str],
    *,
    filters: dict[str, str] | None = None,
    before: int | None = None,
    limit: int = LIST_ROWS,
) -> Row:
    """The newest requests of the window, and who asked what how often.

    `hosts` gives the address shown for a backend, `before` the row id after which an older page begins.
    """
    where, values = [_IN_WINDOW], list[Any](window.bounds)
    for name, value in (filters or {}).items():
        where.append(FILTERS[name])
        values += [value] * FILTERS[name].count("?")
    summed = cursor.execute(_SUMMARY.format(where=" AND ".join(where), limit=SUMMARY_ROWS), values).fetchall()
    if before is not None:
        where.append("(started_at, id) < (SELECT (started_at, id) FROM requests WHERE id = ?)")
        values.append(before)
    rows = cursor.execute(_LIST.format(where=" AND ".join(where), limit=limit), values).fetchall()
    return {
        "requests": [_request(row, hosts) for row in rows],
        "summary": [
            {
                "sourceIp": source,
                "model": model,
                "targetHost": hosts.get(backend, backend),
                "count": count,
                "avgDuration": _whole(average),
            }
            for source, model, backend, count, average in summed
        ],
    }


def _request(row: tuple[Any, ...], hosts: dict[str, str]) -> Row:
    backend = row[5]
    return {
        "id": row[0],
        "sourceIp": row[1],
        "model": row[2],
        "endpoint": row[3],
        "method": row[4],
        "targetHost": hosts.get(backend, backend),
        "statusCode": row[6],
        "durationMs": _whole(row[7]),
        "createdAt": _iso(row[8]),
        # Beyond the fleet manager's fields:
        "requestId": row[9],
        "user": row[10],
        "serverName": backend,
        "serverId": row[11],
        "routingReason": row[12],
        "outcome": row[13],
        "error": row[14],
        "retries": row[15],
        "streamed": row[16],
        "queueMs": _rounded(row[17]),
        "ttftMs": _rounded(row[18]),
        "overheadMs": _rounded(row[19]),
        "bytesIn": row[20],
        "bytesOut": row[21],
        "tokensIn": row[22],
        "tokensOut": row[23],
        "family": row[24],
        "dialect": row[25],
        "route": row[26],
        "modelServed": row[27],
    }


# --- analytics ---------------------------------------------------------------------------------------------------

_TOTALS = f"""SELECT count(*), count(*) FILTER ({FAILED}), count(DISTINCT model), count(DISTINCT source),
       count(DISTINCT "user"), quantile_cont(total_ms, [0.5, 0.95, 0.99]),
       quantile_cont(ttft_ms, [0.5, 0.95, 0.99]) FILTER (streamed), quantile_cont(overhead_ms, [0.5, 0.95]),
       count(*) FILTER (queue_ms > 0), quantile_cont(queue_ms, 0.95) FILTER (queue_ms > 0), sum(queue_ms),
       count(*) FILTER (retries > 0), sum(retries), sum(tokens_in), sum(tokens_out), sum(bytes_in), sum(bytes_out),
       {TOKENS_PER_SECOND}, count(*) FILTER (route_reason IS NOT NULL), count(*) FILTER ({_RESIDENT})
FROM requests WHERE {_IN_WINDOW}"""

_OVER_TIME = f"""SELECT date_trunc('{{bucket}}', started_at) AS bucket, count(*), count(*) FILTER ({FAILED}),
       quantile_cont(total_ms, [0.5, 0.95]), quantile_cont(ttft_ms, [0.5, 0.95]) FILTER (streamed),
       quantile_cont(queue_ms, 0.95) FILTER (queue_ms > 0), sum(tokens_in), sum(tokens_out)
FROM requests WHERE {_IN_WINDOW} GROUP BY bucket ORDER BY bucket"""

_BY = f"""SELECT {{column}}, any_value(server_id), count(*), count(*) FILTER ({FAILED}),
       quantile_cont(total_ms, [0.5, 0.95]), quantile_cont(ttft_ms, [0.5, 0.95]) FILTER (streamed),
       count(*) FILTER (queue_ms > 0), quantile_cont(queue_ms, 0.95) FILTER (queue_ms > 0), sum(retries),
       sum(tokens_in), sum(tokens_out), {TOKENS_PER_SECOND},
       count(*) FILTER (route_reason IS NOT NULL), count(*) FILTER ({_RESIDENT})
FROM requests WHERE {_IN_WINDOW} AND {{column}} IS NOT NULL
GROUP BY {{column}} ORDER BY count(*) DESC, {{column}} LIMIT {TOP}"""

_ERRORS = f"""SELECT status, count(*) FROM requests WHERE {_IN_WINDOW} AND status >= 400 AND outcome <> 'client_gone'
GROUP BY status ORDER BY count(*) DESC, status"""
_REASONS = f"""SELECT route_reason, count(*) FROM requests WHERE {_IN_WINDOW} AND route_reason IS NOT NULL
GROUP BY route_reason ORDER BY count(*) DESC, route_reason"""
_OUTCOMES = (
    f"SELECT outcome, count(*) FROM requests WHERE {_IN_WINDOW} GROUP BY outcome ORDER BY count(*) DESC, outcome"
)


def analytics(cursor: Cursor, window: Window, *, fill: bool = False) -> Row:
    """Traffic of the window, as `GET /api/analytics` shows it. `fill` adds the buckets nobody asked in."""

    def fetch(sql: str) -> list[tuple[Any, ...]]:
        return cursor.execute(sql, window.bounds).fetchall()

    totals = fetch(_TOTALS)[0]
    total = totals[0]
    times = fetch(_OVER_TIME.format(bucket=window.bucket))
    buckets = _filled(times, window) if fill else times
    reasons = fetch(_REASONS)
    reasoned = sum(count for _, count in reasons)
    return {
        "summary": _summary(totals),
        "requestsOverTime": [
            {
                **_bucket(row[0]),
                "count": row[1],
                "errorCount": row[2],
                "tokensIn": row[6] or 0,
                "tokensOut": row[7] or 0,
            }
            for row in buckets
        ],
        "latencyOverTime": [
            {
                **_bucket(row[0]),
                **_pair("medianMs", "p95Ms", row[3]),
                **_pair("ttftMedianMs", "ttftP95Ms", row[4], None),
                "queueP95Ms": _rounded(row[5]),
            }
            for row in buckets
        ],
        "modelDistribution": [
            {"model": row[0], **_share(row, total)} for row in fetch(_BY.format(column="model"))
        ],
        "sourceDistribution": [
            {"source": row[0], **_share(row, total)} for row in fetch(_BY.format(column="source"))
        ],
        "serverDistribution": [
            {"serverName": row[0], "serverId": row[1], **_share(row, total)}
            for row in fetch(_BY.format(column="backend"))
        ],
        "userDistribution": [
            {"user": row[0], **_share(row, total)} for row in fetch(_BY.format(column='"user"'))
        ],
        "errorBreakdown": [{"statusCode": status, "count": count} for status, count in fetch(_ERRORS)],
        "routingReasons": [
            {"reason": reason, "count": count, "percentage": _percent(count, reasoned)} for reason, count in reasons
        ]
        or None,
        "outcomes": [
            {"outcome": outcome, "count": count, "percentage": _percent(count, total)}
            for outcome, count in fetch(_OUTCOMES)
        ],
    }  # fmt: skip


def _summary(row: tuple[Any, ...]) -> Row:
    total, errors = row[0], row[1]
    latency, first_token, overhead = row[5] or [None] * 3, row[6] or [None] * 3, row[7] or [None] * 2
    return {
        "totalRequests": total,
        "successCount": total - errors,
        "errorCount": errors,
        "successRate": _percent(total - errors, total),
        "medianLatencyMs": _whole(latency[0]) or 0,
        "p95LatencyMs": _whole(latency[1]) or 0,
        "uniqueModels": row[2],
        "uniqueSources": row[3],
        # Beyond the fleet manager's fields:
        "p99LatencyMs": _whole(latency[2]) or 0,
        "uniqueUsers": row[4],
        "ttftMedianMs": _rounded(first_token[0]),
        "ttftP95Ms": _rounded(first_token[1]),
        "ttftP99Ms": _rounded(first_token[2]),
        "overheadMedianMs": _rounded(overhead[0]),
        "overheadP95Ms": _rounded(overhead[1]),
        "queuedCount": row[8],
        "queueP95Ms": _rounded(row[9]),
        "queueTotalMs": _rounded(row[10]) or 0,
        "retriedCount": row[11],
        "retries": row[12] or 0,
        "tokensIn": row[13] or 0,
        "tokensOut": row[14] or 0,
        "bytesIn": row[15] or 0,
        "bytesOut": row[16] or 0,
        "tokensPerSecond": row[17],
        "residentPercentage": _percent(row[19], row[18]),
    }


def _share(row: tuple[Any, ...], total: int) -> Row:
    return {
        "count": row[2],
        "percentage": _percent(row[2], total),
        "errorCount": row[3],
        **_pair("medianMs", "p95Ms", row[4]),
        **_pair("ttftMedianMs", "ttftP95Ms", row[5], None),
        "queuedCount": row[6],
        "queueP95Ms": _rounded(row[7]),
        "retries": row[8] or 0,
        "tokensIn": row[9] or 0,
        "tokensOut": row[10] or 0,
        "tokensPerSecond": row[11],
        "residentPercentage": _percent(row[13], row[12]),
    }


def _filled(rows: list[tuple[Any, ...]], window: Window) -> list[tuple[Any, ...]]:
    known = {row[0]: row for row in rows}
    step = timedelta(hours=1) if window.bucket == "hour" else timedelta(days=1)
    at = _floor(window.since_us, window.bucket)
    last = _floor(window.now_us, window.bucket)
    result = []
    while at <= last:
        result.append(known.get(at, (at, 0, 0, None, None, None, 0, 0)))
        at += step
    return result


def _floor(us: int, bucket: str) -> datetime:
    at = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).replace(tzinfo=None)
    at = at.replace(minute=0, second=0, microsecond=0)
    return at if bucket == "hour" else at.replace(hour=0)


def _bucket(at: datetime) -> Row:
    """The fleet manager's text without a zone, and the instant it means."""
    return {"bucket": at.strftime("%Y-%m-%d %H:%M:%S"), "at": _iso(at)}


def _pair(first: str, second: str, quantiles: list[float] | None, absent: int | None = 0) -> Row:
    low, high = quantiles or (None, None)
    return {first: absent if low is None else _whole(low), second: absent if high is None else _whole(high)}


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value + 0.5)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds") + "Z"
