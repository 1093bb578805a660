from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.live import rates
from fleetproxy.control.live.rates import EVERYBODY, FAILURES_S, IDLE, LATE_S, RATE_S, Rates
from fleetproxy.core.record import Attempt, AuditRecord

NOW = 1_800_000_000.0


def row(
    ended_s: float,
    total_s: float,
    ttft_s: float | None = None,
    *,
    backend: str | None = "box",
    tokens: int | None = None,
    tokens_in: int | None = None,
    errors: tuple[str, ...] = (),
) -> AuditRecord:
    return AuditRecord(
        request_id="r",
        started_at_us=round((ended_s - total_s) * 1e6),
        process="proxy-0",
        sequence=1,
        source="x",
        endpoint="/api/chat",
        method="POST",
        path="/api/chat",
        backend=backend,
        total_ms=total_s * 1000,
        ttft_ms=None if ttft_s is None else ttft_s * 1000,
        tokens_out=tokens,
        tokens_in=tokens_in,
        attempts=tuple(Attempt(backend="box", error=code, total_ms=1.0) for code in errors),
    )


def settled(now_s: float = NOW) -> float:
    """When everything that ended by `now_s` is counted."""
    return now_s + LATE_S


def test_tokens_count_in_the_seconds_they_were_written_in() -> None:
    found = Rates()
    found.feed([row(NOW, 21.0, 1.0, tokens=400)], NOW)
    assert found.pace("box", settled()).tokens_per_s == pytest.approx(20, abs=2)
    assert found.pace("box", settled(NOW + RATE_S / 2)).tokens_per_s == pytest.approx(10, abs=2)
    assert found.pace("box", settled(NOW + RATE_S + 1)) == IDLE


def test_an_answer_of_one_piece_counts_at_its_end() -> None:
    found = Rates()
    found.feed([row(NOW, 5.0, tokens=50, tokens_in=30)], NOW)
    pace = found.pace("box", settled())
    assert (pace.tokens_per_s, pace.tokens_in_per_s, pace.requests_per_s) == (5.0, 3.0, 0.1)


def test_failures_count_for_a_minute_and_the_last_one_is_kept() -> None:
    found = Rates()
    found.feed([row(NOW, 1.0, errors=("connect_failed",)), row(NOW + 1, 1.0, errors=("backend_lost",))], NOW + 1)
    assert found.pace("box", NOW + 2).failed_last_minute == 2
    assert found.pace(EVERYBODY, NOW + 2).failed_last_minute == 2
    assert found.pace("box", NOW + FAILURES_S + 5).failed_last_minute == 0
    last = found.failure("box")
    assert last is not None
    assert last.code == "backend_lost"
    assert found.failure("other") is None


@pytest.mark.parametrize("code", ["client_gone", "aborted"])
def test_a_caller_that_left_and_our_own_end_are_no_failure_of_the_backend(code: str) -> None:
    found = Rates()
    found.feed([row(NOW, 1.0, errors=(code,))], NOW)
    assert found.pace("box", NOW + 1).failed_last_minute == 0 == found.pace(EVERYBODY, NOW + 1).failed_last_minute
    assert found.failure("box") is None


def test_history_and_the_future_change_nothing() -> None:
    found = Rates()
    found.feed([row(NOW - 3600, 1.0, tokens=5), row(NOW + 3600, 1.0, tokens=5)], NOW)
    assert found.pace("box", settled()) == IDLE == found.pace(EVERYBODY, settled())


def test_a_refused_request_counts_for_everybody_alone() -> None:
    found = Rates()
    found.feed([row(NOW, 0.1, backend=None)], NOW)
    assert found.pace(EVERYBODY, settled()).requests_per_s == 0.1


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 100), st.floats(0, 1), st.integers(0, 10_000)), max_size=40))
def test_memory_is_bounded_and_no_token_is_invented(rows: list[tuple[float, float, float, int]]) -> None:
    found = Rates()
    total = 0
    for ended_s, total_s, share, tokens in rows:
        found.feed([row(NOW + ended_s, total_s, total_s * share, tokens=tokens)], NOW + ended_s)
        total += tokens
    assert all(len(seconds) <= FAILURES_S + LATE_S + 202 for seconds in found._seconds.values())
    assert found.pace("box", NOW + 200).tokens_per_s * RATE_S <= total + 1


def test_backends_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_BACKENDS", 2)
    found = Rates()
    found.feed([row(NOW, 1.0, backend=name) for name in ("a", "b", "c")], NOW)
    assert found.pace("b", settled()).requests_per_s == 0.1
    assert found.pace("c", settled()) == IDLE
    assert found.left_out == 1
