"""When something about a machine is worth waking somebody for, and how often. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

AlertKind = Literal["offline", "gpu_temp", "cpu_temp", "disk", "memory", "reboot"]

GPU_TEMP_C, CPU_TEMP_C = 90.0, 85.0
DISK_SHARE, MEMORY_SHARE = 0.90, 0.10
#: The same alert of the same server is repeated after this at the earliest, while its cause lasts.
COOLDOWN_S = 1800.0
#: Of a server that comes and goes: notices of one kind within an hour; the rest is left out and counted.
NOTICES_PER_HOUR = 6
#: What no machine can say in earnest.
_MAX_TEMP_C, _MAX_SIZE = 250.0, 1e9


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine said of itself."""

    cpu_temp_c: float | None = None
    gpu_temp_c: float | None = None
    mem_total_mb: float | None = None
    mem_available_mb: float | None = None
    disk_total_gb: float | None = None
    disk_used_gb: float | None = None


class Alert(msgspec.Struct, frozen=True):
    kind: AlertKind
    #: Degrees Celsius, or percent used.
    value: float
    #: GB or MB left; 0 where that means nothing.
    left: float = 0.0


def alerts(readings: Readings) -> list[Alert]:
    """What is wrong with a machine now. Values no machine can have are left out."""
    found = []
    gpu, cpu = readings.gpu_temp_c, readings.cpu_temp_c
    if gpu is not None and GPU_TEMP_C <= gpu <= _MAX_TEMP_C:
        found.append(Alert("gpu_temp", gpu))
    if cpu is not None and CPU_TEMP_C <= cpu <= _MAX_TEMP_C:
        found.append(Alert("cpu_temp", cpu))
    disk, used = readings.disk_total_gb, readings.disk_used_gb
    if disk is not None and used is not None and 0 < disk < _MAX_SIZE and DISK_SHARE <= used / disk <= 1:
        found.append(Alert("disk", 100 * used / disk, disk - used))
    total, free = readings.mem_total_mb, readings.mem_available_mb
    if total is not None and free is not None and 0 < total < _MAX_SIZE and 0 <= free / total < MEMORY_SHARE:
        found.append(Alert("memory", 100 * (1 - free / total), free))
    return found


def cooled(last_s: Mapping[tuple[int, str], float], server_id: int, kind: str, now_s: float) -> bool:
    """Whether this alert may be told (again). `last_s`: when it was told last, by (server, kind)."""
    before = last_s.get((server_id, kind))
    return before is None or now_s - before >= COOLDOWN_S


class Line(msgspec.Struct, frozen=True):
    """Our line to the internet, as checks of it say."""

    #: None until it was up once: a fleet without internet is not cut off, it is at home.
    up: bool | None = None
    failures: int = 0
    #: Seconds (monotonic) of the first of the failures in a row.
    failing_since_s: float = 0.0

    @property
    def is_down(self) -> bool:
        return self.up is False


def checked(line: Line, reachable: bool, now_s: float, threshold: int) -> Line:
    """The line after a check."""
    if reachable:
        return Line(up=True)
    since_s = line.failing_since_s if line.failures else now_s
    failures = line.failures + 1
    went_down = line.up is True and failures >= threshold
    return Line(False if went_down else line.up, failures, since_s)
