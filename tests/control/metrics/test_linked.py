from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.metrics.families import OTHER, SHARES_FOR, Family
from fleetproxy.control.metrics.linked import NAMES, PROCESSES, Linked
from fleetproxy.control.metrics.series import Labels, Overflow
from fleetproxy.link.messages import Count


def linked() -> Linked:
    return Linked(SHARES_FOR, Overflow())


def count(**counters: int) -> Count:
    return Count({name.replace("__", ":"): value for name, value in counters.items()}, {})


def by_name(shown: dict[Family, dict[Labels, float]]) -> dict[str, dict[Labels, float]]:
    return {family.exposed: values for family, values in shown.items()}


def test_processes_are_added_up() -> None:
    metrics = linked()
    for process in ("proxy-0", "proxy-1"):
        metrics.started(process, 1)
        metrics.count(process, count(audit_rows=5, retries__connect_failed=2))
    found = by_name(metrics.counters())
    assert found["fleetproxy_audit_rows_total"] == {(): 10}
    assert found["fleetproxy_retries_total"] == {("connect_failed",): 4}


def test_lost_and_repeated_messages_change_nothing() -> None:
    metrics = linked()
    for value in (1, 5, 5, 9):
        metrics.count("proxy-0", count(audit_rows=value))
    assert by_name(metrics.counters())["fleetproxy_audit_rows_total"] == {(): 9}


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5), min_size=1, max_size=6), st.booleans())
def test_a_sum_never_goes_back_when_processes_die(lives: list[list[int]], hello: bool) -> None:
    """Each life counts up from 0; its hello may be missed, then falling values give the new life away."""
    metrics, last = linked(), 0.0
    exact = 0
    for pid, steps in enumerate(lives, 1):
        if hello:
            metrics.started("proxy-0", pid)
        value = 0
        for step in steps:
            value += step
            metrics.count("proxy-0", count(audit_rows=value))
            now = by_name(metrics.counters())["fleetproxy_audit_rows_total"][()]
            assert now >= last
            last = now
        exact += value
    if hello:
        assert last == exact


def test_gauges_of_the_hub_have_no_process_and_their_own_names() -> None:
    metrics = linked()
    metrics.count("hub", Count({}, {"hub_workers": 3.0, "queue_waiting": 2.0}))
    assert by_name(metrics.gauges()) == {
        "fleetproxy_workers_connected": {(): 3.0},
        "fleetproxy_queue_waiting": {(): 2.0},
    }


def test_gauges_are_each_processs_own_and_end_with_it() -> None:
    metrics = linked()
    metrics.started("proxy-0", 1)
    metrics.started("proxy-1", 2)
    metrics.count("proxy-0", Count({}, {"exchanges": 3.0}))
    metrics.count("proxy-1", Count({}, {"exchanges": 4.0}))
    assert by_name(metrics.gauges()) == {"fleetproxy_exchanges": {("proxy-0",): 3.0, ("proxy-1",): 4.0}}
    metrics.left("proxy-0")
    assert by_name(metrics.gauges()) == {"fleetproxy_exchanges": {("proxy-1",): 4.0}}
    metrics.started("proxy-1", 3)
    assert by_name(metrics.gauges()) == {}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("audit_dropped", ("fleetproxy_audit_dropped_total", ("disk",))),
        ("refused:no_backend", ("fleetproxy_refused_total", ("no_backend",))),
        ('fleetproxy_queue_events_total{event="granted"}', ("fleetproxy_queue_events_total", ("granted",))),
        ("memory_answers:/v1/models/{id}", ("fleetproxy_memory_answers_total", ("/v1/models/{id}",))),
        ("something_new", ("fleetproxy_something_new_total", ())),
        ("something_new:cause", ("fleetproxy_something_new_total", ("cause",))),
        ('fleetproxy_mine_total{kind="a b"}', ("fleetproxy_mine_total", ("a b",))),
    ],
)
def test_names_of_the_link(name: str, shown: tuple[str, Labels]) -> None:
    metrics = linked()
    metrics.count("proxy-0", Count({name: 7}, {}))
    assert by_name(metrics.counters()) == {shown[0]: {shown[1]: 7}}


@pytest.mark.parametrize(
    "name",
    ["", "Bad", "a b", "x\n", 'x{a="b"', 'x{a="\n"}', "x" * 100, "é", "requests", "request_duration_seconds_count",
     'x{a="b",c="d"}', "exchanges", ":x", "1x"],
)  # fmt: skip
def test_what_is_no_name_or_another_metrics_is_left_out_and_counted(name: str) -> None:
    overflow = Overflow()
    metrics = Linked(SHARES_FOR, overflow)
    metrics.count("proxy-0", Count({name: 7}, {}))
    assert metrics.counters() == {}
    assert overflow.count > 0


def test_one_name_has_one_kind_and_one_set_of_labels() -> None:
    metrics = linked()
    metrics.count("proxy-0", Count({"thing:a": 1, "thing": 2}, {"thing": 3.0}))
    assert by_name(metrics.counters()) == {"fleetproxy_thing_total": {("a",): 1, ("",): 2}}
    assert metrics.gauges() == {}


def test_causes_names_and_processes_are_capped() -> None:
    metrics = linked()
    for n in range(PROCESSES + 20):
        metrics.started(f"proxy-{n}", n)
        counters = {f"retries:cause{n}": 1, **{f"made_up{m}_{n}": 1 for m in range(NAMES)}}
        metrics.count(f"proxy-{n}", Count(counters, {f"gauge{m}": 1.0 for m in range(NAMES)}))
    counters, gauges = metrics.counters(), metrics.gauges()
    retries = by_name(counters)["fleetproxy_retries_total"]
    assert len(retries) <= 16
    assert sum(retries.values()) == PROCESSES
    assert retries[(OTHER,)] > 0
    assert sum(map(len, counters.values())) <= 16 + 40
    assert sum(map(len, gauges.values())) <= 40
