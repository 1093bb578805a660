from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy import errors
from fleetproxy.core.failover import CannotServe, ModelMissing, RetryBudget, final, pass_on
from fleetproxy.errors import BackendError, FleetError
from fleetproxy.families.registry import find

CHAT, PULL, OTHER = find("POST", "/api/chat"), find("POST", "/api/pull"), find("POST", "/v1/unheard-of")


def every_error() -> list[FleetError]:
    found: list[FleetError] = [CannotServe(500), ModelMissing("m")]
    for thing in vars(errors).values():
        if isinstance(thing, type) and issubclass(thing, BackendError):
            found.append(thing())
    return found


NEVER_SEEN = {"ConnectFailed", "ConnectTimeout", "WorkerBusy", "WorkerRefused"}
READS_PASS_ON = NEVER_SEEN | {"BackendReset", "ConnectionStale", "ModelMissing", "CannotServe"}


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_writes_go_on_only_when_nobody_saw_them(error: FleetError) -> None:
    for endpoint in (PULL, OTHER):
        assert endpoint is not None
        assert pass_on(error, endpoint, [error]) == (type(error).__name__ in NEVER_SEEN)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_reads_go_on_where_the_table_says_so(error: FleetError) -> None:
    assert CHAT is not None
    assert pass_on(error, CHAT, [error]) == (type(error).__name__ in READS_PASS_ON)


def test_a_server_error_is_passed_on_once() -> None:
    assert CHAT is not None
    first, second = CannotServe(500), CannotServe(503)
    assert pass_on(first, CHAT, [ModelMissing("m"), first])
    assert not pass_on(second, CHAT, [first, second])
    assert (first.answered_status, str(second)) == (500, "The server answered 503.")


FAILURES = st.lists(st.sampled_from(every_error()), min_size=1, max_size=5)


@given(FAILURES)
def test_not_found_only_when_everybody_said_so(failures: list[FleetError]) -> None:
    error = final(failures, "phi")
    real = [failure for failure in failures if not isinstance(failure, ModelMissing)]
    if not real:
        assert type(error) is errors.ModelUnknown
        assert str(error) == "model 'phi' not found on any available server"
    elif isinstance(real[-1], CannotServe):
        assert type(error) is errors.BackendRefused
    else:
        assert error is real[-1]


@given(
    st.lists(st.tuples(st.floats(0, 8), st.integers(0, 4)), max_size=60),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    st.integers(0, 5),
)
def test_retries_stay_within_share_and_extra(steps: list[tuple[float, int]], share: float, extra: int) -> None:
    budget = RetryBudget(share, extra, window_s=10.0)
    now_s = 0.0
    history: list[tuple[float, bool]] = []
    for pause_s, tries in steps:
        now_s += pause_s
        budget.request(now_s)
        history.append((now_s, False))
        for _ in range(tries):
            if budget.retry():
                history.append((now_s, True))
    # Over any stretch of one window: no more than its requests, and those of the two windows before it, allow.
    for start_s, _ in history:
        inside = [retried for at_s, retried in history if start_s <= at_s < start_s + 10.0]
        earlier = [retried for at_s, retried in history if start_s - 20.0 <= at_s < start_s]
        requests = inside.count(False) + earlier.count(False)
        assert inside.count(True) <= share * requests + 2 * extra + 1e-9
    if steps and sum(pause for pause, _ in steps) < 10.0:
        retries = [retried for _, retried in history].count(True)
        assert retries <= share * len(steps) + extra + 1e-9


def test_an_outage_costs_a_fifth_more_and_three() -> None:
    budget = RetryBudget(0.2)
    retries = 0
    for number in range(12_000):
        budget.request(number / 200)
        retries += budget.retry()
    assert retries <= 0.2 * 12_000 + 3
    assert retries >= 0.2 * 12_000 - 3


def test_what_went_well_before_pays_for_what_breaks_at_once() -> None:
    budget = RetryBudget(0.2)
    for number in range(100):
        budget.request(29.0 + number / 100)
    assert [budget.retry() for _ in range(30)].count(True) == 23
    budget.request(31.0)
    assert not budget.retry()
    budget.request(500.0)
    assert [budget.retry() for _ in range(9)].count(True) == 3


def test_failures_nobody_saw_cost_nothing() -> None:
    budget = RetryBudget(0.2)
    budget.request(0.0)
    assert all(budget.retry(errors.ConnectFailed()) for _ in range(100))
    assert [budget.retry(errors.BackendReset()) for _ in range(9)].count(True) == 3
