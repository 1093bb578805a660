from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.breaker import CLOSED, Breaker, Event, Policy, State, keep_out, retry_after_s, step

POLICY = Policy(failures=3, open_s=30.0, max_s=100.0, cool_down_max_s=60.0)
EVENTS = st.sampled_from(Event)
HISTORIES = st.lists(st.tuples(EVENTS, st.floats(0, 50)), max_size=40)


def play(events: list[tuple[Event, float]]) -> list[tuple[Breaker, Event, Breaker]]:
    """Each step of a history: before, event, after. COOLED comes only when the time is up, as its caller sees to."""
    breaker, now_s, steps = CLOSED, 0.0, []
    for event, pause_s in events:
        now_s += pause_s
        if event is Event.COOLED and breaker.until_s > now_s:
            continue
        after = step(breaker, event, now_s, POLICY, cool_down_s=pause_s * 3)
        steps.append((breaker, event, after))
        breaker = after
    return steps


#: Everything that may happen; what is not here must leave the state as it is.
TRANSITIONS = {
    (State.CLOSED, Event.FAILED): {State.CLOSED, State.OPEN},
    (State.CLOSED, Event.COOL_DOWN): {State.CLOSED, State.OPEN},
    (State.OPEN, Event.COOLED): {State.HALF_OPEN},
    (State.HALF_OPEN, Event.SUCCEEDED): {State.CLOSED},
    (State.HALF_OPEN, Event.FAILED): {State.OPEN},
    (State.HALF_OPEN, Event.COOL_DOWN): {State.HALF_OPEN, State.OPEN},
}


@given(HISTORIES)
def test_only_listed_transitions_happen(events: list[tuple[Event, float]]) -> None:
    for before, event, after in play(events):
        assert after.state in TRANSITIONS.get((before.state, event), {before.state})


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_the_table_is_total(state: State, event: Event) -> None:
    after = step(Breaker(state, 1, 10.0, 30.0), event, 20.0, POLICY, cool_down_s=5.0)
    assert after.state in TRANSITIONS.get((state, event), {state})


@given(HISTORIES)
def test_it_opens_at_the_limit_not_before(events: list[tuple[Event, float]]) -> None:
    in_a_row = 0
    for before, event, after in play(events):
        if before.state is not State.CLOSED:
            in_a_row = 0
            continue
        if event is Event.FAILED:
            in_a_row += 1
            assert (after.state is State.OPEN) == (in_a_row >= POLICY.failures)
        elif event is Event.SUCCEEDED:
            in_a_row = 0
            assert after == CLOSED


@given(HISTORIES)
def test_time_out_doubles_up_to_the_maximum(events: list[tuple[Event, float]]) -> None:
    for before, event, after in play(events):
        if after.state is State.OPEN and before.state is not State.OPEN:
            assert 0 < after.open_s <= POLICY.max_s
            if before.state is State.HALF_OPEN and event is Event.FAILED:
                assert after.open_s == min(2 * max(before.open_s, POLICY.open_s), POLICY.max_s)
            elif event is Event.FAILED:
                assert after.open_s == POLICY.open_s
            else:
                assert after.open_s <= POLICY.cool_down_max_s


def test_a_success_from_before_the_trip_closes_nothing() -> None:
    opened = Breaker(State.OPEN, 5, 100.0, 30.0)
    assert step(opened, Event.SUCCEEDED, 1.0, POLICY) is opened
    assert step(opened, Event.FAILED, 1.0, POLICY) is opened


@pytest.mark.parametrize(("asked_s", "until_s"), [(5.0, 15.0), (1e12, 70.0), (0.0, None), (-3.0, None)])
def test_a_backend_is_left_alone_as_long_as_it_asks_within_reason(asked_s: float, until_s: float | None) -> None:
    after = step(CLOSED, Event.COOL_DOWN, 10.0, POLICY, cool_down_s=asked_s)
    if until_s is None:
        assert after is CLOSED
    else:
        assert (after.state, after.until_s) == (State.OPEN, until_s)


@given(st.sets(st.integers(0, 6)), st.sets(st.integers(0, 6)))
def test_at_most_all_but_one_are_kept_out(tripped: set[int], candidates: set[int]) -> None:
    out = keep_out(tripped, candidates)
    assert out <= tripped
    assert not candidates or candidates - out
    if candidates - tripped:
        assert out == tripped


NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@given(st.integers(0, 10**9))
def test_dates_are_read_as_the_standard_library_reads_them(seconds: int) -> None:
    then = NOW + timedelta(seconds=seconds)
    value = format_datetime(then, usegmt=True).encode()
    assert retry_after_s(value, NOW.timestamp()) == seconds
    assert retry_after_s(value, then.timestamp() + 5) == 0.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"120", 120.0),
        (b" 7 ", 7.0),
        (b"0", 0.0),
        (b"1000000000000", None),
        (b"-5", None),
        (b"1e12", None),
        ("\u0663".encode(), None),
        (b"soon", None),
        (b"", None),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        (b"Sun, 06 Nov 1994 08:49:37 CET", None),
        (b"Sun, 06 Nix 1994 08:49:37 GMT", None),
        (b"Sun, xx Nov 1994 08:49:37 GMT", None),
        (b"Sun, 32 Nov 2094 08:49:37 GMT", None),
        (b"Sun, 06 Nov 2094 25:49:37 GMT", None),
        (b"Sun, 06 Nov 1094 08:49:37 GMT", None),
    ],
)
def test_what_is_no_retry_after_says_nothing(value: bytes | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW.timestamp()) == seconds


@given(st.binary(max_size=40))
def test_retry_after_takes_anything(value: bytes) -> None:
    asked = retry_after_s(value, 0.0)
    assert asked is None or asked >= 0
