"""What just changed in the fleet, for people: found between two pictures of it, and heard from what is written down."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fleetproxy.control.analytics.rows import JobRun, ModelEvent, Row, ServerEvent
from fleetproxy.control.live.shapes import Shown, instant

#: Changes kept for whoever comes next.
KEPT = 100


class Changes:
    """The latest changes, numbered."""

    def __init__(self) -> None:
        self.kept: deque[Shown] = deque(maxlen=KEPT)
        self._number = 0

    def add(
        self,
        at_s: float,
        kind: str,
        subject: str,
        text: str,
        level: str,
        *,
        server_id: int | None = None,
        model: str | None = None,
    ) -> None:
        self._number += 1
        self.kept.append(
            {
                "n": self._number,
                "at": instant(at_s),
                "kind": kind,
                "subject": subject,
                "serverId": server_id,
                "model": model,
                "text": text,
                "level": level,
            }
        )

    @property
    def number(self) -> int:
        """Of the latest."""
        return self._number

    def after(self, number: int) -> list[Shown]:
        return [change for change in self.kept if change["n"] > number]

    def hear(self, row: Row) -> None:
        """Something was written down."""
        match row:
            case ModelEvent():
                loaded = row.event == "loaded"
                self.add(
                    row.occurred_at_us / 1e6,
                    f"model_{row.event}",
                    row.server,
                    f"{row.model} {'came into' if loaded else 'left'} the memory of {row.server}",
                    "info",
                    server_id=row.server_id,
                    model=row.model,
                )
            case ServerEvent():
                text, level = _SERVER[row.event]
                detail = f": {row.detail}" if row.detail else ""
                self.add(
                    row.occurred_at_us / 1e6,
                    f"server_{row.event}",
                    row.server,
                    f"{row.server} {text}{detail}",
                    level,
                    server_id=row.server_id or None,
                )
            case JobRun(result="ok"):
                self.add(row.started_at_us / 1e6, "job_ok", row.job, f"Job {row.job} ran", "good")
            case JobRun(result="failed"):
                detail = f": {row.detail}" if row.detail else ""
                self.add(row.started_at_us / 1e6, "job_failed", row.job, f"Job {row.job} failed{detail}", "bad")
            case _:
                pass

    def compare(self, at_s: float, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Two pictures of the fleet: `{"servers": {id: shown}, "workers": ..., "relays": ...}`."""
        for kind, subject, text, level, number in (
            *_servers(before["servers"], now["servers"]),
            *_breakers({**before["servers"], **before["workers"]}, {**now["servers"], **now["workers"]}),
            *_guests("Worker", before["workers"], now["workers"]),
            *_guests("MCP relay", before["relays"], now["relays"]),
        ):
            self.add(at_s, kind, subject, text, level, server_id=number)


_SERVER = {
    "online": ("is back online", "good"),
    "offline": ("is offline", "bad"),
    "reboot": ("was rebooted", "warn"),
    "deploy": ("has a new version", "info"),
}
_Found = tuple[str, str, str, str, int]
_ById = Mapping[int, Shown]
_SWITCHES = (
    ("isDisabled", "was taken into maintenance", "was taken out of maintenance"),
    ("isDraining", "is draining", "takes new work again"),
)


def _servers(before: _ById, now: _ById) -> Iterator[_Found]:
    for number, one in now.items():
        name, was = one["name"], before.get(number)
        if was is None:
            yield "server_added", name, f"Server {name} was added", "info", number
            continue
        if one["isLeaving"] and not was["isLeaving"]:
            yield "server_removed", name, f"Server {name} was removed; its last requests are running", "info", number
            continue
        for field, on, off in _SWITCHES:
            if one[field] != was[field] and not one["isLeaving"]:
                text, level = (on, "warn") if one[field] else (off, "info")
                yield "server_changed", name, f"{name} {text}", level, number
    for number in before.keys() - now.keys():
        was = before[number]
        if not was["isLeaving"]:
            yield "server_removed", was["name"], f"Server {was['name']} was removed", "info", number


def _breakers(before: _ById, now: _ById) -> Iterator[_Found]:
    for number, one in now.items():
        name, was = one["name"], before.get(number, {}).get("breaker", "closed")
        if one["breaker"] == "open" and was == "closed":
            yield "breaker_open", name, f"{name} failed several times in a row and is left alone", "bad", number
        elif one["breaker"] == "closed" and was != "closed":
            yield "breaker_closed", name, f"{name} answers again", "good", number


def _guests(what: str, before: _ById, now: _ById) -> Iterable[_Found]:
    for number, one in now.items():
        name, was = one["name"], before.get(number)
        if was is None:
            yield "worker_joined", name, f"{what} {name} joined", "good", number
        elif was["isDraining"] != one["isDraining"]:
            text = "is draining" if one["isDraining"] else "takes new work again"
            yield "worker_changed", name, f"{what} {name} {text}", "warn" if one["isDraining"] else "info", number
    for number in before.keys() - now.keys():
        yield "worker_left", before[number]["name"], f"{what} {before[number]['name']} left", "warn", number
