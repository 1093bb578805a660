from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import combinations
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core import jobs
from fleetproxy.core.cron import parse
from fleetproxy.core.jobs import CLOSE, SLOT_STEP, Job, Occurrence, conflict, conflicts, in_conflict, open_slots, plan

NOW = datetime(2026, 3, 28, 22, tzinfo=UTC)  # the clocks of Berlin go forward three hours later
BERLIN = ZoneInfo("Europe/Berlin")


def occurrence(
    start_s: int, length_s: int, job_id: int, model: str, server_id: int | None = None, *, needs_bytes: int = 0
) -> Occurrence:
    start = NOW + timedelta(seconds=start_s)
    room_bytes = 10 if needs_bytes else 0
    return Occurrence(start, job_id, start + timedelta(seconds=length_s), model, server_id, needs_bytes, room_bytes)


runs = st.lists(
    st.builds(
        occurrence,
        st.integers(0, 4000),
        st.integers(1, 3000),
        st.integers(1, 5),
        st.sampled_from(["phi", "phi:latest", "llama"]),
        st.sampled_from([None, None, 1, 2]),
        needs_bytes=st.sampled_from([0, 4, 7]),
    ),
    max_size=25,
    unique_by=lambda run: (run.job_id, run.start),
)


def job(number: int, expression: str, model: str = "phi", duration_s: int = 60, enabled: bool = True) -> Job:
    return Job(
        id=number,
        name=f"job {number}",
        source_identifier="test",
        cron_expression=expression,
        timezone="Europe/Berlin",
        target_model=model,
        expected_duration_ms=duration_s * 1000,
        is_enabled=enabled,
        created_at=NOW,
        updated_at=NOW,
    )


EXPRESSIONS = ["0 * * * *", "*/20 * * * *", "30 2 * * *", "0 2,3 * * *", "15 1-4 * * *", "2 3 * * *", "H * * * *"]
planned = st.lists(
    st.tuples(st.sampled_from(EXPRESSIONS), st.sampled_from(["phi", "llama"]), st.integers(1, 7200)), max_size=6
).map(lambda rows: [job(n, *row) for n, row in enumerate(rows, 1)])


def crons_of(these: list[Job]) -> dict[int, jobs.Cron]:
    return {one.id: parse(one.cron_expression, BERLIN, one.id) for one in these}


def key(one: jobs.Conflict) -> tuple[object, ...]:
    return one.first.job_id, one.first.start, one.second.job_id, one.second.start, one.kind


@given(runs)
def test_a_conflict_is_one_from_both_sides_and_never_with_itself(these: list[Occurrence]) -> None:
    for one, other in combinations(these, 2):
        assert conflict(one, other) == conflict(other, one)
    assert all(conflict(one, one) is None for one in these)


@given(runs)
def test_conflicts_are_exactly_the_pairs_in_conflict(these: list[Occurrence]) -> None:
    found = conflicts(these)
    pairs = {
        frozenset({(one.job_id, one.start), (other.job_id, other.start)}): kind
        for one, other in combinations(these, 2)
        if (kind := conflict(one, other))
    }
    assert {
        frozenset({(c.first.job_id, c.first.start), (c.second.job_id, c.second.start)}): c.kind for c in found
    } == pairs
    assert len(found) == len(pairs)
    assert [c.start for c in found] == sorted(c.start for c in found)


@given(runs, st.randoms())
def test_the_order_of_runs_does_not_matter(these: list[Occurrence], rng: object) -> None:
    shuffled = list(these)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert list(map(key, conflicts(shuffled))) == list(map(key, conflicts(these)))


@given(runs, st.integers(1, 5))
def test_the_conflicts_of_one_job_are_those_of_all_that_name_it(these: list[Occurrence], number: int) -> None:
    expected = [c for c in conflicts(these) if number in (c.first.job_id, c.second.job_id)]
    assert sorted(map(key, conflicts(these, only=number))) == sorted(map(key, expected))


