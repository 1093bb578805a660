"""CPU time, memory and descriptors of our own processes, read from /proc. Elsewhere than on Linux: nothing."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class Usage(msgspec.Struct, frozen=True):
    cpu_s: float
    resident_bytes: int
    open_fds: int


def usage(pid: int) -> Usage | None:
    """What a process uses now; None when it is gone or cannot be looked at."""
    folder = Path(f"/proc/{pid}")
    try:
        # The command's name may hold blanks and brackets: fields count from the last one.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        resident = int((folder / "statm").read_text().split()[1])
        fds = sum(1 for _ in (folder / "fd").iterdir())
    except (OSError, ValueError, IndexError):
        return None
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), resident * os.sysconf("SC_PAGE_SIZE"), fds)
