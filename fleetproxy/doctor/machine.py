"""This machine: Python and its packages, clock and time zones, open files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import resource
import sys
import zoneinfo
from collections.abc import Iterator

from fleetproxy import __version__
from fleetproxy.children import FEW_OPEN_FILES
from fleetproxy.doctor.finding import Finding, fail, ok, warn

#: Zones every complete set has; schedules name such.
_ZONES = ("Europe/Berlin", "America/New_York", "Asia/Tokyo")
#: Logging falls back to Python's own from this version on: picologging has no wheel for it.
_NO_PICOLOGGING = (3, 13)
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)")
_MUST_HAVE = ("uvloop", "granian", "duckdb")


def machine() -> Iterator[Finding]:
    """Nothing here needs a configuration."""
    yield from _python()
    yield from _packages()
    yield from _zones()
    yield from _open_files()


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.implementation.name != "cpython":
        yield warn("python", f"{sys.implementation.name} {version} is not tested", "use CPython 3.11 or newer")
    else:
        yield ok("python", f"fleetproxy {__version__} on Python {version}, {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    missing = []
    for requirement in importlib.metadata.requires("fleetproxy") or ():
        name = _REQUIREMENT.match(requirement)
        if name is None or "extra ==" in requirement or name[1] == "picologging":
            continue
        try:
            importlib.metadata.version(name[1])
        except importlib.metadata.PackageNotFoundError:
            missing.append(name[1])
    if missing:
        yield fail("packages", f"{', '.join(missing)} not installed", "install fleetproxy again, into this environment")
    else:
        said = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _MUST_HAVE)
        yield ok("packages", f"all there; {said}")
    if importlib.util.find_spec("picologging"):
        yield ok("logging", f"picologging {importlib.metadata.version('picologging')}")
    elif sys.version_info >= _NO_PICOLOGGING:
        yield ok("logging", "Python's own: picologging has no wheel for this Python")
    else:
        yield warn("logging", "Python's own, which is slower", "pip install picologging")


def _zones() -> Iterator[Finding]:
    missing = [name for name in _ZONES if not _zone(name)]
    if missing:
        yield fail("time zones", f"no data for {', '.join(missing)}", "pip install tzdata")
    else:
        yield ok("time zones", "data there")


def _zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return False
    return True


def _open_files() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FEW_OPEN_FILES:
        yield warn(
            "open files",
            f"at most {hard}: that is about {hard // 2} clients at once",
            "raise it: LimitNOFILE=65536 in the systemd unit, or `ulimit -Hn 65536` as root",
        )
    else:
        yield ok("open files", "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}")
