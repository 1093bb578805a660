"""Numbers and percentiles of requests by time and by value: of the rows, or of added-up hours and rows as one.

`measure` is the one question everything about long times is made of. In an exact plan (`plan.py`) it is one query over
`requests`; else hours and rows are brought to the same columns, added up, and percentiles are told from the counts.
"""

# ruff: noqa: S608  (SQL here is made of our own names and numbers; values are bound)

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import msgspec

from fleetproxy.control.analytics.measures import COUNTS, DIMENSIONS, HISTOGRAMS
from fleetproxy.control.analytics.plan import Plan
from fleetproxy.core.histogram import quantiles

Cursor = duckdb.DuckDBPyConnection
#: Number of the bucket of time (microseconds since the epoch, divided by its length), value, "all others".
Key = tuple[int, str | None, bool]
#: Numbers by name as in `COUNTS`, percentiles by name as in `HISTOGRAMS`: a list in the order asked for, or None.
Facts = dict[str, Any]
#: Number of a size (`core.histogram`) -> how many times were of it.
Sizes = dict[int, int]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are asked about, and what they are told apart by."""

    plan: Plan
    dimension: str = "all"
    #: Only those with this value.
    only: str | None = None
    #: A further condition on rows, for plans without roll-ups, and its values.
    where: str = "true"
    values: dict[str, Any] = {}


def measure(
    cursor: Cursor,
    asked: Asked,
    counts: Sequence[str],
    percentiles: Mapping[str, tuple[float, ...]],
    *,
    bucket_us: int = 0,
    top: Sequence[str | None] | None = None,
    others: bool = False,
) -> dict[Key, Facts]:
    """Facts by bucket of time (one bucket, 0, without `bucket_us`) and value.

    `top`: the values told apart (None among them: those without); with `others` the rest is added up under one key.
    Without `top` every value is told apart.
    """
    ask = _Ask(asked, bucket_us, top, others)
    if asked.plan.exact:
        return ask.exact(cursor, counts, percentiles)
    return ask.rolled(cursor, counts, percentiles).facts(percentiles)


def measure_over_time(
    cursor: Cursor,
    asked: Asked,
    counts: Sequence[str],
    percentiles: Mapping[str, tuple[float, ...]],
    *,
    bucket_us: int,
    top: Sequence[str | None] | None = None,
    others: bool = False,
) -> tuple[dict[Key, Facts], dict[Key, Facts]]:
    """Facts by bucket of time and value, and over the whole time by value (bucket 0): as `measure` would, asked twice.

    Counts by size add up, so that hours and rows are looked at once; percentiles of rows do not.
    """
    if asked.plan.exact:
        by_bucket, whole = (
            measure(cursor, asked, counts, percentiles, bucket_us=length_us, top=top, others=others)
            for length_us in (bucket_us, 0)
        )
        return by_bucket, whole
    found = _Ask(asked, bucket_us, top, others).rolled(cursor, counts, percentiles)
    return found.facts(percentiles), found.whole().facts(percentiles)


def ranked(cursor: Cursor, asked: Asked, limit: int, *, named: bool = True) -> list[tuple[str | None, int | None]]:
    """The values with most requests first, each with the number of its server where it is one.

    `named`: without the requests that have no value.
    """
    ask = _Ask(asked)
    server = "any_value(server_id)" if asked.dimension == "server" else "NULL::BIGINT"
    parts = ask.parts(
        "value, folded, server_id, requests AS n",
        f"{ask.value} AS value, 0 AS folded, {server} AS server_id, count(*) AS n FROM requests",
        "GROUP BY ALL",
    )
    absent = "AND value IS NOT NULL" if named else ""
    found: list[tuple[str | None, int | None]] = cursor.execute(
        f"SELECT value, any_value(server_id) FROM ({parts}) WHERE folded = 0 {absent} {ask.only} "
        f"GROUP BY value ORDER BY sum(n) DESC, value LIMIT {limit}",
        ask.bound(),
    ).fetchall()
    return found


def distinct(cursor: Cursor, asked: Asked) -> int:
    """How many values there are; of those too rare in their hour to be told apart, as many as the fullest hour had."""
    ask = _Ask(asked)
    parts = ask.parts("value, folded", f"{ask.value} AS value, 0 AS folded FROM requests", "GROUP BY ALL")
    row = cursor.execute(
        f"SELECT count(DISTINCT value) + coalesce(max(folded), 0) FROM ({parts}) WHERE true {ask.only}", ask.bound()
    ).fetchone()
    return row[0] if row else 0


class _Ask:
    """One question's SQL."""

    def __init__(
        self, asked: Asked, bucket_us: int = 0, top: Sequence[str | None] | None = None, others: bool = False
    ) -> None:
        self._asked = asked
        self._top = top
        self._others = others
        self._bucket_us = bucket_us
        self.value = DIMENSIONS[asked.dimension]
        self.only = "AND value = $only" if asked.only is not None else ""

    def bound(self, **more: Any) -> dict[str, Any]:
        only = {} if self._asked.only is None else {"only": self._asked.only}
        return {**self._asked.values, **only, **more}

    def exact(
        self, cursor: Cursor, counts: Sequence[str], percentiles: Mapping[str, tuple[float, ...]]
    ) -> dict[Key, Facts]:
        """One query over the rows."""
        wanted = [COUNTS[name].sql for name in counts]
        for name, shares in percentiles.items():
            one = HISTOGRAMS[name]
            wanted.append(f"quantile_cont({one.value}, {list(shares)}) FILTER ({one.where})")
        ((since, until),) = self._asked.plan.raw
        key, values = self._key("0")
        found = cursor.execute(
            f"SELECT {self._at('started_at')}, {key}, {', '.join(wanted)} "
            f"FROM (SELECT *, {self.value} AS value FROM requests "
            f"WHERE started_at >= make_timestamp({since}) AND started_at < make_timestamp({until}) "
            f"AND ({self._asked.where})) WHERE {self._kept('0')} {self.only} GROUP BY ALL",
            self.bound(**values),
        ).fetchall()
        names = (*counts, *percentiles)
        return {(at, value, other): dict(zip(names, facts, strict=True)) for at, value, other, *facts in found}

    def rolled(self, cursor: Cursor, counts: Sequence[str], percentiles: Mapping[str, tuple[float, ...]]) -> _Counted:
        """One query for the numbers, and one for each kind of time."""
        key, values = self._key("folded")
        bound = self.bound(**values)
        tail = f"WHERE {self._kept('folded')} {self.only} GROUP BY ALL"
        rolled, raw = self._at("hour"), f"{self._at('started_at')}, {self.value} AS value, 0 AS folded"
        parts = self.parts(
            ", ".join((rolled, "value", "folded", *counts)),
            ", ".join((raw, *(f"{COUNTS[name].sql} AS {name}" for name in counts))) + " FROM requests",
            "GROUP BY slot, value",
        )
        summed = ", ".join(f"sum({name})" for name in counts)
        sums: dict[Key, list[Any]] = {
            (at, value, other): facts
            for at, value, other, *facts in cursor.execute(
                f"SELECT slot, {key}, {summed} FROM ({parts}) {tail}", bound
            ).fetchall()
        }
        sizes: dict[str, dict[Key, Sizes]] = {}
        for name in percentiles:
            one = HISTOGRAMS[name]
            parts = self.parts(
                f"{rolled}, value, folded, unnest(map_entries({name})) AS entry",
                f"{raw}, {{'key': {one.bucket}, 'value': count(*)::UBIGINT}} AS entry FROM requests",
                f"AND {one.where} GROUP BY slot, value, {one.bucket}",
            )
            buckets: defaultdict[Key, Sizes] = defaultdict(dict)
            for at, value, other, size, count in cursor.execute(
                f"SELECT slot, {key}, entry.key, sum(entry.value)::BIGINT FROM ({parts}) {tail}", bound
            ).fetchall():
                buckets[at, value, other][size] = count
            sizes[name] = buckets
        return _Counted(tuple(counts), sums, sizes)

    def parts(self, rolled: str, raw: str, raw_tail: str) -> str:
        """Hours and rows, one under the other."""
        plan = self._asked.plan
        parts = []
        if plan.rolled is not None:
            first, last = plan.rolled
            pending = ", ".join(f"make_timestamp({hour})" for hour in plan.pending_us)
            but = f" AND hour NOT IN ({pending})" if pending else ""
            parts.append(
                f"SELECT {rolled} FROM requests_hourly WHERE dimension = '{self._asked.dimension}' "
                f"AND hour >= make_timestamp({first}) AND hour < make_timestamp({last}){but}"
            )
        parts += [
            f"SELECT {raw} WHERE started_at >= make_timestamp({start}) AND started_at < make_timestamp({end}) "
            f"AND ({self._asked.where}) {raw_tail}"
            for start, end in plan.raw
        ]
        return " UNION ALL ".join(parts)

    def _at(self, column: str) -> str:
        return f"epoch_us({column}) // {self._bucket_us} AS slot" if self._bucket_us else "0 AS slot"

    def _told(self, folded: str) -> str:
        """Whether a value is told apart. What was too rare in its hour never is."""
        if self._top is None:
            return "true" if folded == "0" else f"{folded} = 0"
        told = "coalesce(list_contains($top::VARCHAR[], value), false)"
        if None in self._top:
            told = f"({told} OR value IS NULL)"
        return told if folded == "0" else f"({folded} = 0 AND {told})"

    def _key(self, folded: str) -> tuple[str, dict[str, Any]]:
        told = self._told(folded)
        values = {} if self._top is None else {"top": [value for value in self._top if value is not None]}
        return f"CASE WHEN {told} THEN value END AS key, NOT ({told}) AS other", values

    def _kept(self, folded: str) -> str:
        return "true" if self._others or self._top is None else self._told(folded)


