"""Looking at processes through /proc: children, descriptors, memory."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

_SOCKET = re.compile(r"socket:\[(\d+)\]")


def children(pid: int) -> Iterator[tuple[int, list[str]]]:
    """The children of a process, each with its command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = (entry / "stat").read_text()
            if int(status.rpartition(")")[2].split()[1]) == pid:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(entry.name), words


def descriptors(pid: int, ports: Collection[int] = ()) -> int:
    """Open descriptors, not counting TCP connections to these remote ports nor Unix stream connections."""
    links = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(str(entry.readlink()))
    aside = _remote(pid, ports) | _unix(pid)
    inodes = [match.group(1) if (match := _SOCKET.match(link)) else "" for link in links]
    return sum(inode not in aside for inode in inodes)


def memory_bytes(pid: int) -> int:
    """Resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_s(pid: int) -> float:
    """Processor time used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _remote(pid: int, ports: Collection[int]) -> set[str]:
    """Inodes of TCP sockets connected to one of these ports."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[2].rpartition(":")[2], 16) in ports:
                    found.add(fields[9])
    return found


def _unix(pid: int) -> set[str]:
    """Inodes of connected Unix stream sockets."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[4] == "0001" and fields[5] == "03":
                found.add(fields[6])
    return found
