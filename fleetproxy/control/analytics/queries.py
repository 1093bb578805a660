"""The questions of the dashboard API, in SQL. Each takes a cursor and plain values and gives what the API shows.

Percentiles are told from the rows themselves or from counts by size (`plan.py`), never from averages. `now_us` is an
argument: rows of the future, by a clock that was wrong once, stay out.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import msgspec

from fleetproxy.control.analytics.facts import Asked, Facts, Key, distinct, measure, measure_over_time, ranked
from fleetproxy.control.analytics.measures import COUNTS, HISTOGRAMS
from fleetproxy.control.analytics.plan import plan_of
from fleetproxy.core.histogram import ERROR

Row = dict[str, Any]
Cursor = duckdb.DuckDBPyConnection

LIST_ROWS = 500
SUMMARY_ROWS = 100
TOP = 20
_HOUR_US = 3_600_000_000
#: Up to a week the buckets are hours, beyond it days.
_HOURLY_HOURS = 168


class Window(msgspec.Struct, frozen=True):
    """The time asked about: the last `hours` before `now_us` (microseconds since the epoch), or from `from_us` on."""

    hours: int
    now_us: int
    from_us: int | None = None

    @property
    def since_us(self) -> int:
        return max(0, self.now_us - self.hours * _HOUR_US) if self.from_us is None else self.from_us

    @classmethod
    def between(cls, since: datetime, until: datetime) -> Window:
        """From one aware moment to another."""
        return cls(0, round(until.timestamp() * 1_000_000), round(since.timestamp() * 1_000_000))

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
#: What the list may be sorted by -> column; with a minus before it, the largest first. The newest first is usual.
SORTS: dict[str, str] = {
    "started": "started_at", "duration": "total_ms", "queue": "queue_ms", "ttft": "ttft_ms", "overhead": "overhead_ms",
    "tokens_in": "tokens_in", "tokens_out": "tokens_out", "bytes_in": "bytes_in", "bytes_out": "bytes_out",
    "retries": "retries", "status": "status",
}  # fmt: skip
NEWEST = "-started"

_LIST = """SELECT id, source, model, path, method, backend, status, total_ms, started_at, request_id, "user",
       server_id, route_reason, outcome, error, retries, streamed, queue_ms, ttft_ms, overhead_ms, bytes_in, bytes_out,
       tokens_in, tokens_out, family, dialect, endpoint, model_served
