"""Graphics cards: NVIDIA's by NVML where its Python package is installed, else by `nvidia-smi`; AMD's by the kernel.

Whatever is missing or broken gives no cards. A driver tool that hangs is killed, and not asked again for a while.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fleetproxy.worker.metrics.reading import MIB, Card

TOOL_S = 3.0
#: A source that failed is left alone for this long.
AGAIN_S = 60.0
MAX_CARDS = 64
_FIELDS = "index,name,utilization.gpu,temperature.gpu,memory.total,memory.used,power.draw"

Source = Callable[[], tuple[Card, ...]]


class Cards:
    """Call it for the cards of this machine as they are now."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._nvidia = _nvml() or _nvidia_smi
        self._drm = root / "sys" / "class" / "drm"
        self._failed_s = float("-inf")

    def __call__(self) -> tuple[Card, ...]:
        return (self._of_nvidia() + tuple(_amd(self._drm)))[:MAX_CARDS]

    def _of_nvidia(self) -> tuple[Card, ...]:
        if self._clock() - self._failed_s < AGAIN_S:
            return ()
        try:
            found = self._nvidia()
        except Exception:
            found = ()  # whatever a driver's bindings raise: there is nothing to be had
        if not found:
            self._failed_s = self._clock()
        return found


def _nvml() -> Source | None:
    """NVIDIA's own library, by the package `nvidia-ml-py`; None where it, the driver or a card is missing."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        if not nvml.nvmlDeviceGetCount():
            return None
    except Exception:  # the package's own errors, and those of loading it
        return None

    def look() -> tuple[Card, ...]:
        return tuple(_nvml_card(nvml, index) for index in range(min(nvml.nvmlDeviceGetCount(), MAX_CARDS)))

    return look


def _nvml_card(nvml: Any, index: int) -> Card:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(question: Callable[[], Any]) -> Any:
        with suppress(nvml.NVMLError):  # this card does not tell it
            return question()
        return None

    name = ask(lambda: nvml.nvmlDeviceGetName(handle))
    use = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    power = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    heat = ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return Card(
        index=index,
        name=name.decode(errors="replace") if isinstance(name, bytes) else name or "",
        percent=None if use is None else float(use.gpu),
        temp_c=None if heat is None else float(heat),
        memory_total_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
        power_w=None if power is None else power / 1000,
    )


def _nvidia_smi() -> tuple[Card, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    process = subprocess.Popen(  # noqa: S603 - the driver's own tool
        [tool, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        told, _ = process.communicate(timeout=TOOL_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return ()
    return tuple(_told(told.decode(errors="replace")))


def _told(text: str) -> Iterator[Card]:
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(_FIELDS.split(",")) or not row[0].isdigit():
            continue
        percent, heat, total, used, power = (_number(cell) for cell in row[2:])
        yield Card(
            index=int(row[0]),
            name=row[1][:64],
            percent=percent,
            temp_c=heat,
            memory_total_bytes=None if total is None else int(total * MIB),
            memory_used_bytes=None if used is None else int(used * MIB),
            power_w=power,
        )


def _number(text: str) -> float | None:
    """`[N/A]` and the like are nothing."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def _amd(drm: Path) -> Iterator[Card]:
    for index, device in enumerate(sorted(drm.glob("card[0-9]*/device"))):
        total = _file(device / "mem_info_vram_total")
        if total is None:
            continue  # no AMD card
        heat = next((value for path in sorted(device.glob("hwmon/hwmon*/temp1_input")) if (value := _file(path))), None)
        power = next(
            (value for path in sorted(device.glob("hwmon/hwmon*/power1_average")) if (value := _file(path))), None
        )
        percent = _file(device / "gpu_busy_percent")
        yield Card(
            index=index,
            name="AMD",
            percent=None if percent is None else float(percent),
            temp_c=None if heat is None else heat / 1000,
            memory_total_bytes=total,
            memory_used_bytes=_file(device / "mem_info_vram_used"),
            power_w=None if power is None else power / 1e6,
        )


def _file(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
