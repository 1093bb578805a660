"""The analytics bench, small: everything the dashboard asks is answered, quickly enough by a wide margin."""

from __future__ import annotations

from pathlib import Path

from bench import analytics, history
from bench.analytics import Outcome
from fleetproxy.settings import Analytics


async def test_the_dashboards_questions_stay_quick_and_rows_are_loaded_meanwhile(tmp_path: Path) -> None:
    """By CPU time, which other work on the machine stretches far less, and far from the limits of the whole bench."""
    outcome = await analytics.measure(tmp_path, 120_000, 1, 15_000, Analytics(), times=1)
    assert {one.question for one in outcome.timed} >= {"analytics", "requests", "usage", "series: requests by model"}
    slow = [(one.question, one.hours, round(one.cpu_ms)) for one in outcome.timed if one.cpu_ms > 1000]
    assert not slow
    assert outcome.loaded.rows_cpu_s > 12_000
    assert outcome.loaded.answers >= len(analytics.MEANWHILE)
    page = analytics.markdown(outcome, "2026-11-21")
    assert "| analytics |" in page
    assert page.count("\n| ") == 2 + len(outcome.timed) // 2


def test_a_missed_limit_is_said() -> None:
    timed = [
        analytics.Timed("analytics", 24, 301.0, 400.0, 90.0),
        analytics.Timed("usage", 720, 1999.0, 2500.0, 3000.0),
    ]
    outcome = Outcome(1, 1, 1, 1.0, timed, analytics.Loaded(1000, 0.1, 0.01, 1, 1.0))
    assert analytics.misses(outcome) == [
        "analytics, 24 h: 301 ms, at most 300",
        "loading: 10,000 rows/s, at least 50,000",
    ]
    assert analytics.misses(outcome, by_cpu=True) == ["usage, 720 h: 3000 ms, at most 2000"]


def test_the_made_up_history_is_the_same_each_time(tmp_path: Path) -> None:
    import duckdb

    sums = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        history.write(folder, 300, 1, Analytics())
        with duckdb.connect(str(folder / "analytics.duckdb"), read_only=True) as connection:
            sums.append(
                connection.execute("SELECT sum(total_ms), sum(tokens_in), max(started_at) FROM requests").fetchone()
            )
            assert connection.execute("SELECT count(*) FROM rollup_pending").fetchone() == (1,)
    assert sums[0] == sums[1]
