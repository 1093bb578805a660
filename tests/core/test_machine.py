"""Words of metrics agents, of every make."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.machine import MAX_BOOTS, Machine, cause, new_boots, read

SAID = {
    "hostname": "gpu1",
    "uptime_seconds": 4000.5,
    "boot_time": "2026-11-21T10:00:00",
    "temperatures": {"cpu": 51.6, "gpu": 70},
    "memory": {
        "total_mb": 64000.5,
        "used_mb": 32000,
        "available_mb": 30000,
        "swap_total_mb": 8000,
        "swap_used_mb": 1,
    },
    "load_avg": [1.5, 1, 0.25],
    "cpu_percent": 12.5,
    "gpu_percent": None,
    "recent_boots": ["Mon Feb 10 12:00:00 2026", "Sun Feb 9 12:00:00 2026"],
    "reboot_causes": {"Mon Feb 10 12:00:00 2026": {"cause": "user_command", "detail": "sudo reboot", "user": "ann"}},
    "disk": {"total_gb": 900.1, "used_gb": 400, "free_gb": 500},
}


def machine(**changes: object) -> Machine:
    report = read(json.dumps({**SAID, **changes}).encode())
    assert report is not None
    return report.machine


def test_the_documented_answer_is_read_whole() -> None:
    assert machine() == Machine(
        cpu_temp_c=51.6,
        gpu_temp_c=70.0,
        cpu_percent=12.5,
        mem_total_mb=64000.5,
        mem_used_mb=32000.0,
        mem_available_mb=30000.0,
        swap_total_mb=8000.0,
        swap_used_mb=1.0,
        load_avg_1=1.5,
        load_avg_5=1.0,
        load_avg_15=0.25,
        uptime_s=4000.5,
        disk_total_gb=900.1,
        disk_used_gb=400.0,
        recent_boots=("Mon Feb 10 12:00:00 2026", "Sun Feb 9 12:00:00 2026"),
    )


def test_temperatures_by_sensor_give_the_hottest() -> None:
    found = machine(temperatures={"thermal_zone0": 40.5, "thermal_zone1": 48, "gpu0": 60, "gpu1": 66.5, "nvme": 90})
    assert (found.cpu_temp_c, found.gpu_temp_c) == (48.0, 66.5)


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ({"cause": "user_command", "detail": "sudo reboot", "user": "ann"}, "sudo reboot (ann)"),
        ({"cause": "user_command", "detail": "sudo reboot"}, "sudo reboot"),
        ({"cause": "power_button", "detail": "Power key pressed", "user": "x"}, "Power key pressed"),
        ({"cause": "unknown", "detail": "?"}, None),
        ({}, None),
        ("nonsense", None),
    ],
)
@pytest.mark.parametrize("key", ["B", "last"])
def test_the_cause_of_a_reboot_is_found_under_its_boot_or_under_last(key: str, why: object, words: str | None) -> None:
    report = read(json.dumps({**SAID, "reboot_causes": {key: why}}).encode())
    assert report is not None
    assert cause(report, "B") == words


def test_boots_are_new_only_against_an_earlier_answer() -> None:
    assert new_boots(None, ("a",)) == ()
    assert new_boots(("a",), ("b", "a")) == ("b",)
    assert new_boots(("b", "a"), ("b",)) == ()


@pytest.mark.parametrize(
    "body", [b"", b"# HELP node_load1\nnode_load1 0.5\n", b"[]", b"{}", b'{"status":"ok"}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_agent_is_left_alone(body: bytes) -> None:
    assert read(body) is None


def test_nonsense_counts_as_absent() -> None:
    found = machine(
        temperatures={"cpu": "hot", "thermal_zone0": None, "gpu": -300},
        memory={"total_mb": -1, "used_mb": True},
        load_avg=["x", 1],
        cpu_percent=1e300,
        disk=7,
        recent_boots=["a", "a", 1, "b\nc", *(str(n) for n in range(100))],
    )
    assert (found.cpu_temp_c, found.gpu_temp_c, found.mem_total_mb, found.mem_used_mb) == (None, None, None, None)
    assert (found.load_avg_1, found.load_avg_5, found.load_avg_15) == (None, 1.0, None)
    assert (found.cpu_percent, found.disk_total_gb) == (None, None)
    assert len(found.recent_boots) <= MAX_BOOTS
    assert found.recent_boots[0] == "a"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(SAID)), JSON))
def test_any_object_is_read_into_numbers_that_can_be_stored_or_left_alone(said: dict[str, object]) -> None:
    report = read(json.dumps(said).encode())
    if report is not None:
        assert msgspec.json.decode(msgspec.json.encode(report.machine), type=Machine) == report.machine
