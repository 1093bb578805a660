"""Numbers and percentiles of requests over time, told apart by one property: what charts are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import msgspec

from fleetproxy.control.analytics.answers import Answer
from fleetproxy.control.analytics.facts import Asked, Facts, Key, distinct, measure_over_time, ranked
from fleetproxy.control.analytics.plan import Plan, plan_of
from fleetproxy.control.analytics.rollups import HOUR_US, raw_since_us
from fleetproxy.core.histogram import ERROR
from fleetproxy.errors import BadRequest

#: Lengths of a bucket, seconds, by the word that asks for them.
BUCKETS: dict[str, int] = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "1d": 86_400}
GROUPS = ("none", "model", "server", "source", "user", "status", "dialect", "outcome", "reason")
#: Name in the API -> number in `measures.COUNTS`, or time in `measures.HISTOGRAMS` and the share below it.
METRICS: dict[str, tuple[str, float | None]] = {
    "requests": ("requests", None),
    "errors": ("errors", None),
    "retries": ("retries", None),
    "tokensIn": ("tokens_in", None),
    "tokensOut": ("tokens_out", None),
    "ttftP50Ms": ("ttft_ms", 0.5),
    "ttftP95Ms": ("ttft_ms", 0.95),
    "ttftP99Ms": ("ttft_ms", 0.99),
    "itlP50Ms": ("itl_ms", 0.5),
    "itlP95Ms": ("itl_ms", 0.95),
    "itlP99Ms": ("itl_ms", 0.99),
    "queueP50Ms": ("queue_ms", 0.5),
    "queueP95Ms": ("queue_ms", 0.95),
    "durationP50Ms": ("total_ms", 0.5),
    "durationP95Ms": ("total_ms", 0.95),
    "durationP99Ms": ("total_ms", 0.99),
}
#: Words for several at once.
FAMILIES: dict[str, tuple[str, ...]] = {
    "all": tuple(METRICS),
    **{
        word: tuple(name for name in METRICS if name.startswith(word))
        for word in ("tokens", "ttft", "itl", "queue", "duration")
    },
}
DEFAULT_METRICS = ("requests", "errors")
#: Parameters that narrow -> condition with `$value`. Those that are dimensions too are in the roll-ups.
FILTERS: dict[str, str] = {
    "model": "model = $model",
    "server": "backend = $server",
    "source": "source = $source",
    "user": '"user" = $user',
    "status": "(status::VARCHAR = $status OR (status // 100)::VARCHAR || 'xx' = lower($status))",
    "dialect": "dialect = $dialect",
    "outcome": "outcome = $outcome",
}
MAX_POINTS = 1500
#: Numbers in one answer.
MAX_CELLS = 300_000
MAX_TOP = 50
DEFAULT_TOP = 8
#: `auto` wants no more buckets than this.
_AUTO_POINTS = 200
#: Beyond this many requests, short buckets take too long to be chosen by `auto`.
_AUTO_ROWS = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).replace(tzinfo=None)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Times in microseconds since the epoch, `until_us` left out."""

    since_us: int
    until_us: int
    #: Seconds; None: whatever suits.
    bucket_s: int | None = None
    group_by: str = "none"
    metrics: tuple[str, ...] = DEFAULT_METRICS
    top: int = DEFAULT_TOP
    filters: dict[str, str] = {}


