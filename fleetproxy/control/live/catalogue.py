"""Where each model is, kept up to date server by server: what a poll changed costs what it changed, not the fleet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fleetproxy.core.backend import BackendState, DiskModel, ResidentModel

Shown = dict[str, Any]
_Lists = tuple[tuple[ResidentModel, ...], tuple[DiskModel, ...]]


class Catalogue:
    """Every model of the fleet by name. `take()` gives what has changed since it was last asked."""

    def __init__(self) -> None:
        self._lists: dict[int, _Lists] = {}
        self._on_disk: dict[str, dict[int, DiskModel | ResidentModel]] = {}
        self._resident: dict[str, set[int]] = {}
        self._dirty: set[str] = set()
        self._shown: dict[str, Shown] = {}

    def __len__(self) -> int:
        return len(self._shown)

    def update(self, backends: Iterable[tuple[int, BackendState]]) -> None:
        """These are all backends now, by number."""
        here: set[int] = set()
        for number, state in backends:
            here.add(number)
            self._put(number, (state.resident, state.on_disk))
        for number in self._lists.keys() - here:
            self._put(number, ((), ()))
            del self._lists[number]

    def take(self) -> tuple[list[Shown], list[str]]:
        """(models that are new or different, names of those that are gone)."""
        dirty, self._dirty = self._dirty, set()
        changed, removed = [], []
        for name in sorted(dirty):
            shown = self._show(name)
            if shown == self._shown.get(name):
                continue
            if shown is None:
                del self._shown[name]
                removed.append(name)
            else:
                self._shown[name] = shown
                changed.append(shown)
        return changed, removed

    def all(self) -> list[Shown]:
        """Every model, as of the last `take()`."""
        return [self._shown[name] for name in sorted(self._shown)]

    def _put(self, number: int, lists: _Lists) -> None:
        before = self._lists.get(number, ((), ()))
        self._lists[number] = lists
        if before[1] is not lists[1] and before[1] != lists[1]:
            self._differ(self._holders, number, before[1], lists[1])
        if before[0] is not lists[0] and before[0] != lists[0]:
            self._differ(self._residents, number, before[0], lists[0])

    def _differ(self, keep: Any, number: int, before: Iterable[Any], now: Iterable[Any]) -> None:
        was, fresh = {one.name: one for one in before}, {one.name: one for one in now}
        for name in was.keys() | fresh.keys():
            if was.get(name) != fresh.get(name):
                keep(name, number, fresh.get(name))
                self._dirty.add(name)

    def _holders(self, name: str, number: int, model: DiskModel | None) -> None:
        holders = self._on_disk.setdefault(name, {})
        if model is not None:
            holders[number] = model
            return
        holders.pop(number, None)
        if not holders:
            del self._on_disk[name]

    def _residents(self, name: str, number: int, model: ResidentModel | None) -> None:
        holders = self._resident.setdefault(name, set())
        if model is not None:
            holders.add(number)
            return
        holders.discard(number)
        if not holders:
            del self._resident[name]

    def _show(self, name: str) -> Shown | None:
        holders, resident = self._on_disk.get(name, {}), self._resident.get(name, set())
        if not holders and not resident:
            return None
        known = list(holders.values())
        return {
            "name": name,
            "sizeBytes": max((one.size_bytes for one in known), default=0),
            "parameterSize": next((one.parameter_size for one in known if one.parameter_size), None),
            "quantization": next((one.quantization for one in known if one.quantization), None),
            "digests": len({one.digest for one in known if one.digest}),
            "onDisk": sorted(holders),
            "resident": sorted(resident),
        }
