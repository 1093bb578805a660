"""node_exporter's text, real and broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.exporter import MAX_BYTES, Ticks, read_node_exporter
from fleetproxy.core.machine import new_boots

SAID = b"""\
# HELP node_boot_time_seconds Node boot time, in unixtime.
# TYPE node_boot_time_seconds gauge
node_boot_time_seconds 1.7999e+09
node_time_seconds 1.8e+09
node_cpu_seconds_total{cpu="0",mode="idle"} 900
node_cpu_seconds_total{cpu="0",mode="iowait"} 50
node_cpu_seconds_total{cpu="0",mode="user"} 50
node_filesystem_size_bytes{device="/dev/sda1",fstype="ext4",mountpoint="/"} 1.073741824e+11
node_filesystem_avail_bytes{device="/dev/sda1",fstype="ext4",mountpoint="/"} 5.36870912e+10
node_filesystem_size_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/run"} 5
node_hwmon_chip_names{chip="platform_coretemp_0",chip_name="coretemp"} 1
node_hwmon_temp_celsius{chip="platform_coretemp_0",sensor="temp1"} 51
node_hwmon_temp_celsius{chip="nvme_nvme0",sensor="temp1"} 77
node_thermal_zone_temp{type="x86_pkg_temp",zone="1"} 53.5
node_load1 0.5
node_load5 0.25
node_load15 0.125
node_memory_MemTotal_bytes 6.7108864e+10
node_memory_MemAvailable_bytes 3.3554432e+10
node_memory_SwapTotal_bytes 1048576
node_memory_SwapFree_bytes 0
node_network_info{address="a\\"}b",device="eth0"} 1
node_uname_info{nodename="gpu1"} 1
"""


def test_it_is_read_in_the_words_of_the_agents() -> None:
    found = read_node_exporter(SAID)
    assert found is not None
    machine = found[0].machine
    assert (machine.mem_total_mb, machine.mem_used_mb, machine.mem_available_mb) == (64000.0, 32000.0, 32000.0)
    assert (machine.swap_total_mb, machine.swap_used_mb) == (1.0, 1.0)
    assert (machine.disk_total_gb, machine.disk_used_gb) == (100.0, 50.0)
    assert (machine.load_avg_1, machine.load_avg_5, machine.load_avg_15) == (0.5, 0.25, 0.125)
    assert (machine.cpu_temp_c, machine.gpu_temp_c) == (53.5, None)
    assert machine.uptime_s == 100_000.0
    assert machine.recent_boots == ("2027-01-14T04:13:20Z",)
    assert machine.cpu_percent is None
    assert found[1] == Ticks(50.0, 1000.0)


def test_two_answers_tell_how_busy_the_processor_was() -> None:
    assert Ticks(60.0, 1100.0).percent_since(Ticks(50.0, 1000.0)) == pytest.approx(10.0)
    assert Ticks(60.0, 1000.0).percent_since(Ticks(50.0, 1000.0)) is None
    assert Ticks(1.0, 2.0).percent_since(Ticks(50.0, 1000.0)) is None  # booted meanwhile
    assert Ticks(1.0, 2.0).percent_since(None) is None


def test_a_boot_told_a_second_off_is_the_same_boot() -> None:
    assert new_boots(("2026-11-21T10:00:00Z",), ("2026-11-21T10:00:01Z",)) == ()
    assert new_boots(("2026-11-21T10:00:00Z",), ("2026-11-21T10:05:00Z",)) == ("2026-11-21T10:05:00Z",)
    assert new_boots(("2026-11-21T10:00:00",), ("2026-11-21T10:00:01",)) == ("2026-11-21T10:00:01",)


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"go_goroutines 5\n", b"x" * (MAX_BYTES + 1)])
def test_what_is_none_is_none(body: bytes) -> None:
    assert read_node_exporter(body) is None


@given(st.lists(st.sampled_from(SAID.splitlines()) | st.binary(max_size=40), max_size=30))
def test_nothing_it_says_makes_trouble(lines: list[bytes]) -> None:
    found = read_node_exporter(b"node_boot_time_seconds nan\n" + b"\n".join(lines))
    assert found is not None
    assert all(value is None or value >= 0 for value in (found[0].machine.mem_used_mb, found[0].machine.uptime_s))
