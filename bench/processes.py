"""Process trees under /proc: who is who, CPU time, memory, cores."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

PROC = Path("/proc")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Cpu(msgspec.Struct, frozen=True):
    """CPU time of one process, all threads, user and system."""

    role: str
    #: Nanoseconds of each thread alive.
    threads_ns: dict[int, int]
    #: Nanoseconds of all threads, dead ones too, in steps of a clock tick.
    total_ns: int


def role_of(command: list[str]) -> str:
    """What a process of the tree is: "proxy-0", "control", "hub", "agent"; else the program's name."""
    if "fleetproxy.process" in command:
        at = command.index("fleetproxy.process")
        kind, index = (*command[at + 1 : at + 3], "", "")[:2]
        return f"{kind}-{index}" if kind == "proxy" else kind
    words = [Path(word).name for word in command[:4]]
    if {"fleetproxy", "worker"} <= {*words} or "bench.stock_agent" in words:
        return "agent"
    if any(word.startswith("fleetproxy") for word in words):
        return "supervisor"
    return words[0].split(":")[0] if words else "?"


def tree(roots: Iterable[int]) -> dict[int, str]:
    """The processes below these ones, with them: process id -> role."""
    parents: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text()
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(folder.name))
    found: dict[int, str] = {}
    todo = list(roots)
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):
            command = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if pid not in found:
                found[pid] = role_of(command)
                todo += parents.get(pid, [])
    return found


def cpu(roles: Mapping[int, str]) -> dict[int, Cpu]:
    """CPU time so far of each of these processes that lives."""
    times = {}
    for pid, role in roles.items():
        threads = {}
        with contextlib.suppress(OSError):
            for thread in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError):
                    threads[int(thread.name)] = int((thread / "schedstat").read_text().split()[0])
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            times[pid] = Cpu(role, threads, (int(fields[11]) + int(fields[12])) * _TICK_NS)
    return times


def cpu_between(before: Mapping[int, Cpu], after: Mapping[int, Cpu]) -> dict[str, float]:
    """Microseconds per role between two moments. Raises ProcessLookupError when a process has died meanwhile."""
    spent: dict[str, float] = {}
    if gone := before.keys() - after.keys():
        raise ProcessLookupError(f"died during the measurement: {', '.join(before[pid].role for pid in gone)}")
    for pid, now in after.items():
        then = before.get(pid, Cpu(now.role, {}, 0))
        if then.threads_ns.keys() <= now.threads_ns.keys():
            ns = sum(now.threads_ns.values()) - sum(then.threads_ns.values())
        else:  # a thread ended and took its schedstat along
            ns = now.total_ns - then.total_ns
        spent[now.role] = spent.get(now.role, 0.0) + ns / 1e3
    return spent


def rss_kib(roles: Mapping[int, str]) -> dict[str, int]:
    """Resident memory per role, KiB (`Rss` of smaps_rollup: pages shared between processes count in each)."""
    sizes: dict[str, int] = {}
    for pid, role in roles.items():
        with contextlib.suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    sizes[role] = sizes.get(role, 0) + int(line.split()[1])
    return sizes


def pin(pids: Iterable[int], cores: Iterable[int]) -> None:
    """Keep all threads of these processes on these cores; later threads inherit it."""
    wanted = set(cores)
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread.name), wanted)


class Cores(msgspec.Struct, frozen=True):
    """Which cores do what while CPU time is measured."""

    every: tuple[int, ...]
    #: The proxy under test, alone.
    proxy: tuple[int, ...]
    #: The mock, the load client, and what else belongs to a proxy's tree.
    load: tuple[int, ...]


def cores() -> Cores:
    every = tuple(sorted(os.sched_getaffinity(0)))
    if len(every) == 1:
        return Cores(every, every, every)
    return Cores(every, every[1:2], (every[0], *every[2:]))


def machine_busy() -> tuple[float, float]:
    """Seconds all cores together have been busy, and seconds the host has kept them from us, since boot."""
    fields = [int(field) for field in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq) * _TICK_NS / 1e9, steal * _TICK_NS / 1e9


def machine() -> str:
    """CPU model, cores, kernel: one line for a report."""
    model = platform.machine()
    for line in _lines(PROC / "cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    count = len(os.sched_getaffinity(0))
    return f"{model}, {count} core{'s' * (count > 1)}, Linux {platform.release().split('-')[0]}"


def _lines(path: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from path.read_text().splitlines()
