from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.alerts import COOLDOWN_S, Line, Readings, alerts, checked, cooled

numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@given(st.builds(Readings, **dict.fromkeys(Readings.__struct_fields__, numbers)))
def test_any_readings_give_finite_alerts_each_kind_once(readings: Readings) -> None:
    found = alerts(readings)
    assert len({alert.kind for alert in found}) == len(found)
    assert all(0 <= alert.value <= 250 for alert in found)


@given(st.floats(0, 84.99), st.floats(0, 89.99), st.floats(0, 0.899), st.floats(0.1, 1))
def test_ordinary_readings_alarm_nobody(cpu: float, gpu: float, disk: float, free: float) -> None:
    assert not alerts(
        Readings(
            cpu_temp_c=cpu,
            gpu_temp_c=gpu,
            disk_total_gb=1000,
            disk_used_gb=1000 * disk,
            mem_total_mb=64000,
            mem_available_mb=64000 * free,
        )
    )


def test_limits_are_where_they_are_said_to_be() -> None:
    edge = Readings(
        cpu_temp_c=85, gpu_temp_c=90, disk_total_gb=100, disk_used_gb=90, mem_total_mb=1000, mem_available_mb=99
    )
    assert [alert.kind for alert in alerts(edge)] == ["gpu_temp", "cpu_temp", "disk", "memory"]
    assert not alerts(Readings(mem_total_mb=1000, mem_available_mb=100))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_same_alert_waits_for_its_cooldown(told_s: float, later_s: float) -> None:
    assert cooled({(1, "disk"): told_s}, 1, "disk", told_s + later_s) == (told_s + later_s - told_s >= COOLDOWN_S)
    assert cooled({(1, "disk"): told_s}, 2, "disk", told_s)
    assert cooled({(1, "disk"): told_s}, 1, "memory", told_s)


checks = st.lists(st.booleans(), max_size=40)


@given(checks, st.integers(1, 6))
def test_the_line_is_down_after_so_many_failures_in_a_row_and_up_at_the_first_success(
    outcomes: list[bool], threshold: int
) -> None:
    line = Line()
    for place, reachable in enumerate(outcomes):
        line = checked(line, reachable, float(place), threshold)
        so_far = outcomes[: place + 1]
        in_a_row = next((n for n, good in enumerate(reversed(so_far)) if good), len(so_far))
        ever_up = any(so_far)
        assert line.is_down == (ever_up and in_a_row >= threshold)
        if in_a_row:
            assert line.failing_since_s == place - in_a_row + 1
