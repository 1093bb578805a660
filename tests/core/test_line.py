from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleetproxy.core.line import Entry, Line

COLUMNS = (0, 1, 2)


def entry(number: int, principal: str = "a", columns: tuple[int, ...] = (0,), **times: float) -> Entry:
    return Entry(
        key=(1, number),
        principal=principal,
        columns=columns,
        joined_s=times.get("joined_s", 0.0),
        deadline_s=times.get("deadline_s", 100.0),
    )


@st.composite
def crowds(draw: st.DrawFn, columns: tuple[int, ...] = (0,)) -> list[Entry]:
    wanted = st.lists(st.sampled_from(columns), min_size=1, max_size=len(columns), unique=True)
    who = draw(st.lists(st.tuples(st.sampled_from("abcd"), wanted), max_size=24))
    return [entry(number, principal, tuple(wants)) for number, (principal, wants) in enumerate(who, 1)]


def full(crowd: list[Entry]) -> Line:
    line = Line(1000)
    for one in crowd:
        assert line.join(one) is None
    return line


def serve(line: Line, column: int) -> Entry | None:
    """One slot of a column comes free and is used at once."""
    grants = line.grant({column: 1}, 0.0)
    for grant in grants:
        line.taken(grant.entry.key)
    return grants[0].entry if grants else None


@given(crowds())
def test_everybody_is_served_exactly_once(crowd: list[Entry]) -> None:
    line = full(crowd)
    served = [serve(line, 0) for _ in crowd]
    assert sorted(one.key for one in served if one) == sorted(one.key for one in crowd)
    assert serve(line, 0) is None
    assert len(line) == 0
    assert list(line.columns()) == []


@given(crowds(), st.integers(0, 40), st.integers(0, 10))
def test_never_more_grants_than_free_slots(crowd: list[Entry], free: int, later: int) -> None:
    line = full(crowd)
    first = line.grant({0: free}, 0.0)
    assert len(first) == min(free, len(crowd))
    # Nothing was taken yet: the same free slots are kept, only additional ones are given.
    again = line.grant({0: free + later}, 0.0)
    assert len(again) == min(later, len(crowd) - len(first))
    assert line.kept(0) == len(first) + len(again)


@given(crowds(COLUMNS), st.lists(st.sampled_from(COLUMNS), max_size=60))
def test_within_a_principal_the_oldest_that_can_use_the_slot_comes_first(crowd: list[Entry], frees: list[int]) -> None:
    line, left = full(crowd), list(crowd)
    for column in frees:
        got = serve(line, column)
        able = [one for one in left if column in one.columns]
        assert (got is None) == (not able)
        if got is not None:
            assert got == next(one for one in able if one.principal == got.principal)
            left.remove(got)


@given(crowds(COLUMNS), st.lists(st.sampled_from(COLUMNS), max_size=60))
def test_no_principal_gets_a_second_slot_before_another_waiting_one_got_its_first(
    crowd: list[Entry], frees: list[int]
) -> None:
    line, left = full(crowd), list(crowd)
    since: dict[tuple[int, str], Counter[str]] = {}
    for column in frees:
        for one in left:
            if column in one.columns:
                since.setdefault((column, one.principal), Counter())
        got = serve(line, column)
        if got is None:
            continue
        left.remove(got)
        for (where, principal), overtaken in list(since.items()):
            if where == column and principal != got.principal:
                overtaken[got.principal] += 1
                assert overtaken[got.principal] <= 1, f"{principal} was overtaken twice by {got.principal}"
        since.pop((column, got.principal), None)
        for key in [k for k in since if not any(k[0] in one.columns and one.principal == k[1] for one in left)]:
            del since[key]


def test_a_busy_principal_cannot_starve_another_by_traffic_elsewhere() -> None:
    line = full([entry(1, "a", (1,)), entry(2, "b", (1,)), entry(3, "b", (1,)), entry(4, "a", (1,))])
    number = 10
    order = []
    for _ in range(3):
        for _ in range(5):  # `a` is served again and again on another column
            number += 1
            line.join(entry(number, "a", (0,)))
            assert serve(line, 0) is not None
        got = serve(line, 1)
        assert got is not None
        order.append(got.principal)
    assert order == ["a", "b", "a"]


