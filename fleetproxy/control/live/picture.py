"""The fleet as one picture, and what is different from the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from fleetproxy.control.fleet import Member
from fleetproxy.control.live import shapes
from fleetproxy.control.live.catalogue import Catalogue
from fleetproxy.control.live.changes import Changes
from fleetproxy.control.live.rates import EVERYBODY, Rates
from fleetproxy.control.live.shapes import BreakerWord, Shown, Standing
from fleetproxy.control.visitors import Visitor
from fleetproxy.core.backend import BackendState
from fleetproxy.core.worker import Worker, state_of
from fleetproxy.link.messages import Count, RelaysPulse

#: Processes whose reports are kept.
MAX_PROCESSES = 128
_WORST: tuple[BreakerWord, ...] = ("closed", "half_open", "open")


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What the picture is taken of: `control.main.Control` gives it."""

    members: Callable[[], Sequence[Member]]
    visitors: Callable[[], Sequence[Visitor]]
    relays: Callable[[], RelaysPulse]
    machines: Callable[[], Mapping[str, Mapping[str, Any]]]
    load: Callable[[int], int]
    waiting: Callable[[int], int]
    #: Workers drained from here: (family, id).
    resting: Callable[[], frozenset[tuple[str, str]]]
    pulls: Callable[[], list[Shown]]
    #: State of the store: `{"ok", "trouble", "detail"}`.
    store: Callable[[], Shown]
    draining: Callable[[], bool]
    processes: Callable[[], Sequence[str]]


Group = dict[int, Shown]


