from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.histogram import ERROR, LAST, LEAST_MS, bounds, bucket, quantile, quantiles

times = st.floats(LEAST_MS * 1.001, 30_000_000.0)
shares = st.floats(0, 1)


def counted(values: list[float]) -> Counter[int]:
    return Counter(map(bucket, values))


def exact(values: list[float], q: float) -> float:
    """What DuckDB's quantile_cont says of the rows."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@given(times)
def test_a_time_lies_within_its_bucket(value: float) -> None:
    low, high = bounds(bucket(value))
    assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


@given(st.floats(-1e300, LEAST_MS))
def test_what_is_too_small_to_tell_is_in_the_first_bucket(value: float) -> None:
    assert bucket(value) == 0


@given(st.floats(4e7, 1e300))
def test_what_is_beyond_all_buckets_is_in_the_last(value: float) -> None:
    assert bucket(value) == LAST


@given(st.integers(1, LAST))
def test_buckets_touch_each_other(number: int) -> None:
    assert abs(bounds(number)[0] / bounds(number - 1)[1] - 1) < 1e-12


@given(st.lists(times, min_size=1, max_size=200), shares)
def test_a_quantile_is_off_by_less_than_the_error_told(values: list[float], q: float) -> None:
    found = quantile(counted(values), q)
    assert found is not None
    assert abs(found / exact(values, q) - 1) <= ERROR + 1e-9


@given(st.lists(times, min_size=1, max_size=50), shares, shares)
def test_a_greater_share_is_never_a_smaller_time(values: list[float], one: float, other: float) -> None:
    low, high = (quantile(counted(values), q) for q in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high * (1 + 1e-12)


@given(st.lists(times, max_size=30), st.lists(times, max_size=30), shares)
def test_counts_that_are_added_up_tell_the_same_as_all_counted_at_once(
    one: list[float], other: list[float], q: float
) -> None:
    assert quantile(counted(one) + counted(other), q) == quantile(counted(one + other), q)


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile({}, 0.5) is None
    assert quantiles({}, (0.5, 0.95)) is None
    assert quantiles({0: 1}, (0.5, 0.95)) == [LEAST_MS / 2, LEAST_MS / 2]