class Line(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One series."""

    #: The model, server, ...; null: the requests that have none, or all together.
    key: str | None
    #: It stands for everything beyond the first few.
    other: bool
    server_id: int | None
    #: Each metric over the whole time.
    total: dict[str, float | None]
    #: Metric -> one number for each of `times`; null: nothing to tell.
    values: dict[str, list[float | None]]


class Series(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `GET /api/analytics/series`."""

    from_: str = msgspec.field(name="from")
    to: str
    bucket_seconds: int
    group_by: str
    metrics: tuple[str, ...]
    #: Percentiles are told from the rows one by one; else from counts by size, and may be off by `percentileError`.
    exact: bool
    percentile_error: float
    #: Different values there are.
    groups: int
    #: Start of each bucket.
    times: list[str]
    series: list[Line]


def metrics_of(text: str) -> tuple[str, ...]:
    """The metrics a comma-separated list names, each once. Raises BadRequest."""
    found: dict[str, None] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        names = FAMILIES.get(word) or ((word,) if word in METRICS else ())
        if not names:
            raise BadRequest(f"Unknown metric {word[:40]!r}: known are {', '.join((*METRICS, *FAMILIES))}")
        found |= dict.fromkeys(names)
    return tuple(found) or DEFAULT_METRICS


def ask(cursor: duckdb.DuckDBPyConnection, question: Question) -> Series:
    """The series. Raises BadRequest when they would be too many numbers."""
    asked, group = _asked(cursor, question)
    bucket_us = 1_000_000 * (question.bucket_s or _fitting(cursor, question, asked.plan))
    if bucket_us < HOUR_US and asked.plan.rolled is not None:
        asked = msgspec.structs.replace(
            asked, plan=plan_of(cursor, question.since_us, question.until_us, rows_only=True)
        )
    slots = range(question.since_us // bucket_us, -(-question.until_us // bucket_us))
    _check_size(question, len(slots))

    counts = tuple(
        dict.fromkeys(("requests", *(METRICS[name][0] for name in question.metrics if METRICS[name][1] is None)))
    )
    percentiles: dict[str, tuple[float, ...]] = {}
    for name in question.metrics:
        kind, share = METRICS[name]
        if share is not None:
            percentiles[kind] = (*percentiles.get(kind, ()), share)
    top: list[tuple[str | None, int | None]] = [(None, None)]
    groups = 1
    if group:
        top = ranked(cursor, asked, question.top, named=False)
        groups = distinct(cursor, asked) + any(value is None for value, _ in top)
    elif asked.only is not None:
        top = [(asked.only, None)]
    keys = [value for value, _ in top]
    found, whole = measure_over_time(cursor, asked, counts, percentiles, bucket_us=bucket_us, top=keys, others=group)
    pen = _Pen(question.metrics, percentiles)
    lines = [
        msgspec.structs.replace(
            pen.line(found, whole, slots, (key, False)), key=key if group else None, server_id=server_id
        )
        for key, server_id in top
    ]
    if any(other for _, _, other in whole):
        lines.append(pen.line(found, whole, slots, (None, True)))
    return Series(
        from_=_moment(question.since_us),
        to=_moment(question.until_us),
        bucket_seconds=bucket_us // 1_000_000,
        group_by=question.group_by,
        metrics=question.metrics,
        exact=asked.plan.exact,
        percentile_error=0.0 if asked.plan.exact else round(ERROR, 3),
        groups=groups,
        times=[_moment(slot * bucket_us) for slot in slots],
        series=lines,
    )


def table(series: Series) -> Answer:
    """The same as rows: time, value, metrics."""
    columns = ("time", series.group_by, *series.metrics)
    rows: list[list[Any]] = [
        [moment, "(other)" if line.other else line.key, *(line.values[name][place] for name in series.metrics)]
        for line in series.series
        for place, moment in enumerate(series.times)
    ]
    return Answer(columns, ("VARCHAR",) * len(columns), rows)


def _asked(cursor: duckdb.DuckDBPyConnection, question: Question) -> tuple[Asked, bool]:
    """Which requests, told apart by which dimension; whether the answer tells them apart, too."""
    filters, group = dict(question.filters), question.group_by != "none"
    dimension = question.group_by if group else "all"
    only = None
    if not group and len(filters) == 1 and "xx" not in filters.get("status", "").lower():
        # One property with one value: that row of the roll-ups.
        ((dimension, only),) = filters.items()
        filters = {}
    elif dimension in filters and "xx" not in filters.get("status", "").lower():
        only = filters.pop(dimension)
    plan = plan_of(cursor, question.since_us, question.until_us, rows_only=bool(filters))
    where = " AND ".join(FILTERS[name] for name in filters) or "true"
    return Asked(plan=plan, dimension=dimension, only=only, where=where, values=filters), group


def _fitting(cursor: duckdb.DuckDBPyConnection, question: Question, plan: Plan) -> int:
    """The shortest bucket that gives not too many of them, and can be told quickly."""
    length_s = (question.until_us - question.since_us) / 1e6
    coarse = plan.requests > _AUTO_ROWS or question.since_us < raw_since_us(cursor)
    fitting = [
        step for step in BUCKETS.values()
        if length_s / step <= _AUTO_POINTS and not (coarse and step < 3600 and length_s > 2 * 3600)
    ]  # fmt: skip
    return fitting[0] if fitting else max(BUCKETS.values())


def _check_size(question: Question, points: int) -> None:
    lines = 1 if question.group_by == "none" else question.top + 1
    if points > MAX_POINTS or points * lines * len(question.metrics) > MAX_CELLS:
        raise BadRequest(
            f"That would be {points} buckets of {lines} series with {len(question.metrics)} metrics; "
            f"ask for at most {MAX_POINTS} buckets and {MAX_CELLS} numbers: a longer bucket, or less of the rest"
        )


class _Pen:
    """Draws the lines of one answer."""

    def __init__(self, metrics: tuple[str, ...], percentiles: Mapping[str, tuple[float, ...]]) -> None:
        self._metrics = metrics
        self._percentiles = percentiles

    def line(
        self,
        found: Mapping[Key, Facts],
        whole: Mapping[Key, Facts],
        slots: Sequence[int],
        place: tuple[str | None, bool],
    ) -> Line:
        # Others asked, this one did not: that is a zero, and no gap.
        busy = {slot for slot, _, _ in found}
        at = [found.get((slot, *place), _NOTHING if slot in busy else None) for slot in slots]
        return Line(
            key=place[0],
            other=place[1],
            server_id=None,
            total={name: self._told(name, whole.get((0, *place), _NOTHING)) for name in self._metrics},
            values={name: [self._told(name, facts) for facts in at] for name in self._metrics},
        )

    def _told(self, name: str, facts: Facts | None) -> float | None:
        kind, share = METRICS[name]
        if facts is None:
            return None
        if share is None:
            return facts.get(kind) or 0
        values = facts.get(kind)
        return None if values is None else round(values[self._percentiles[kind].index(share)], 3)


_NOTHING: Facts = {}


def _moment(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="milliseconds") + "Z"