@given(planned, st.sampled_from(EXPRESSIONS))
def test_adding_a_job_never_removes_a_conflict(these: list[Job], expression: str) -> None:
    end = NOW + timedelta(hours=12)
    before = {key(c) for c in conflicts(plan(these, crons_of(these), NOW, end).runs)}
    more = [*these, job(99, expression)]
    after = {key(c) for c in conflicts(plan(more, crons_of(more), NOW, end).runs)}
    assert before <= after


@given(planned)
def test_a_plan_has_each_time_of_each_job_once_also_when_the_clocks_move(these: list[Job]) -> None:
    end = NOW + timedelta(hours=12)
    found = plan(these, crons_of(these), NOW, end)
    assert found.complete_until is None
    for one in these:
        mine = [run.start for run in found.runs if run.job_id == one.id]
        assert mine == [due for due in crons_of([one])[one.id].next(NOW - timedelta(seconds=1), 100) if due < end]
    assert [run.start for run in found.runs] == sorted(run.start for run in found.runs)
    assert all(NOW <= run.start < end for run in found.runs)


@given(planned)
def test_running_adds_the_runs_that_go_on_at_the_start(these: list[Job]) -> None:
    end = NOW + timedelta(hours=6)
    with_running = plan(these, crons_of(these), NOW, end, running=True).runs
    assert [run for run in with_running if run.start >= NOW] == list(plan(these, crons_of(these), NOW, end).runs)
    assert all(run.end > NOW for run in with_running)


def test_jobs_that_are_off_or_unreadable_have_no_runs() -> None:
    off, unreadable = job(1, "* * * * *", enabled=False), job(2, "* * * * *")
    assert plan([off, unreadable], crons_of([off]), NOW, NOW + timedelta(hours=1)).runs == ()


def test_a_run_due_at_the_very_start_is_in_the_plan() -> None:
    hourly = job(1, "0 * * * *")
    assert [run.start for run in plan([hourly], crons_of([hourly]), NOW, NOW + timedelta(hours=2)).runs] == [
        NOW,
        NOW + timedelta(hours=1),
    ]


def test_touching_ends_are_no_same_model_conflict_and_five_minutes_no_time_overlap() -> None:
    long, next_one = occurrence(0, 600, 1, "phi"), occurrence(600, 600, 2, "phi")
    assert conflict(long, next_one) is None
    assert conflict(occurrence(0, 601, 1, "phi"), next_one) == "same_model"
    assert conflict(occurrence(0, 10, 1, "phi"), occurrence(299, 10, 2, "llama")) == "time_overlap"
    assert conflict(occurrence(0, 10, 1, "phi"), occurrence(300, 10, 2, "llama")) is None
    assert conflict(occurrence(0, 900, 1, "phi"), occurrence(600, 10, 2, "llama")) is None


def test_runs_on_two_servers_are_in_nobodys_way() -> None:
    one, other = occurrence(0, 600, 1, "phi", 1), occurrence(0, 600, 2, "phi", 2)
    assert conflict(one, other) is None
    assert conflict(one, occurrence(0, 600, 2, "phi")) == "same_model"  # which may go anywhere, to that server too
    assert [c.server_id for c in conflicts([one, occurrence(0, 600, 2, "phi", 1)])] == [1]
    assert [c.server_id for c in conflicts([one, occurrence(0, 600, 2, "phi")])] == [None]


def test_models_that_do_not_fit_together_are_in_each_others_way_as_long_as_both_run() -> None:
    long = occurrence(0, 3600, 1, "phi", 1, needs_bytes=7)
    (found,) = conflicts([long, occurrence(1800, 60, 2, "llama", 1, needs_bytes=4)])
    assert (found.kind, found.exceeds_memory) == ("time_overlap", True)
    for fits in (
        occurrence(1800, 60, 2, "llama", 1, needs_bytes=3),  # ten of ten
        occurrence(3600, 60, 2, "llama", 1, needs_bytes=4),  # ends touch
        occurrence(1800, 60, 2, "llama", 2, needs_bytes=4),  # elsewhere
        occurrence(1800, 60, 2, "llama", None, needs_bytes=4),  # anywhere
        occurrence(1800, 60, 2, "llama", 1, needs_bytes=0),  # of a size nobody knows
    ):
        assert conflicts([long, fits]) == []
    (close,) = conflicts([long, occurrence(60, 60, 2, "llama", 1, needs_bytes=3)])
    assert (close.kind, close.exceeds_memory) == ("time_overlap", False)


