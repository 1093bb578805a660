"""Looks at this machine. Linux tells everything through /proc and /sys; other systems what Python can ask them.

Nothing here raises for what a machine does not tell, and nothing waits.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from fleetproxy import __version__
from fleetproxy.worker.metrics.reading import Card, Reading

MAX_SENSORS, MAX_BOOTS = 64, 10
#: The last records of the log of boots; each has 384 bytes.
_WTMP_BYTES = 4096 * 384
_WTMP = struct.Struct("<hxxi32s4s32s256shhiii16s20s")
_RUN_LEVEL, _BOOT = 1, 2
#: A boot noted in the log, and computed from the clock, are told this far apart.
_SAME_BOOT_S = 180.0
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu", "x86_pkg_temp", "soc")


class Machine:
    """`look()` again and again. `cards` gives the graphics cards."""

    def __init__(
        self,
        cards: Callable[[], tuple[Card, ...]] = tuple,
        root: Path = Path("/"),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cards = cards
        self._proc, self._sys = root / "proc", root / "sys"
        self._wtmp, self._root = root / "var" / "log" / "wtmp", root
        self._wall = wall
        self._ticks = self._cpu_ticks()
        self._boots: tuple[float, tuple[float, ...], frozenset[float]] | None = None

    def look(self) -> Reading:
        now_s = self._wall()
        booted_s = self._booted()
        boots, unexpected = self._known_boots(booted_s)
        memory = self._memory()
        sensors, cpu_temp_c = self._temperatures()
        disk = self._disk()
        return Reading(
            hostname=socket.gethostname(),
            at_s=now_s,
            booted_s=booted_s,
            cpu_percent=self._cpu_percent(),
            load=_load(),
            memory_total_bytes=memory.get("MemTotal"),
            memory_available_bytes=memory.get("MemAvailable"),
            swap_total_bytes=memory.get("SwapTotal"),
            swap_free_bytes=memory.get("SwapFree"),
            disk_total_bytes=disk[0],
            disk_used_bytes=disk[1],
            disk_free_bytes=disk[2],
            cpu_temp_c=cpu_temp_c,
            sensors=sensors,
            cards=self._cards(),
            boots=boots,
            unexpected=unexpected,
            version=__version__,
        )

    # --- processor, memory, disk -----------------------------------------------------------------------------

    def _cpu_ticks(self) -> tuple[int, int] | None:
        """(busy, all) since boot."""
        try:
            fields = [int(field) for field in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
            return sum(fields) - fields[3] - fields[4], sum(fields)
        except (OSError, ValueError, IndexError):
            return None

    def _cpu_percent(self) -> float | None:
        now, before = self._cpu_ticks(), self._ticks
        self._ticks = now
        if now is None or before is None or now[1] <= before[1]:
            return None
        return min(100.0, max(0.0, 100.0 * (now[0] - before[0]) / (now[1] - before[1])))

    def _memory(self) -> dict[str, int]:
        found: dict[str, int] = {}
        with suppress(OSError, ValueError, IndexError):
            for line in (self._proc / "meminfo").read_text().splitlines():
                name, _, rest = line.partition(":")
                found[name] = int(rest.split()[0]) * 1024
        return found

    def _disk(self) -> tuple[int, int, int] | tuple[None, None, None]:
        try:
            usage = shutil.disk_usage(self._root)
        except OSError:
            return None, None, None
        return usage.total, usage.used, usage.free

    # --- temperatures ----------------------------------------------------------------------------------------

    def _temperatures(self) -> tuple[dict[str, float], float | None]:
        """(every sensor, the processor)."""
        found: dict[str, float] = {}
        cpu: list[float] = []
        for name, kind, value in self._sensors():
            if len(found) < MAX_SENSORS:
                found[name] = value
            if any(word in kind for word in _CPU_SENSORS):
                cpu.append(value)
        return found, max(cpu, default=None)

    def _sensors(self) -> Iterator[tuple[str, str, float]]:
        """(name, what kind of thing it is in, degrees)."""
        for zone in sorted(self._sys.glob("class/thermal/thermal_zone*")):
            value = _milli(zone / "temp")
            if value is not None:
                yield zone.name, _text(zone / "type").lower(), value
        for chip in sorted(self._sys.glob("class/hwmon/hwmon*")):
            kind = _text(chip / "name").lower()
            for sensor in sorted(chip.glob("temp*_input")):
                value = _milli(sensor)
                if value is not None:
                    label = _text(chip / sensor.name.replace("_input", "_label")) or sensor.name.partition("_")[0]
                    yield f"{kind}_{label}".lower().replace(" ", "_"), kind, value

    # --- boots -----------------------------------------------------------------------------------------------

    def _booted(self) -> float | None:
        with suppress(OSError, ValueError, IndexError):
            for line in (self._proc / "stat").read_text().splitlines():
                if line.startswith("btime "):
                    return float(line.split()[1])
        return None

    def _known_boots(self, booted_s: float | None) -> tuple[tuple[float, ...], frozenset[float]]:
        """(boots, newest first; those of them that nobody had asked for). Read once per boot."""
        if booted_s is None:
            return (), frozenset()
        if self._boots is None or abs(self._boots[0] - booted_s) > _SAME_BOOT_S:
            logged, unexpected = self._logged_boots()
            same = [boot for boot in logged if abs(boot - booted_s) <= _SAME_BOOT_S]
            # As the log has it: the clock that the other way goes by is set now and then.
            boots = tuple(logged if same else (booted_s, *logged))[:MAX_BOOTS]
            self._boots = booted_s, boots, unexpected
        return self._boots[1], self._boots[2]

    def _logged_boots(self) -> tuple[list[float], frozenset[float]]:
        """Boots in the log of logins, newest first, and those without a shutdown before them."""
        boots: list[float] = []
        unexpected: set[float] = set()
        shut_down = True  # of the first one nothing is known
        try:
            with self._wtmp.open("rb") as file:
                file.seek(0, os.SEEK_END)
                size = min(file.tell(), _WTMP_BYTES) // _WTMP.size * _WTMP.size
                file.seek(-size, os.SEEK_END)
                records = file.read(size)
        except OSError:
            return [], frozenset()
        for kind, _, _, _, user, _, _, _, _, at_s, *_ in _WTMP.iter_unpack(records):
            if kind == _BOOT:
                boots.append(float(at_s))
                if not shut_down:
                    unexpected.add(float(at_s))
                shut_down = False
            elif kind == _RUN_LEVEL and user.startswith(b"shutdown"):
                shut_down = True
        return boots[::-1], frozenset(unexpected)


def _load() -> tuple[float, float, float] | None:
    try:
        return os.getloadavg()
    except (OSError, AttributeError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[:64]
    except OSError:
        return ""


def _milli(path: Path) -> float | None:
    """Degrees of a file with thousandths of them; impossible ones are a broken sensor's."""
    try:
        value = int(path.read_text()) / 1000
    except (OSError, ValueError):
        return None
    return value if -50 < value < 200 else None