@given(crowds())
def test_the_places_told_are_the_order_of_service(crowd: list[Entry]) -> None:
    line = full(crowd)
    places = line.positions()
    assert sorted(places.values()) == list(range(1, len(crowd) + 1))
    served = [serve(line, 0) for _ in crowd]
    assert [places[one.key] for one in served if one] == list(range(1, len(crowd) + 1))


@given(crowds(COLUMNS))
def test_every_waiting_entry_has_a_place_and_each_service_moves_nobody_back(crowd: list[Entry]) -> None:
    line = full(crowd)
    before = line.positions()
    assert before.keys() == {one.key for one in crowd}
    for column in COLUMNS:
        serve(line, column)
        after = line.positions()
        if len(COLUMNS) == 1:
            assert all(after[key] <= before[key] for key in after)
        assert after.keys() == {one.key for one in line.entries()}


def test_the_preferred_free_column_is_given() -> None:
    line = full([entry(1, columns=(2, 1))])
    (grant,) = line.grant({1: 1, 2: 1}, 0.0)
    assert grant.column == 2
    assert line.kept(1) == 0


def test_a_preference_does_not_jump_a_turn() -> None:
    line = full([entry(1, "a", (2,)), entry(2, "b", (2, 1))])
    grants = line.grant({1: 1, 2: 1}, 0.0)
    assert {(g.entry.key[1], g.column) for g in grants} == {(1, 2), (2, 1)}


@given(crowds(COLUMNS), st.data())
def test_leaving_works_at_once(crowd: list[Entry], data: st.DataObject) -> None:
    line = full(crowd)
    gone = data.draw(st.lists(st.sampled_from(crowd), unique=True)) if crowd else []
    for one in gone:
        assert line.leave(one.key) is None
        assert one.key not in line
    left = [one for one in crowd if one not in gone]
    for column in COLUMNS:
        assert line.waiting(column) == sum(column in one.columns for one in left)
    grants = line.grant(dict.fromkeys(COLUMNS, 100), 0.0)
    assert {g.entry.key for g in grants} == {one.key for one in left}


def test_a_slot_given_back_goes_to_the_next() -> None:
    line = full([entry(1), entry(2)])
    (first,) = line.grant({0: 1}, 0.0)
    assert line.grant({0: 1}, 0.0) == []
    assert line.leave(first.entry.key) == 0
    (second,) = line.grant({0: 1}, 0.0)
    assert second.entry.key == (1, 2)
    assert line.taken(second.entry.key) == 0
    assert line.taken(second.entry.key) is None
    assert line.kept(0) == 0


def test_a_lost_connection_takes_its_waiters_and_its_grants_along() -> None:
    line = Line(10)
    for connection in (1, 2):
        for number in (1, 2):
            key = (connection, number)
            line.join(Entry(key=key, principal="p", columns=(0,), joined_s=0.0, deadline_s=9.0))
    (granted,) = line.grant({0: 1}, 0.0)
    assert granted.entry.key == (1, 1)
    assert line.leave_all(1) == [0]
    assert [one.key for one in line.entries()] == [(2, 1), (2, 2)]
    assert line.kept(0) == 0


@given(st.lists(st.floats(0, 100), max_size=20), st.floats(0, 100))
def test_exactly_the_entries_whose_time_is_up_expire(deadlines: list[float], now_s: float) -> None:
    line = full([entry(number, deadline_s=at) for number, at in enumerate(deadlines, 1)])
    assert line.next_deadline_s() == min(deadlines, default=None)
    assert [one.deadline_s for one in line.expire(now_s)] == [at for at in deadlines if at <= now_s]
    assert all(one.deadline_s > now_s for one in line.entries())


@given(st.integers(0, 6), st.lists(st.sampled_from("aaab"), max_size=30))
def test_the_line_is_bounded_and_turns_away_one_for_each_that_does_not_fit(size: int, who: list[str]) -> None:
    line, away = Line(size), 0
    for number, principal in enumerate(who, 1):
        away += line.join(entry(number, principal)) is not None
        assert len(line) <= size
    assert len(line) == len(who) - away


@given(st.integers(1, 12), st.lists(st.sampled_from("abc"), max_size=60))
def test_a_principal_within_its_fair_share_is_never_turned_away(size: int, who: list[str]) -> None:
    line, held = Line(size), Counter[str]()
    for number, principal in enumerate(who, 1):
        turned = line.join(entry(number, principal))
        held[principal] += 1
        if turned is not None:
            assert held[turned.principal] > size // 3, "three principals share the line"
            held[turned.principal] -= 1


