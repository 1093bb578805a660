"""The machine a worker runs on, as far as it tells: who it is, how busy, how much GPU memory. Nothing here raises."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path

from fleetproxy.core.worker import Host

#: A driver tool that hangs must not hold the worker up.
TOOL_S = 5.0
_STAT, _MEMINFO = Path("/proc/stat"), Path("/proc/meminfo")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def host() -> Host:
    """This machine; the backend's fields are empty."""
    system = platform.system()
    version = platform.release()
    if system == "Linux":
        with suppress(OSError):
            version = platform.freedesktop_os_release().get("PRETTY_NAME", version)
    return Host(hostname=socket.gethostname(), os_name=system.lower(), os_version=version)


def worker_id(family: str, backend: str) -> str:
    """The same at each start on this machine in front of this backend, another one anywhere else."""
    machine = ""
    for path in _MACHINE_IDS:
        with suppress(OSError, UnicodeDecodeError):
            machine = path.read_text().strip()
            break
    # Containers may share a machine-id that came with their image, not their host name.
    seed = "\0".join((machine, socket.gethostname(), family, backend))
    return hashlib.sha256(seed.encode()).hexdigest()[:16]


class Gauge:
    """How busy the machine is: percentages since the last look."""

    def __init__(self) -> None:
        self._before = _cpu_times()

    def cpu_percent(self) -> float:
        """Share of CPU time not idle since the last call; load over cores where the system does not tell."""
        now, before = _cpu_times(), self._before
        self._before = now
        if now is None or before is None or now[1] <= before[1]:
            with suppress(OSError):
                return min(100.0, 100.0 * os.getloadavg()[0] / (os.cpu_count() or 1))
            return 0.0
        return min(100.0, max(0.0, 100.0 * (now[0] - before[0]) / (now[1] - before[1])))

    def ram_percent(self) -> float:
        """Share of memory in use; 0 where the system does not tell."""
        fields: dict[str, int] = {}
        with suppress(OSError, ValueError, IndexError):
            for line in _MEMINFO.read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in {"MemTotal", "MemAvailable"}:
                    fields[name] = int(rest.split()[0])
        total = fields.get("MemTotal", 0)
        return 100.0 * (total - fields.get("MemAvailable", total)) / total if total else 0.0


def _cpu_times() -> tuple[int, int] | None:
    """(busy, all) jiffies since boot."""
    try:
        fields = [int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4], sum(fields)
    except (OSError, ValueError, IndexError):
        return None


async def vram_bytes() -> int | None:
    """GPU memory of all cards together, by NVIDIA's tool; None when there is no such tool, or no card."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        process = await asyncio.create_subprocess_exec(
            tool,
            "--query-gpu=memory.total",
            "--format=csv,noheader,nounits",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(TOOL_S):
            out, _ = await process.communicate()
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started: that may hold the pipe
        await process.wait()
        return None
    mebibytes = [int(line) for line in out.decode("ascii", "replace").split() if line.isdigit()]
    return sum(mebibytes) * 1024**2 or None
