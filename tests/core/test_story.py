from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.record import Attempt
from fleetproxy.core.story import LEAST_MS, timeline

times = st.floats(0, 10_000)
attempts = st.builds(
    Attempt,
    backend=st.sampled_from(["a", "b"]),
    error=st.none() | st.just("backend_lost"),
    started_ms=times,
    connect_ms=st.none() | times,
    first_byte_ms=st.none() | times,
    total_ms=times,
)


@given(times, times, st.lists(attempts, max_size=4))
def test_parts_are_in_order_without_gaps_and_end_with_the_exchange(
    queue_ms: float, total_ms: float, tried: list[Attempt]
) -> None:
    found = timeline(queue_ms, total_ms, tried)
    assert all(part.duration_ms >= 0 for part in found)
    for before, after in itertools.pairwise(found):
        assert before.start_ms + before.duration_ms == pytest.approx(after.start_ms, abs=0.002)
    if total_ms >= LEAST_MS:
        assert found[0].start_ms == 0
        assert found[-1].start_ms + found[-1].duration_ms == pytest.approx(total_ms, abs=0.002 + LEAST_MS)


def test_a_request_that_waited_failed_once_and_was_answered() -> None:
    tried = [
        Attempt(backend="a", error="connect_failed", started_ms=52.0, total_ms=3.0),
        Attempt(backend="b", status=200, started_ms=56.0, connect_ms=1.0, first_byte_ms=41.0, total_ms=940.0),
    ]
    assert [(one.phase, one.server_name, one.start_ms, one.duration_ms) for one in timeline(50.0, 1000.0, tried)] == [
        ("overhead", None, 0.0, 2.0),
        ("queue", None, 2.0, 50.0),
        ("failed", "a", 52.0, 3.0),
        ("overhead", None, 55.0, 1.0),
        ("connect", "b", 56.0, 1.0),
        ("wait", "b", 57.0, 40.0),
        ("stream", "b", 97.0, 899.0),
        ("overhead", None, 996.0, 4.0),
    ]


def test_a_refused_request_is_ours_alone() -> None:
    assert [(one.phase, one.duration_ms) for one in timeline(0.0, 2.0, ())] == [("overhead", 2.0)]