def test_one_model_under_two_names_is_one_model() -> None:
    one, other = (
        occurrence(0, 3600, 1, "phi", 1, needs_bytes=7),
        occurrence(1800, 60, 2, "phi:latest", 1, needs_bytes=7),
    )
    (found,) = conflicts([one, other])
    assert (found.kind, found.exceeds_memory) == ("same_model", False)
    assert open_slots([one], "phi:latest", timedelta(hours=1), NOW, NOW + timedelta(minutes=31)) == []


def test_a_plan_knows_servers_and_memory() -> None:
    hourly = msgspec.structs.replace(job(1, "0 * * * *"), preferred_server_id=3)
    end = NOW + timedelta(hours=1)
    (run,) = plan([hourly], crons_of([hourly]), NOW, end, memory={1: (5, 24)}).runs
    assert (run.server_id, run.needs_bytes, run.room_bytes) == (3, 5, 24)
    (run,) = plan([hourly], crons_of([hourly]), NOW, end).runs
    assert (run.server_id, run.needs_bytes, run.room_bytes) == (3, 0, 0)


@given(runs)
def test_runs_are_marked_when_a_conflict_of_their_job_covers_them(these: list[Occurrence]) -> None:
    found = conflicts(these)
    expected = [
        any(run.job_id in (c.first.job_id, c.second.job_id) and c.start < run.end and run.start < c.end for c in found)
        for run in these
    ]
    assert in_conflict(these, found) == expected


@given(runs, st.sampled_from(["phi", "llama", "new"]), st.integers(1, 7200))
def test_open_slots_are_in_nobodys_way_and_none_is_left_out(these: list[Occurrence], model: str, length_s: int) -> None:
    duration, end = timedelta(seconds=length_s), NOW + timedelta(hours=4)
    found = open_slots(these, model, duration, NOW, end)
    expected = []
    slot = NOW
    while slot < end:
        trial = Occurrence(slot, 0, slot + duration, model)
        if not any(abs(run.start - slot) < CLOSE or conflict(trial, run) for run in these):
            expected.append(slot)
        slot += SLOT_STEP
    assert found == expected[: jobs.MAX_SLOTS]


def test_ten_thousand_jobs_for_a_week_cost_little() -> None:
    for expression in ("{m} {h} * * *", "* * * * *", "* * * * * *", "H H * * *", "0 0 29 2 *", "0 0 * * *"):
        many = [job(n, expression.format(m=n % 60, h=n % 24), f"m{n % 7}", n % 3000 + 1) for n in range(10_000)]
        crons = crons_of(many)
        began = time.process_time()
        found = plan(many, crons, NOW, NOW + timedelta(hours=168))
        clashes = conflicts(found.runs)
        in_conflict(found.runs, clashes)
        open_slots(found.runs, "m1", timedelta(minutes=1), NOW, NOW + timedelta(hours=168))
        assert time.process_time() - began < 3
        assert len(found.runs) <= jobs.MAX_RUNS
        assert len(clashes) <= jobs.MAX_CONFLICTS
        if len(found.runs) == jobs.MAX_RUNS:
            assert found.complete_until


verdicts = st.sampled_from(["skip", "wait", "allow"])


@given(verdicts, st.integers(0, 10_000), st.integers(0, 3600), st.booleans())
def test_a_slot_is_run_left_out_or_missed_by_rule(overlap: str, late_s: int, grace_s: int, running: bool) -> None:
    one = Job(
        **{f: getattr(job(1, "* * * * *"), f) for f in Job.__struct_fields__}
        | {"overlap": overlap, "misfire_grace_s": grace_s}
    )
    found = jobs.verdict(one, NOW, NOW + timedelta(seconds=late_s), running)
    if late_s > grace_s:
        assert found == "missed"
    elif not running or overlap == "allow":
        assert found == "run"
    else:
        assert found == {"skip": "skipped", "wait": "wait"}[overlap]
