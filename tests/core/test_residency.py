from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.residency import Sighting, intervals, stays

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
SINCE = NOW - timedelta(hours=24)


def seen(hours_ago: float, kind: str, model: str = "phi", server_id: int = 1) -> Sighting:
    return Sighting(NOW - timedelta(hours=hours_ago), server_id, f"gpu{server_id}", model, kind)  # type: ignore[arg-type]


def test_a_stay_lasts_from_loaded_to_unloaded() -> None:
    (stay,) = stays([seen(10, "loaded"), seen(8, "unloaded"), seen(5, "loaded"), seen(4, "unloaded")], SINCE, NOW)
    assert (stay.loaded_s, stay.loads, stay.unloads) == (3 * 3600, 2, 2)
    assert stay.last_seen == NOW - timedelta(hours=4)


def test_a_model_still_loaded_counts_until_now() -> None:
    (stay,) = stays([seen(2, "loaded")], SINCE, NOW)
    assert (stay.loaded_s, stay.loads) == (2 * 3600, 1)


def test_a_stay_that_began_before_the_window_counts_from_its_start() -> None:
    (stay,) = stays([seen(100, "loaded"), seen(20, "unloaded")], SINCE, NOW)
    assert (stay.loaded_s, stay.loads, stay.unloads) == (4 * 3600, 0, 1)
    (whole,) = stays([seen(100, "loaded")], SINCE, NOW)
    assert whole.loaded_s == 24 * 3600


def test_a_restart_of_ours_does_not_interrupt_a_stay() -> None:
    (stay,) = stays([seen(10, "loaded"), seen(6, "loaded"), seen(5, "unloaded")], SINCE, NOW)
    assert (stay.loaded_s, stay.loads) == (5 * 3600, 1)


def test_what_left_before_the_window_is_not_told() -> None:
    assert stays([seen(30, "unloaded")], SINCE, NOW) == []


sightings = st.lists(
    st.builds(
        seen,
        st.integers(0, 40),
        st.sampled_from(["loaded", "unloaded"]),
        st.sampled_from(["phi", "llama"]),
        st.integers(1, 2),
    ),
    max_size=20,
).map(lambda found: sorted(found, key=lambda one: one.at))


@given(sightings)
def test_no_stay_is_longer_than_the_window_and_each_pair_is_told_once(found: list[Sighting]) -> None:
    told = stays(found, SINCE, NOW)
    assert all(0 <= stay.loaded_s <= 24 * 3600 for stay in told)
    assert len({(stay.server_id, stay.model) for stay in told}) == len(told)
    assert [stay.loaded_s for stay in told] == sorted((stay.loaded_s for stay in told), reverse=True)


@given(sightings, st.integers(1, 23))
def test_two_halves_of_a_window_add_up(found: list[Sighting], hours: int) -> None:
    middle = SINCE + timedelta(hours=hours)
    whole = sum(stay.loaded_s for stay in stays(found, SINCE, NOW))
    first = sum(stay.loaded_s for stay in stays([one for one in found if one.at < middle], SINCE, middle))
    second = sum(stay.loaded_s for stay in stays(found, middle, NOW))
    assert abs(whole - first - second) < 1e-6


moments = st.lists(
    st.tuples(st.integers(-30, 30), st.sampled_from(["loaded", "unloaded"]), st.sampled_from(["a", "b"])), max_size=20
)


@given(moments)
def test_intervals_are_the_stays_one_by_one(seen_at: list[tuple[int, str, str]]) -> None:
    # Times told apart: of two events of one moment nobody can say which was first.
    ordered = sorted({hour: (hour, kind, model) for hour, kind, model in seen_at}.values())
    sightings = [seen(-hour, kind, model) for hour, kind, model in ordered if hour < 0]
    each = intervals(sightings, SINCE, NOW)
    for stay in stays(sightings, SINCE, NOW):
        together = sum(one.seconds for one in each if one.model == stay.model)
        assert abs(together - stay.loaded_s) < 1e-6
    for one in each:
        assert 0 <= one.seconds <= 24 * 3600
        assert one.unloaded_at is None or one.unloaded_at > one.loaded_at
    for model in ("a", "b"):
        own = [one for one in each if one.model == model]
        assert all(a.unloaded_at and a.unloaded_at <= b.loaded_at for a, b in itertools.pairwise(own))


def test_what_came_after_the_window_does_not_end_a_stay_in_it() -> None:
    (one,) = intervals([seen(10, "loaded"), seen(2, "unloaded")], SINCE, NOW - timedelta(hours=5))
    assert (one.unloaded_at, one.seconds) == (None, 5 * 3600)


def test_what_ended_before_the_window_is_not_in_it() -> None:
    assert intervals([seen(48, "loaded"), seen(30, "unloaded")], SINCE, NOW) == []
    assert intervals([seen(48, "loaded"), seen(24, "unloaded")], SINCE, NOW) == []