class Picture:
    """The last picture, and the one that watchers know."""

    def __init__(self, sight: Sight, rates: Rates) -> None:
        self._sight = sight
        self._rates = rates
        self._catalogue = Catalogue()
        self._groups: dict[str, Group] = {"servers": {}, "workers": {}, "relays": {}}
        self._sums: Shown = {}
        self._transfers: Shown = {}
        self._known: dict[str, Group] = self._groups
        self._known_sums: tuple[Shown, Shown] = ({}, {})
        self._since: dict[int, tuple[str, float | None]] = {}
        self._taken = False
        self._states: dict[int, tuple[Worker, BackendState]] = {}
        self._breakers: dict[str, Mapping[int, str]] = {}
        self._gauges: dict[str, Mapping[str, float]] = {}
        self._hub: Mapping[str, int] = {}

    def count(self, process: str, message: Count) -> None:
        """A process has told how it is doing."""
        if process in self._gauges or len(self._gauges) < MAX_PROCESSES:
            self._gauges[process] = message.gauges
            self._breakers[process] = message.breakers
            if process == "hub":
                self._hub = message.counters

    def left(self, process: str) -> None:
        self._gauges.pop(process, None)
        self._breakers.pop(process, None)

    # --- taking ----------------------------------------------------------------------------------------------

    def take(self, at_s: float, changes: Changes) -> None:
        """Look at everything. What people would call a change goes into `changes`, from the second picture on."""
        sight = self._sight
        members, visitors = sight.members(), sight.visitors()
        machines, resting, relays = sight.machines(), sight.resting(), sight.relays()
        self._date(members, at_s)
        states = self._states_of(visitors)
        servers: Group = {}
        for member in members:
            backend = member.backend
            standing = self._standing(backend.name, backend.column, at_s)
            shown = shapes.server(member, machines.get(backend.name), standing, self._since[backend.id][1])
            servers[backend.id] = shown
        workers: Group = {}
        dialled: Group = {}
        for visitor in visitors:
            known = visitor.worker
            drained = (known.family, known.id) in resting
            if known.family == "mcp":
                shown = shapes.relay(visitor, relays, relays.calls, drained_here=drained)
                dialled[shown["id"]] = shown
            else:
                standing = self._standing(known.name, known.column, at_s)
                state = self._states[shapes.worker_number(known)][1]
                shown = shapes.worker(visitor, state, standing, drained_here=drained)
                workers[shown["id"]] = shown
        groups = {"servers": servers, "workers": workers, "relays": dialled}
        if self._taken:
            changes.compare(at_s, self._groups, groups)
        self._taken = True
        self._groups = groups
        self._catalogue.update(
            [
                *((member.backend.id, member.state) for member in members if not member.leaving),
                *states,
            ]
        )
        self._transfers = self._channels()
        self._sums = self._total(at_s)

    def _total(self, at_s: float) -> Shown:
        sight = self._sight
        pace = self._rates.pace(EVERYBODY, at_s)
        groups = [self._groups[name].values() for name in ("servers", "workers", "relays")]
        everybody = [*self._groups["servers"].values(), *self._groups["workers"].values()]
        return {
            **shapes.sums(*groups),
            "tokensPerSecond": pace.tokens_per_s,
            "tokensInPerSecond": pace.tokens_in_per_s,
            "requestsPerSecond": pace.requests_per_s,
            "failedLastMinute": pace.failed_last_minute,
            "modelsResident": len({model["name"] for one in everybody for model in one["resident"]}),
            "draining": sight.draining() or any(one.get("draining") for one in self._gauges.values()),
            "processes": sorted(sight.processes()),
            "store": sight.store(),
        }

    def _channels(self) -> Shown:
        counts = {name.partition(":")[2]: n for name, n in self._hub.items() if name.startswith("transfers:")}
        return {
            "open": int(self._gauges.get("hub", {}).get("transfer_channels", 0)),
            "bytesTotal": self._hub.get("transfer_bytes", 0),
            "counts": dict(sorted(counts.items())),
        }

    def _standing(self, name: str, column: int, at_s: float) -> Standing:
        words = [_WORST.index(word) for known in self._breakers.values() if (word := known.get(column)) in _WORST]
        return Standing(
            in_flight=self._sight.load(column),
            waiting=self._sight.waiting(column),
            breaker=_WORST[max(words, default=0)],
            pace=self._rates.pace(name, at_s),
            failure=self._rates.failure(name),
        )

    def _states_of(self, visitors: Sequence[Visitor]) -> list[tuple[int, BackendState]]:
        """States of the workers that answer requests; made anew only for those that have said something new."""
        kept: dict[int, tuple[Worker, BackendState]] = {}
        for visitor in visitors:
            known = visitor.worker
            if known.family != "mcp":
                number = shapes.worker_number(known)
                before = self._states.get(number)
                kept[number] = before if before is not None and before[0] is known else (known, state_of(known))
        self._states = kept
        return [(number, state) for number, (_, state) in kept.items()]

    def _date(self, members: Sequence[Member], at_s: float) -> None:
        """Since when each server is as it is; None for what was so when we first looked."""
        since: dict[int, tuple[str, float | None]] = {}
        for member in members:
            state = shapes.server_state(member)
            before = self._since.get(member.backend.id)
            if before is not None and before[0] == state:
                since[member.backend.id] = before
            else:
                since[member.backend.id] = (state, at_s if self._taken else None)
        self._since = since

    # --- telling ---------------------------------------------------------------------------------------------

    def differences(self, at_s: float) -> tuple[Shown | None, Shown | None]:
        """(fleet, models) as patches since this was last asked; None where nothing is different."""
        changed, removed = self._catalogue.take()
        models = {"whole": False, "models": changed, "removed": removed} if changed or removed else None
        known, self._known = self._known, self._groups
        patch: Shown = {"whole": False, "at": shapes.instant(at_s)}
        gone: dict[str, list[int]] = {}
        for name, group in self._groups.items():
            before = known[name]
            patch[name] = [shown for number, shown in group.items() if before.get(number) != shown]
            gone[name] = sorted(before.keys() - group.keys())
        sums = (self._totals(), self._transfers)
        same = sums == self._known_sums and not any(gone.values()) and not any(patch[name] for name in gone)
        self._known_sums = sums
        if same:
            return None, models
        return {**patch, "removed": gone, "totals": sums[0], "transfers": sums[1]}, models

    def whole_fleet(self, at_s: float) -> Shown:
        """Everything, as watchers know it."""
        return {
            "whole": True,
            "at": shapes.instant(at_s),
            **{name: list(group.values()) for name, group in self._known.items()},
            "removed": {name: [] for name in self._known},
            "totals": self._known_sums[0],
            "transfers": self._known_sums[1],
        }

    def whole_models(self) -> Shown:
        return {"whole": True, "models": self._catalogue.all(), "removed": []}

    def tripped(self, column: int) -> bool:
        """A process has this backend's breaker open."""
        return any(known.get(column) == "open" for known in self._breakers.values())

    def group(self, name: str) -> list[Shown]:
        """The latest picture of "servers", "workers" or "relays"."""
        return list(self._groups[name].values())

    def pulls(self) -> list[Shown]:
        return self._sight.pulls()

    def _totals(self) -> Shown:
        return {**self._sums, "models": len(self._catalogue)}
