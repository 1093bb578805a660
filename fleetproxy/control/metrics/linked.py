"""Counters and gauges that the processes report over the link, added up.

Processes send absolute values since their own start. A process that is started anew begins at 0: what its predecessor
had reached is kept, so that the sum never goes back.
"""

from __future__ import annotations

import re
import threading
from itertools import islice

from fleetproxy.control.metrics.families import (
    BY_NAME,
    LINKED,
    OTHER,
    PREFIX,
    SHARES_FOR,
    UNLISTED_SHARE,
    Family,
    Kind,
)
from fleetproxy.control.metrics.series import Labels, Overflow
from fleetproxy.link.messages import Count

#: Names one process may report, and processes listened to.
NAMES, PROCESSES = 512, 80
#: "retries:connect_failed", or Prometheus' own spelling with one label: `fleetproxy_x_total{event="y"}`.
_SHORT = re.compile(r"([a-z][a-z0-9_]{0,63})(?::([A-Za-z0-9_./{}-]{1,64}))?", re.ASCII)
_LONG = re.compile(r'([a-z][a-z0-9_]{0,79})\{([a-z][a-z_]{0,31})="([^"\\\n]{0,64})"\}', re.ASCII)
#: Endings that mean something else to Prometheus.
_RESERVED = ("_bucket", "_sum", "_count", "_created", "_info")
_UNLISTED_DOC = "Reported by the processes of this fleetproxy."

_Series = tuple[Family, Labels]


class Linked:
    """The latest report of each process, and what earlier lives of processes had reached."""

    def __init__(self, max_series: int, overflow: Overflow) -> None:
        self._lock = threading.Lock()
        self._max_series = max_series
        self._overflow = overflow
        self._pids: dict[str, int] = {}
        self._counters: dict[str, dict[str, int]] = {}
        self._gauges: dict[str, dict[str, float]] = {}
        self._base: dict[_Series, int] = {}
        self._admitted: dict[tuple[Kind, str], _Series | None] = {}
        self._families: dict[str, Family] = {}
        self._taken: dict[Family, set[Labels]] = {}
        self._unlisted = 0

    def started(self, process: str, pid: int) -> None:
        """A process said hello. Another pid means another life, whose counters begin at 0."""
        with self._lock:
            if self._welcome(process) and self._pids.get(process) != pid:
                self._bury(process)
                self._pids[process] = pid

    def left(self, process: str) -> None:
        """A process is gone for now: its gauges say nothing any more, its counters stay."""
        with self._lock:
            self._gauges.pop(process, None)

    def count(self, process: str, message: Count) -> None:
        with self._lock:
            if not self._welcome(process):
                return
            latest = self._counters.get(process, {})
            if any(value < latest.get(name, 0) for name, value in message.counters.items()):
                self._bury(process)  # a new life whose hello we missed
            self._counters[process] = dict(islice(message.counters.items(), NAMES))
            self._gauges[process] = dict(islice(message.gauges.items(), NAMES))

    def pids(self) -> dict[str, int]:
        with self._lock:
            return dict(self._pids)

    def counters(self) -> dict[Family, dict[Labels, float]]:
        """Sums over all processes and their earlier lives."""
        with self._lock:
            sums = dict(self._base)
            for latest in self._counters.values():
                self._sum(latest, sums)
        shown: dict[Family, dict[Labels, float]] = {}
        for (family, labels), value in sums.items():
            shown.setdefault(family, {})[labels] = value
        return shown

    def gauges(self) -> dict[Family, dict[Labels, float]]:
        """The latest values of living processes, each by itself."""
        shown: dict[Family, dict[Labels, float]] = {}
        with self._lock:
            for process, latest in sorted(self._gauges.items()):
                for name, value in latest.items():
                    series = self._series("gauge", name)
                    if series is None:
                        continue
                    labels: Labels = (process,) if series[0].labels else ()
                    if self._room(series[0], labels):
                        values = shown.setdefault(series[0], {})
                        values[labels] = values.get(labels, 0.0) + value
                    else:
                        self._overflow.count += 1
        return shown

    def _welcome(self, process: str) -> bool:
        if process in self._pids:
            return True
        if len(self._pids) >= PROCESSES:
            self._overflow.count += 1
            return False
        self._pids[process] = 0
        return True

    def _bury(self, process: str) -> None:
        self._sum(self._counters.pop(process, {}), self._base)
        self._gauges.pop(process, None)

    def _sum(self, latest: dict[str, int], into: dict[_Series, int]) -> None:
        for name, value in latest.items():
            series = self._series("counter", name)
            if series is not None:
                into[series] = into.get(series, 0) + value

    def _series(self, kind: Kind, name: str) -> _Series | None:
        """Where a reported name is counted; None: nowhere. Gauges get their label, the process, elsewhere."""
        key = (kind, name)
        if key not in self._admitted:
            if len(self._admitted) >= 4 * NAMES:
                self._overflow.count += 1
                return self._fold(kind, name)
            self._admitted[key] = self._admit(kind, name)
        found = self._admitted[key]
        if found is None:
            self._overflow.count += 1
        return found

    def _admit(self, kind: Kind, name: str) -> _Series | None:
        base, label, value = _read(name)
        family = self._families.get(base) or LINKED.get(base)
        if family is None:
            if not base or base in BY_NAME or base.endswith(_RESERVED):
                return None
            labels = ("process",) if kind == "gauge" else (label,) if label else ()
            family = Family(base, kind, labels, _UNLISTED_DOC, 0)
        if family.kind != kind:
            return None  # one name, one kind
        self._families[base] = family
        if kind == "gauge" or not family.labels:
            return (family, ()) if kind == "gauge" or self._room(family, ()) else None
        own: Labels = (value or _OF_A_PROCESS.get(base, ""),)
        if not self._room(family, own, keep=1):
            self._overflow.count += 1
            own = (OTHER,)
            if not self._room(family, own):
                return None
        return family, own

    def _fold(self, kind: Kind, name: str) -> _Series | None:
        """Where a name is counted that came after too many others: a listed family loses no count."""
        family = LINKED.get(_read(name)[0])
        if family is None or family.kind != kind:
            return None
        own: Labels = (OTHER,) if family.labels and kind == "counter" else ()
        return (family, own) if kind == "gauge" or self._room(family, own) else None

    def _room(self, family: Family, labels: Labels, keep: int = 0) -> bool:
        """Whether a series may be shown; first come, first served. Unlisted families share one allowance."""
        taken = self._taken.setdefault(family, set())
        if labels in taken:
            return True
        if family.share:
            free = family.share * self._max_series // SHARES_FOR - len(taken)
        else:
            free = UNLISTED_SHARE * self._max_series // SHARES_FOR - self._unlisted
        if (family.labels and free <= keep) or free <= 0:
            return False
        self._unlisted += not family.share
        taken.add(labels)
        return True


#: What a name of the link means where its family has a label and the process does not give one.
_OF_A_PROCESS = {"audit_dropped": "disk"}


def _read(name: str) -> tuple[str, str, str]:
    """Family, label and its value of a reported name; "" where it has none, or is no name at all."""
    if found := _LONG.fullmatch(name):
        base, label, value = found[1], found[2], found[3]
    elif found := _SHORT.fullmatch(name):
        base, label, value = found[1], "reason" if found[2] else "", found[2] or ""
    else:
        return "", "", ""
    return base.removeprefix(PREFIX).removesuffix("_total"), label, value
