from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.metrics.families import BY_NAME, FAMILIES, LINKED, OTHER, SHARES_FOR, Family, series_in_all
from fleetproxy.control.metrics.series import Bins, Capped, Names, Overflow

COUNTER = Family("c", "counter", ("a", "b"), "Doc.", 5)


def test_all_shares_together_keep_the_cap() -> None:
    assert series_in_all() <= SHARES_FOR


def test_names_follow_prometheus_rules() -> None:
    for family in BY_NAME.values():
        assert family.exposed.startswith("fleetproxy_")
        assert family.exposed.endswith("_total") == (family.kind == "counter")
        assert not family.name.endswith(("_total", "_ms", "_percent"))
        assert family.doc.strip()
        assert bool(family.buckets) == (family.kind == "histogram")
        assert list(family.buckets) == sorted(set(family.buckets))
    assert {family.name for family in FAMILIES} | {f.name for f in LINKED.values()} == set(BY_NAME)


def test_time_to_first_token_reaches_two_minutes() -> None:
    assert BY_NAME["time_to_first_token_seconds"].buckets[-1] == 120


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=200))
def test_counts_are_never_lost_and_series_never_exceed_the_share(asked: list[tuple[int, int]]) -> None:
    overflow = Overflow()
    capped = Capped(COUNTER, SHARES_FOR, overflow)
    for a, b in asked:
        capped.tally((str(a), str(b))).value += 1
    found = dict(capped.tallies())
    assert len(found) <= COUNTER.share
    assert sum(found.values()) == len(asked)
    distinct = list(dict.fromkeys((str(a), str(b)) for a, b in asked))
    # First come, first served; the last place belongs to `other`.
    kept = distinct[: COUNTER.share - 1]
    for labels in kept:
        assert found[labels] == sum((str(a), str(b)) == labels for a, b in asked)
    assert found.get((OTHER, OTHER), 0) == len([one for one in asked if (str(one[0]), str(one[1])) not in kept])
    assert (overflow.count > 0) == (len(distinct) > len(kept))


def test_a_family_without_labels_has_one_series() -> None:
    capped = Capped(Family("q", "histogram", (), "Doc.", 1, (1.0,)), SHARES_FOR, Overflow())
    assert capped.bins(()) is capped.bins(())
    assert len(list(capped.histograms())) == 1


@given(st.lists(st.floats(0, 1e6, allow_nan=False), max_size=50))
def test_a_value_is_in_the_first_bucket_that_holds_it(values_ms: list[float]) -> None:
    bounds = (0.1, 1.0, 10.0)
    bins = Bins(bounds)
    for value in values_ms:
        bins.add(value)
    for n, bound in enumerate((*bounds, math.inf)):
        assert sum(bins.counts[: n + 1]) == sum(value <= bound * 1000 for value in values_ms)


def test_only_known_names_are_labels_and_they_stay() -> None:
    names = Names(2)
    assert (names.label("a"), names.label(None), names.label("")) == (OTHER, "", "")
    names.known = {"a": "A", "b": "b", "c": "c"}
    assert [names.label(name) for name in ("a", "b", "c", "a")] == ["A", "b", OTHER, "A"]
    names.known = {"a": "a"}
    assert [names.label(name) for name in ("a", "c")] == ["A", OTHER]
