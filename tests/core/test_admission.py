from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleetproxy.core import admission
from fleetproxy.core.admission import Admission
from fleetproxy.core.table import Principal
from fleetproxy.errors import RateLimited


def admitted(gate: Admission, principal: Principal, now_s: float) -> bool:
    try:
        gate.admit(principal, now_s)
    except RateLimited:
        return False
    return True


@given(st.integers(1, 120), st.integers(1, 4), st.lists(st.floats(0, 20), min_size=1, max_size=80).map(sorted))
def test_no_minute_has_more_requests_than_twice_the_share(per_minute: int, processes: int, times: list[float]) -> None:
    """A full bucket and what it earns meanwhile: the bound of any token bucket."""
    gate = Admission(processes)
    principal = Principal(name="p", requests_per_minute=per_minute)
    passed = [at_s for at_s in times if admitted(gate, principal, at_s)]
    share = per_minute / processes
    for start_s in passed:
        for span_s in (1.0, 10.0, 60.0):
            inside = sum(start_s <= at_s <= start_s + span_s for at_s in passed)
            assert inside <= max(1.0, share) + share * span_s / 60 + 1e-6


@given(st.integers(1, 120), st.integers(1, 4))
def test_coming_back_when_told_is_coming_back_in_time(per_minute: int, processes: int) -> None:
    gate = Admission(processes)
    principal = Principal(name="p", requests_per_minute=per_minute)
    burst = 0
    while admitted(gate, principal, 0.0):
        burst += 1
    assert burst == max(1, math.floor(per_minute / processes))
    with pytest.raises(RateLimited) as refusal:
        gate.admit(principal, 0.0)
    wait_s = refusal.value.retry_after_s
    assert wait_s is not None
    assert not admitted(gate, principal, wait_s * 0.9)
    assert admitted(gate, principal, wait_s + 1e-6)


@pytest.mark.parametrize(("limit", "processes", "share"), [(1, 1, 1), (4, 1, 4), (4, 2, 2), (5, 2, 3), (1, 4, 1)])
def test_each_process_admits_its_share_rounded_up(limit: int, processes: int, share: int) -> None:
    gate = Admission(processes)
    principal = Principal(name="p", max_in_flight=limit)
    assert [admitted(gate, principal, 0.0) for _ in range(share + 2)] == [True] * share + [False] * 2
    gate.dismiss(principal)
    assert admitted(gate, principal, 0.0)


def test_a_refused_request_costs_nothing() -> None:
    gate = Admission()
    principal = Principal(name="p", max_in_flight=1, requests_per_minute=2)
    gate.admit(principal, 0.0)
    with pytest.raises(RateLimited, match="1 requests running"):
        gate.admit(principal, 0.0)
    gate.dismiss(principal)
    gate.admit(principal, 0.0)
    gate.dismiss(principal)
    with pytest.raises(RateLimited, match="try again in 30 s"):
        gate.admit(principal, 0.0)
    assert gate.in_flight(principal) == 0


def test_no_limits_are_no_limits_and_may_come_later() -> None:
    gate = Admission()
    free = Principal(name="p")
    for _ in range(500):
        gate.admit(free, 0.0)
    limited = Principal(name="p", requests_per_minute=1, max_in_flight=1000)
    assert [admitted(gate, limited, 1.0) for _ in range(2)] == [True, False]
    assert gate.in_flight(limited) == 501


def test_strangers_are_forgotten_and_those_at_work_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_PRINCIPALS", 3)
    gate = Admission()
    people = [Principal(name=name, requests_per_minute=1) for name in "abcde"]
    for number, principal in enumerate(people):
        gate.admit(principal, float(number))
        if number:
            gate.dismiss(principal)
    assert gate.in_flight(people[0]) == 1
    assert len(gate._accounts) == 3
    assert not admitted(gate, people[4], 5.0)
    assert admitted(gate, people[1], 5.0)
    busy = Admission()
    for principal in people:
        busy.admit(principal, 0.0)
    assert len(busy._accounts) == 5
    busy.dismiss(Principal(name="nobody"))
    assert busy.in_flight(Principal(name="nobody")) == 0


class Crowd(RuleBasedStateMachine):
    """Whoever comes and goes: counts fit, limits hold, nothing goes below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Admission(2)
        self.people = [
            Principal(name="a", max_in_flight=3),
            Principal(name="b", requests_per_minute=6),
            Principal(name="c"),
        ]
        self.running = dict.fromkeys("abc", 0)
        self.now_s = 0.0

    @rule(who=st.integers(0, 2), pause_s=st.floats(0, 30))
    def come(self, who: int, pause_s: float) -> None:
        self.now_s += pause_s
        if admitted(self.gate, self.people[who], self.now_s):
            self.running[self.people[who].name] += 1

    @precondition(lambda self: any(self.running.values()))
    @rule(who=st.integers(0, 2))
    def go(self, who: int) -> None:
        name = self.people[who].name
        self.gate.dismiss(self.people[who])
        self.running[name] = max(0, self.running[name] - 1)

    @invariant()
    def counts_fit(self) -> None:
        for principal in self.people:
            assert self.gate.in_flight(principal) == self.running[principal.name]
        assert self.running["a"] <= math.ceil(3 / 2)


TestCrowd = Crowd.TestCase
