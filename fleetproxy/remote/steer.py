"""Changing the fleet: servers added, removed, switched; servers and workers drained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fleetproxy.remote.call import CallError, Fleet, good
from fleetproxy.remote.models import known_servers
from fleetproxy.remote.state import look


class Found(msgspec.Struct, frozen=True):
    """A server or worker by its number."""

    id: int
    name: str
    #: "servers" or "workers": the segment of its path.
    kind: str


def server_named(fleet: Fleet, name: str) -> Found:
    """Raises CallError when there is none."""
    for server in known_servers(fleet):
        if str(server["name"]).casefold() == name.casefold():
            return Found(server["id"], server["name"], "servers")
    raise CallError("missing", f"there is no server {name!r}; see `fleetproxy servers`")


def anybody_named(fleet: Fleet, name: str) -> Found:
    """A server, else a dial-in worker by name or id. Raises CallError when there is none, or several."""
    try:
        return server_named(fleet, name)
    except CallError as error:
        if error.status or error.kind != "missing":
            raise
    found = _workers(fleet)
    named = [
        one
        for one in found
        if name.casefold() in (str(one["name"]).casefold(), one.get("workerId"), one.get("relayId"))
    ]
    if len(named) > 1:
        ids = ", ".join(str(one.get("workerId") or one.get("relayId")) for one in named)
        raise CallError("failed", f"several workers are called {name!r}; name one by its id: {ids}")
    if not named:
        raise CallError("missing", f"there is no server or worker {name!r}; see `fleetproxy status`")
    return Found(named[0]["id"], named[0]["name"], "workers")


def _workers(fleet: Fleet) -> list[dict[str, Any]]:
    answer = fleet.ask_control("GET", "/api/workers")
    if answer.status == 404:  # an older fleetproxy
        return []
    value = good(answer, "/api/workers")
    return [*value.get("workers", ()), *value.get("relays", ())] if isinstance(value, dict) else []


def add(fleet: Fleet, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A new server; as the dashboard API shows it. Raises CallError."""
    value = fleet.control("POST", "/api/servers", dict(entry))
    return value if isinstance(value, dict) else {}


def remove(fleet: Fleet, server: Found) -> None:
    fleet.control("DELETE", f"/api/servers/{server.id}")


def enable(fleet: Fleet, server: Found, on: bool) -> None:
    fleet.control("PATCH", f"/api/servers/{server.id}", {"isDisabled": not on})


def drain(fleet: Fleet, found: Found, on: bool) -> None:
    """On: it gets nothing new, what runs may end."""
    fleet.control("PATCH", f"/api/{found.kind}/{found.id}", {"isDraining": on})


def wait_idle(
    fleet: Fleet, found: Found, within_s: float, tell: Callable[[int], None], *, every_s: float = 0.5
) -> None:
    """Until nothing runs there any more. `tell` hears how much does. Raises CallError when the time is over."""
    deadline_s = time.monotonic() + within_s
    while True:
        view = look(fleet, time.monotonic())
        group = view.servers if found.kind == "servers" else view.workers
        running = sum(one.in_flight for one in group if one.name == found.name)
        if not running:
            return
        tell(running)
        if time.monotonic() >= deadline_s:
            raise CallError("timeout", f"{found.name} still serves {running} after {within_s:g} s; it goes on draining")
        time.sleep(every_s)