def test_a_newcomer_displaces_the_newest_of_the_greediest() -> None:
    line = full([entry(1, "a"), entry(2, "a"), entry(3, "a")])
    line.size = 3
    assert line.join(entry(4, "b")) == entry(3, "a")
    assert line.displaced == 1
    assert line.join(entry(5, "b")) == entry(5, "b")


def test_a_key_joins_once() -> None:
    line = full([entry(1)])
    with pytest.raises(ValueError, match="waits already"):
        line.join(entry(1))
    line.grant({0: 1}, 0.0)
    with pytest.raises(ValueError, match="waits already"):
        line.join(entry(1))


@given(st.integers(1, 200), st.floats(0.02, 20.0), st.integers(0, 30))
def test_retry_after_is_the_line_divided_by_the_observed_rate(served: int, every_s: float, ahead: int) -> None:
    line, now_s = Line(1000), 0.0
    for number in range(served):
        line.join(entry(number + 1, joined_s=now_s))
        now_s += every_s
        assert line.grant({0: 1000}, now_s)
    for number in range(ahead):
        line.join(entry(10_000 + number))
    expected = (ahead + 1) * every_s
    assert min(max(expected * 0.5, 1.0), 60.0) <= line.retry_after_s((0,), now_s)
    if now_s > 1.0:
        assert line.retry_after_s((0,), now_s) <= min(max(math.ceil(expected * 1.5) + 1, 1.0), 60.0)


def test_retry_after_has_a_word_for_not_knowing_and_forgets_on_request() -> None:
    line = full([entry(1)])
    assert line.retry_after_s((0,), 0.0) == 5.0
    line.grant({0: 1}, 1.0)
    assert list(line.rated()) == [0]
    line.forget([0])
    assert line.retry_after_s((0,), 1.0) == 5.0


class LineMachine(RuleBasedStateMachine):
    """A fleet with real slots beside the line: what is granted must fit, what fits must be granted."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line(8)
        self.number = 0
        self.slots = {0: 1, 1: 2, 2: 0}
        self.used = Counter[int]()
        self.kept: dict[tuple[int, int], int] = {}

    def free(self) -> dict[int, int]:
        return {column: slots - self.used[column] for column, slots in self.slots.items()}

    def give(self) -> None:
        for grant in self.line.grant(self.free(), 0.0):
            assert grant.column in grant.entry.columns
            assert grant.entry.key not in self.kept
            self.kept[grant.entry.key] = grant.column

    @rule(
        principal=st.sampled_from("abc"),
        connection=st.integers(1, 2),
        columns=st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True),
    )
    def join(self, principal: str, connection: int, columns: list[int]) -> None:
        self.number += 1
        key = (connection, self.number)
        self.line.join(Entry(key=key, principal=principal, columns=tuple(columns), joined_s=0, deadline_s=1))
        self.give()

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.kept)))
        column = self.kept.pop(key)
        self.used[column] += 1  # counted on the board first, then said
        assert self.line.grant(self.free(), 0.0) == []
        assert self.line.taken(key) == column

    @rule(column=st.sampled_from(COLUMNS))
    def finish(self, column: int) -> None:
        if self.used[column]:
            self.used[column] -= 1
            self.give()

    @precondition(lambda self: self.kept or len(self.line))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        keys = sorted(self.kept) + sorted(one.key for one in self.line.entries())
        key = data.draw(st.sampled_from(keys))
        assert self.line.leave(key) == self.kept.pop(key, None)
        self.give()

    @rule(connection=st.integers(1, 2))
    def lose(self, connection: int) -> None:
        self.line.leave_all(connection)
        self.kept = {key: column for key, column in self.kept.items() if key[0] != connection}
        self.give()

    @rule(column=st.sampled_from(COLUMNS), slots=st.integers(0, 3))
    def resize(self, column: int, slots: int) -> None:
        grown = slots >= self.slots[column]
        self.slots[column] = slots
        if grown:
            self.give()

    @invariant()
    def kept_slots_agree(self) -> None:
        counts = Counter(self.kept.values())
        assert all(self.line.kept(column) == counts[column] for column in COLUMNS)

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        free = self.free()
        for column in COLUMNS:
            if free[column] - self.line.kept(column) > 0:
                assert self.line.waiting(column) == 0

    @invariant()
    def the_line_is_bounded(self) -> None:
        assert len(self.line) <= 8


LineMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLine = LineMachine.TestCase
