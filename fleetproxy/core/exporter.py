"""What node_exporter says of a machine, in the words of `core.machine`. Bytes in, values out.

Its text has thousands of lines; only those that tell something we show are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from fleetproxy.core.machine import Machine, Report

MAX_BYTES = 4 * 1024 * 1024
_MIB, _GIB = 1024**2, 1024**3
_LINE = re.compile(rb'^(node_[A-Za-z0-9_]+)(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*)\})? +([^ \n]+)', re.MULTILINE)
_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
#: Chips and zones whose temperature is the processor's.
_CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu", "x86_pkg_temp", "soc")
_MARK = b"node_boot_time_seconds"
_LATEST_S = 253_402_300_799.0


class Ticks(msgspec.Struct, frozen=True):
    """Processor seconds since boot: those spent working, and all."""

    busy_s: float
    all_s: float

    def percent_since(self, before: Ticks | None) -> float | None:
        """Share of the time that was spent working since then; None when that cannot be told."""
        if before is None or self.all_s <= before.all_s or self.busy_s < before.busy_s:
            return None
        return min(100.0, 100.0 * (self.busy_s - before.busy_s) / (self.all_s - before.all_s))


def read_node_exporter(body: bytes) -> tuple[Report, Ticks | None] | None:
    """A node_exporter's answer, and its processor ticks (one answer alone tells no share); None when it is none."""
    if _MARK not in body or len(body) > MAX_BYTES:
        return None
    plain: dict[bytes, float] = {}
    sizes: dict[bytes, float] = {}
    temperatures: list[tuple[bool, float]] = []
    chips: dict[bytes, bytes] = {}
    busy_s = all_s = 0.0
    for name, labels, value in _samples(body):
        if name == b"node_cpu_seconds_total":
            mode = labels.get(b"mode")
            all_s += value
            busy_s += value if mode not in (b"idle", b"iowait") else 0.0
        elif name in (b"node_filesystem_size_bytes", b"node_filesystem_avail_bytes"):
            if labels.get(b"mountpoint") == b"/":
                sizes.setdefault(name, value)
        elif name == b"node_hwmon_chip_names":
            chips[labels.get(b"chip", b"")] = labels.get(b"chip_name", b"")
        elif name in (b"node_hwmon_temp_celsius", b"node_thermal_zone_temp"):
            chip = labels.get(b"type") or chips.get(labels.get(b"chip", b"")) or labels.get(b"chip", b"")
            word = chip.decode("ascii", "replace").lower()
            if -50 < value < 200:
                temperatures.append((any(known in word for known in _CPU_CHIPS), value))
        elif not labels:
            plain[name] = value
    booted_s = plain.get(_MARK)
    now_s = plain.get(b"node_time_seconds")
    total, free = (plain.get(b"node_memory_%b_bytes" % word) for word in (b"MemTotal", b"MemAvailable"))
    swap, swap_free = (plain.get(b"node_memory_%b_bytes" % word) for word in (b"SwapTotal", b"SwapFree"))
    disk, disk_free = sizes.get(b"node_filesystem_size_bytes"), sizes.get(b"node_filesystem_avail_bytes")
    machine = Machine(
        cpu_temp_c=max((value for is_cpu, value in temperatures if is_cpu), default=None),
        mem_total_mb=_in(_MIB, total),
        mem_used_mb=_in(_MIB, _less(total, free)),
        mem_available_mb=_in(_MIB, free),
        swap_total_mb=_in(_MIB, swap),
        swap_used_mb=_in(_MIB, _less(swap, swap_free)),
        load_avg_1=plain.get(b"node_load1"),
        load_avg_5=plain.get(b"node_load5"),
        load_avg_15=plain.get(b"node_load15"),
        uptime_s=_less(now_s, booted_s),
        disk_total_gb=_in(_GIB, disk),
        disk_used_gb=_in(_GIB, _less(disk, disk_free)),
        recent_boots=_boots(booted_s),
    )
    return Report(machine, {}), Ticks(busy_s, all_s) if all_s else None


def _samples(body: bytes) -> Iterator[tuple[bytes, dict[bytes, bytes], float]]:
    for found in _LINE.finditer(body):
        try:
            value = float(found[3])
        except ValueError:
            continue
        if value == value and abs(value) != float("inf"):  # noqa: PLR0124 - not a number
            yield found[1], dict(_LABEL.findall(found[2] or b"")), value


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None or part > whole else whole - part


def _in(unit: int, size: float | None) -> float | None:
    return None if size is None or size < 0 else size / unit


def _boots(booted_s: float | None) -> tuple[str, ...]:
    if booted_s is None or not 0 < booted_s < _LATEST_S:
        return ()
    return (datetime.fromtimestamp(booted_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),)
