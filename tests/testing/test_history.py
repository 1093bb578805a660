from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from fleetproxy.control.analytics.rows import ModelEvent
from fleetproxy.core.record import AuditRecord
from fleetproxy.testing import history
from fleetproxy.testing.demo import FLEET, PAST

NOW_S = 1_800_000_000.0


@pytest.fixture(scope="module")
def made() -> list[AuditRecord]:
    return list(history.requests(7, NOW_S, PAST))


def test_the_past_is_the_one_of_the_demos_servers() -> None:
    assert [machine.name for machine in PAST] == [profile.name for profile in FLEET]
    assert [machine.id for machine in PAST] == list(range(1, len(FLEET) + 1))
    assert all(set(machine.models) == set(profile.models) for machine, profile in zip(PAST, FLEET, strict=True))


def test_one_seed_has_one_past(made: list[AuditRecord]) -> None:
    assert list(itertools.islice(history.requests(7, NOW_S, PAST), 200)) == made[:200]
    assert list(itertools.islice(history.requests(8, NOW_S, PAST), 200)) != made[:200]


def test_requests_are_of_the_last_days_in_order_and_tell_one_story(made: list[AuditRecord]) -> None:
    times = [row.started_at_us / 1e6 for row in made]
    assert times == sorted(times)
    assert NOW_S - history.DAYS * 86400 <= times[0] < times[-1] < NOW_S
    assert len({row.request_id for row in made}) == len(made) > 2000
    assert {row.outcome for row in made} == {"ok", "refused", "client_gone", "truncated"}
    for row in made:
        assert (row.backend is None) == (not row.attempts) == (row.outcome == "refused")
        assert row.ttft_ms is None or 0 < row.ttft_ms <= row.total_ms
        assert sum(one.total_ms for one in row.attempts) <= row.total_ms
        assert row.tokens_out is None or row.outcome == "ok"


def test_nobody_is_asked_while_away_or_for_a_model_it_has_not(made: list[AuditRecord]) -> None:
    machines = {machine.name: machine for machine in PAST}
    for row in made:
        if row.backend is not None:
            machine = machines[row.backend]
            assert row.model in machine.models
            assert not history._away(machine, row.started_at_us / 1e6, NOW_S)


def test_models_come_and_leave_by_turns_and_all_have_left() -> None:
    seen: dict[tuple[str, str], list[ModelEvent]] = {}
    for event in history.models(7, NOW_S, PAST):
        seen.setdefault((event.server, event.model), []).append(event)
    assert set(seen) == {(machine.name, model) for machine in PAST for model in machine.models}
    for events in seen.values():
        assert [event.event for event in events] == ["loaded", "unloaded"] * (len(events) // 2)
        assert [event.occurred_at_us for event in events] == sorted(event.occurred_at_us for event in events)
        assert events[-1].occurred_at_us < NOW_S * 1e6


def test_the_spool_has_whole_rows(tmp_path: Path) -> None:
    written = history.write(tmp_path, 7, NOW_S, PAST)
    lines = {path.name.split(".")[0]: path.read_bytes().splitlines() for path in tmp_path.glob("*.ndjson")}
    assert set(lines) == {"requests", "model_events", "server_events"}
    assert sum(map(len, lines.values())) == written
    assert msgspec.json.decode(lines["requests"][0], type=AuditRecord).request_id == "history-000001"