class _Counted(msgspec.Struct, frozen=True):
    """Numbers, and counts of times by size, by bucket of time and value: what can be added up."""

    counts: tuple[str, ...]
    sums: dict[Key, list[Any]]
    sizes: dict[str, dict[Key, Sizes]]

    def facts(self, percentiles: Mapping[str, tuple[float, ...]]) -> dict[Key, Facts]:
        return {
            place: {
                **dict(zip(self.counts, facts, strict=True)),
                **{name: quantiles(self.sizes[name].get(place, {}), shares) for name, shares in percentiles.items()},
            }
            for place, facts in self.sums.items()
        }

    def whole(self) -> _Counted:
        """The same over all buckets of time."""
        sums: dict[Key, list[Any]] = {}
        for (_, value, other), facts in self.sums.items():
            known = sums.get((0, value, other))
            sums[0, value, other] = facts if known is None else list(map(_added, known, facts))
        sizes: dict[str, dict[Key, Sizes]] = {}
        for name, by_place in self.sizes.items():
            merged: defaultdict[Key, Counter[int]] = defaultdict(Counter)
            for (_, value, other), found in by_place.items():
                merged[0, value, other].update(found)
            sizes[name] = dict(merged)
        return _Counted(self.counts, sums, sizes)


def _added(one: Any, more: Any) -> Any:
    """The sum of two numbers of which either may be missing."""
    return more if one is None else one if more is None else one + more