FROM requests WHERE {where} ORDER BY {order} LIMIT {limit}"""
_BEYOND = "({key}, id) {beyond} (SELECT ({key}, id) FROM requests WHERE id = ?)"
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
    sort: str = NEWEST,
) -> Row:
    """The newest requests of the window, and who asked what how often.

    `hosts` gives the address shown for a backend, `before` the row id after which the next page begins.
    """
    where, values = narrowed(window, filters or {})
    key, direction = ordered(sort)
    summed = cursor.execute(_SUMMARY.format(where=" AND ".join(where), limit=SUMMARY_ROWS), values).fetchall()
    if before is not None:
        beyond = "<" if direction == "DESC" else ">"
        where.append(_BEYOND.format(key=key, beyond=beyond))
        values.append(before)
    order = f"{key} {direction}, id {direction}"
    rows = cursor.execute(_LIST.format(where=" AND ".join(where), order=order, limit=limit), values).fetchall()
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


def narrowed(window: Window, filters: dict[str, str]) -> tuple[list[str], list[Any]]:
    """Conditions on `requests`, and their values."""
    where, values = [_IN_WINDOW], list[Any](window.bounds)
    for name, value in filters.items():
        where.append(FILTERS[name])
        values += [value] * FILTERS[name].count("?")
    return where, values


def ordered(sort: str) -> tuple[str, str]:
    """(expression, direction) of a word of `SORTS`. What has no value comes last, either way."""
    column, down = SORTS[sort.removeprefix("-")], sort.startswith("-")
    if column == "started_at":
        return column, "DESC" if down else "ASC"
    return (f"coalesce({column}, -1)", "DESC") if down else (f"coalesce({column}, 9e15)", "ASC")


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

_LATENCIES: dict[str, tuple[float, ...]] = {
    "total_ms": (0.5, 0.95), "ttft_ms": (0.5, 0.95), "itl_ms": (0.5, 0.95), "queue_ms": (0.95,),
}  # fmt: skip
_SUMMED: dict[str, tuple[float, ...]] = {
    "total_ms": (0.5, 0.95, 0.99), "ttft_ms": (0.5, 0.95, 0.99), "itl_ms": (0.5, 0.95, 0.99), "queue_ms": (0.95,),
    "overhead_ms": (0.5, 0.95),
}  # fmt: skip
_SHARED = ("requests", "errors", "queued", "retries", "tokens_in", "tokens_out", "generated_tokens",
           "generation_sum_ms", "routed", "resident", "forced")  # fmt: skip


def analytics(cursor: Cursor, window: Window, *, fill: bool = False) -> Row:
    """Traffic of the window, as `GET /api/analytics` shows it. `fill` adds the buckets nobody asked in."""
    plan = plan_of(cursor, window.since_us, window.now_us + 1)

    def of(dimension: str) -> Asked:
        return Asked(plan=plan, dimension=dimension)

    def shares(dimension: str, label: str) -> list[Row]:
        """The values with most requests, and what became of these."""
        top = ranked(cursor, of(dimension), TOP)
        found = measure(cursor, of(dimension), _SHARED, _LATENCIES, top=[value for value, _ in top])
        server = {"serverId"} if dimension == "server" else set()
        return [
            {label: value, **dict.fromkeys(server, server_id), **_share(found[0, value, False], total)}
            for value, server_id in top
        ]

    def numbers(dimension: str, name: str = "requests") -> list[tuple[str, int]]:
        """Values and their number of requests, most first."""
        found = measure(cursor, of(dimension), (name,), {})
        pairs = [(value, facts[name]) for (_, value, other), facts in found.items() if value is not None and not other]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    step_us = _HOUR_US if window.bucket == "hour" else 24 * _HOUR_US
    by_bucket, all_time = measure_over_time(cursor, of("all"), tuple(COUNTS), _SUMMED, bucket_us=step_us)
    whole = all_time.get((0, None, False)) or _NOTHING
    total = whole["requests"]
    times = {at: facts for (at, _, _), facts in by_bucket.items()}
    wanted = range(window.since_us // step_us, window.now_us // step_us + 1) if fill else sorted(times)
    buckets = [(_moment(at * step_us), times.get(at, _NOTHING)) for at in wanted]
    reasons = numbers("reason")
    reasoned = sum(count for _, count in reasons)
    return {
        "summary": _summary(whole, *(distinct(cursor, of(name)) for name in ("model", "source", "user"))),
        "requestsOverTime": [
            {
                **_bucket(at),
                "count": facts["requests"],
                "errorCount": facts["errors"],
                "tokensIn": facts["tokens_in"] or 0,
                "tokensOut": facts["tokens_out"] or 0,
                "retries": facts["retries"] or 0,
                **_loads(facts),
            }
            for at, facts in buckets
        ],
        "latencyOverTime": [
            {
                **_bucket(at),
                **_pair("medianMs", "p95Ms", facts["total_ms"]),
                **_pair("ttftMedianMs", "ttftP95Ms", facts["ttft_ms"], None),
                **_between_tokens(facts),
                "queueP95Ms": _first(facts["queue_ms"]),
            }
            for at, facts in buckets
        ],
        "modelDistribution": shares("model", "model"),
        "sourceDistribution": shares("source", "source"),
        "serverDistribution": shares("server", "serverName"),
        "userDistribution": shares("user", "user"),
        "errorBreakdown": _errors(measure(cursor, of("status"), ("requests", "client_gone"), {})),
        "routingReasons": [
            {"reason": reason, "count": count, "percentage": _percent(count, reasoned)} for reason, count in reasons
        ]
        or None,
        "outcomes": [
            {"outcome": outcome, "count": count, "percentage": _percent(count, total)}
            for outcome, count in numbers("outcome")
        ],
        # Beyond the fleet manager's fields: how far off percentiles may be (0.09: 9 %); 0 when told from every row.
        "percentileError": 0 if plan.exact else round(ERROR, 3),
    }


_NOTHING: Facts = {
    **dict.fromkeys(COUNTS, 0),
    **dict.fromkeys(HISTOGRAMS),
}


def _errors(found: dict[Key, Facts]) -> list[Row]:
    """Answers that were errors, without those whose caller had left."""
    pairs = [
        (int(status), facts["requests"] - facts["client_gone"]) for (_, status, _), facts in found.items() if status
    ]
    ordered = sorted((pair for pair in pairs if pair[0] >= 400 and pair[1]), key=lambda pair: (-pair[1], pair[0]))
    return [{"statusCode": status, "count": count} for status, count in ordered]


def _summary(facts: Facts, models: int, sources: int, users: int) -> Row:
    total, errors = facts["requests"], facts["errors"]
    latency, first_token = facts["total_ms"] or [None] * 3, facts["ttft_ms"] or [None] * 3
    between, overhead = facts["itl_ms"] or [None] * 3, facts["overhead_ms"] or [None] * 2
    return {
        "totalRequests": total,
        "successCount": total - errors,
        "errorCount": errors,
        "successRate": _percent(total - errors, total),
        "medianLatencyMs": _whole(latency[0]) or 0,
        "p95LatencyMs": _whole(latency[1]) or 0,
        "uniqueModels": models,
        "uniqueSources": sources,
        # Beyond the fleet manager's fields:
        "p99LatencyMs": _whole(latency[2]) or 0,
        "uniqueUsers": users,
        "ttftMedianMs": _rounded(first_token[0]),
        "ttftP95Ms": _rounded(first_token[1]),
        "ttftP99Ms": _rounded(first_token[2]),
        **_between_tokens(facts),
        "itlP99Ms": _rounded(between[2]),
        "overheadMedianMs": _rounded(overhead[0]),
        "overheadP95Ms": _rounded(overhead[1]),
        "queuedCount": facts["queued"],
        "queueP95Ms": _first(facts["queue_ms"]),
        "queueTotalMs": _rounded(facts["queue_sum_ms"]) or 0,
        "retriedCount": facts["retried"],
        "retries": facts["retries"] or 0,
        "tokensIn": facts["tokens_in"] or 0,
        "tokensOut": facts["tokens_out"] or 0,
        "bytesIn": facts["bytes_in"] or 0,
        "bytesOut": facts["bytes_out"] or 0,
        "tokensPerSecond": _speed(facts),
        **_loads(facts),
    }


def _share(facts: Facts, total: int) -> Row:
    return {
        "count": facts["requests"],
        "percentage": _percent(facts["requests"], total),
        "errorCount": facts["errors"],
        **_pair("medianMs", "p95Ms", facts["total_ms"]),
        **_pair("ttftMedianMs", "ttftP95Ms", facts["ttft_ms"], None),
        **_between_tokens(facts),
        "queuedCount": facts["queued"],
        "queueP95Ms": _first(facts["queue_ms"]),
        "retries": facts["retries"] or 0,
        "tokensIn": facts["tokens_in"] or 0,
        "tokensOut": facts["tokens_out"] or 0,
        "tokensPerSecond": _speed(facts),
        **_loads(facts),
    }


def _loads(facts: Facts) -> Row:
    """How good the choice of servers was: loads of models that it avoided, and that it could not avoid."""
    return {
        "residentPercentage": _percent(facts["resident"], facts["routed"]),
        "loadsAvoided": facts["resident"],
        # Not in hours that were added up before it was counted.
        "loadsForced": facts["forced"] or 0,
    }


def _between_tokens(facts: Facts) -> Row:
    median, p95, *_ = facts["itl_ms"] or (None, None)
    return {"itlMedianMs": _rounded(median), "itlP95Ms": _rounded(p95)}


def _speed(facts: Facts) -> float | None:
    """Tokens per second while answers were written."""
    spent_ms = facts["generation_sum_ms"]
    return round(1000 * facts["generated_tokens"] / spent_ms, 2) if spent_ms else None


def _first(quantiles: list[float] | None) -> float | None:
    return _rounded(quantiles[0]) if quantiles else None


def _moment(us: int) -> datetime:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).replace(tzinfo=None)


def _bucket(at: datetime) -> Row:
    """The fleet manager's text without a zone, and the instant it means."""
    return {"bucket": at.strftime("%Y-%m-%d %H:%M:%S"), "at": _iso(at)}


def _pair(first: str, second: str, quantiles: list[float] | None, absent: int | None = 0) -> Row:
    low, high, *_ = quantiles or (None, None)
    return {first: absent if low is None else _whole(low), second: absent if high is None else _whole(high)}


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value + 0.5)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds") + "Z"
