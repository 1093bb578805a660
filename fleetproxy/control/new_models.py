"""Notices model names that no server of the fleet had before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from fleetproxy import log
from fleetproxy.control.ports import FleetPort
from fleetproxy.control.state import Store, discoveries
from fleetproxy.control.state.discoveries import Discovery
from fleetproxy.core.backend import Backend, BackendState

_log = log.get("control.models")

LOOK_S = 15.0
FORGET_EVERY = 240
MAX_NAME_CHARACTERS = 256
_MAX_TEXT = 64


class NewModels:
    def __init__(self, store: Store, fleet: FleetPort, now: Callable[[], datetime]) -> None:
        self._store = store
        self._fleet = fleet
        self._now = now
        self._known: set[str] | None = None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        looks = 0
        while True:
            try:
                await self.look()
                looks += 1
                if looks % FORGET_EVERY == 0:
                    here = [name for name, _, _ in _names(self._fleet.backends())]
                    await self._store.write(discoveries.forget, self._now(), here)
                    self._known = None
            except Exception:
                _log.exception("new models are not noticed")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Write down names that were never seen before."""
        if self._known is None:
            self._known = await self._store.read(discoveries.names)
        found: dict[str, Discovery] = {}
        for name, backend, details in _names(self._fleet.backends()):
            if name not in self._known and name not in found:
                found[name] = self._described(name, backend, details)
        if found:
            await self._store.write(discoveries.note, list(found.values()))
            self._known |= set(found)

    def _described(self, name: str, backend: Backend, entry: dict[str, Any]) -> Discovery:
        details = entry.get("details")
        details = details if isinstance(details, dict) else {}
        families = details.get("families")
        size = entry.get("size")
        return Discovery(
            model_name=name,
            model_family=_text(details.get("family")),
            families=[text for one in (families if isinstance(families, list) else [])[:16] if (text := _text(one))],
            parameter_size=_text(details.get("parameter_size")),
            quantization=_text(details.get("quantization_level")),
            model_size_bytes=size if isinstance(size, int) and 0 <= size < 2**62 else 0,
            first_seen_server_name=backend.name,
            discovered_at=self._now(),
        )


def _names(fleet: Any) -> Iterator[tuple[str, Backend, dict[str, Any]]]:
    """Every model on a disk of the fleet, with its server's own entry for it."""
    backend: Backend
    state: BackendState
    for backend, state in fleet:
        entries = {entry.get("name"): entry for entry in _entries(state.raw_tags)}
        for model in state.on_disk:
            if len(model.name) <= MAX_NAME_CHARACTERS:
                yield model.name, backend, entries.get(model.name, {"size": model.size_bytes})


def _entries(raw: msgspec.Raw) -> list[dict[str, Any]]:
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _text(value: object) -> str | None:
    return value[:_MAX_TEXT] if isinstance(value, str) and value else None
