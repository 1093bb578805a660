"""Users over time, and what a run must reach."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.__main__ import SCENARIOS
from loadtests.gates import GATES, verdicts
from loadtests.shapes import Shape, soak, spike, steady

SHAPES = pytest.mark.parametrize("shape", [steady, spike, soak])


@SHAPES
@given(elapsed=st.floats(0, 2), users=st.integers(1, 500), length_s=st.floats(1, 10_000))
def test_a_shape_stays_within_its_users_and_ends_with_its_time(
    shape: Shape, elapsed: float, users: int, length_s: float
) -> None:
    tick = shape(elapsed * length_s, users, length_s)
    assert (tick is None) == (elapsed * length_s >= length_s)
    if tick is not None:
        assert 1 <= tick[0] <= users
        assert tick[1] >= 1.0


@SHAPES
def test_a_shape_reaches_its_users(shape: Shape) -> None:
    counts = [tick[0] for share in range(100) if (tick := shape(share, 80, 100.0))]
    assert max(counts) == 80


def test_a_spike_comes_twice_and_goes() -> None:
    counts = [tick[0] for share in range(100) if (tick := spike(share, 80, 100.0))]
    changes = [after for before, after in pairwise(counts) if before != after]
    assert (counts[0], changes) == (20, [80, 20, 80, 20])


@given(limit=st.floats(0, 1e6), number=st.none() | st.floats(0, 1e6))
def test_a_gate_holds_on_its_side_of_the_limit_and_never_unmeasured(limit: float, number: float | None) -> None:
    for gate in GATES:
        (verdict,) = verdicts({gate.name: limit}, {gate.name: number})
        wanted = number is not None and (number >= limit if gate.at_least else number <= limit)
        assert verdict.holds == wanted
        assert verdict.text.startswith("pass" if wanted else "FAIL")
        assert gate.name in verdict.text


def test_gates_nobody_asked_for_say_nothing() -> None:
    assert list(verdicts({gate.name: None for gate in GATES}, {})) == []


def test_every_scenario_demands_that_requests_succeed_and_that_there_were_some() -> None:
    names = {f"--{gate.name}" for gate in GATES}
    for scenario in SCENARIOS.values():
        options = scenario.gates[::2]
        assert {"--fail-ratio", "--min-streams"} <= set(options) <= names
