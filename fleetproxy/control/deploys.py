"""New versions, told once: a server's a few times an hour at most, and fleetproxy's own when it starts with another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from fleetproxy import log
from fleetproxy.control.analytics.rows import Row, ServerEvent
from fleetproxy.folders import write_whole

_log = log.get("control.fleet")

#: Of one server, in this time. More is a balancer with different servers behind it, which must not fill the list of
#: events.
MOST, WITHIN_S = 6, 3600.0
MAX_VERSION_BYTES = 256
#: What fleetproxy is called among the servers of events.
OWN_ID, OWN_NAME = 0, "fleetproxy"


class Deploys:
    """When deploys were told, by server."""

    def __init__(self) -> None:
        self._told_s: dict[str, deque[float]] = {}
        #: Deploys that were not told.
        self.dropped = 0

    def worth_telling(self, name: str, at_s: float) -> bool:
        told_s = self._told_s.setdefault(name, deque())
        while told_s and not at_s - WITHIN_S < told_s[0] <= at_s:  # long ago, or before the clock was set back
            told_s.popleft()
        if len(told_s) >= MOST:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning(
                    "%s says another version again and again: are there several servers behind its address?", name
                )
            return False
        told_s.append(at_s)
        return True

    def keep(self, names: Collection[str]) -> None:
        """These are the servers of the fleet now."""
        self._told_s = {name: told_s for name, told_s in self._told_s.items() if name in names}


def tell_of_own(path: Path, version: str, at_s: float, put: Callable[[Row], None]) -> None:
    """Tell when fleetproxy runs another version than the last time it ran; `path` remembers which that was."""
    before = _last(path)
    if before == version:
        return
    if before is not None:
        detail = f"{before} -> {version}"
        put(
            ServerEvent(
                occurred_at_us=int(at_s * 1e6), server_id=OWN_ID, server=OWN_NAME, event="deploy", detail=detail
            )
        )
    try:
        write_whole(path, f"{version}\n".encode())
    except OSError as error:
        _log.warning("the version of fleetproxy could not be written down: %s", error.strerror)


def _last(path: Path) -> str | None:
    """None: it never ran here, or nobody can tell."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_VERSION_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if text and text.isprintable() else None
