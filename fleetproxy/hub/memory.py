"""The hub's own memory limit. It carries everybody's sockets: whatever they do, it must not take the machine along.

Two bounds. The watch looks at the resident size each second: past the limit the hub leaves and is started anew, which
costs its open streams and nothing else. The kernel's bound (RLIMIT_AS) is for what happens between two looks.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

#: Address space beyond the limit: code, stacks, arenas, what was mapped and never touched.
ADDRESS_SPACE_SLACK_BYTES = 2 * 1024**3
_STATM = Path("/proc/self/statm")


def limit_address_space(limit_bytes: int) -> None:
    """Have the kernel refuse memory far past the limit. Never loosens a bound that is there."""
    wanted = limit_bytes + ADDRESS_SPACE_SLACK_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or wanted < soft:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def resident_bytes() -> int:
    """This process's resident memory now; where the system does not say, the most it ever was."""
    try:
        return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        unit = 1 if os.uname().sysname == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
