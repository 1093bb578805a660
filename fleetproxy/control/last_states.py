"""What the last poll of each server said, on disk: so that a new start of control tells changes from news.

One file per server, replaced whole. Without it the fleet would be empty for the first seconds after a restart, models
that stayed in memory would be told as loaded again, and those that left meanwhile would never be told as unloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from fleetproxy import log
from fleetproxy.control.sightings import same_but_fleeting, same_place
from fleetproxy.core.backend import Backend, BackendState

_log = log.get("control.fleet")

#: An unchanged state is written again after this, so that a restart knows how old it is.
REFRESH_S = 60.0


class LastState(msgspec.Struct, frozen=True, kw_only=True):
    """One server as it was seen last."""

    #: Where it was; a server that has moved since is another one. Without its key.
    backend: Backend
    state: BackendState
    #: Model in memory -> seconds since the epoch when it was seen to come.
    loaded_at_s: dict[str, float] = {}


_DECODER = msgspec.json.Decoder(LastState)


class LastStates:
    """The folder of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: Server id -> what is on disk.
        self._written: dict[int, LastState] = {}
        #: Writes that failed, since the start.
        self.failed = 0

    def read(self, backend: Backend, now_s: float) -> LastState | None:
        """The last state of this server; None when it is new, has moved, or its file is damaged."""
        last = self._known(backend.id)
        if last is None or not _same_server(last.backend, backend):
            return None
        polled_at_s = last.state.polled_at_s
        if polled_at_s is not None and polled_at_s > now_s:  # the clock was set back since
            last = msgspec.structs.replace(last, state=msgspec.structs.replace(last.state, polled_at_s=now_s))
        return last

    def write(self, backend: Backend, state: BackendState, loaded_at_s: dict[str, float]) -> None:
        """Keep a state. A disk that is full costs the restart its memory, nothing more; it is counted."""
        last = LastState(backend=_without_key(backend), state=state, loaded_at_s=dict(loaded_at_s))
        known = self._written.get(backend.id)
        if known is not None and _says_the_same(known, last):
            return
        path = self._path(backend.id)
        temporary = path.with_suffix(".new")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(last))
            temporary.replace(path)
        except OSError as error:
            self.failed += 1
            if self.failed == 1:
                _log.warning("the state of %s could not be kept: %s", backend.name, error.strerror)
            return
        self._written[backend.id] = last

    def departed(self, backends: Iterable[Backend]) -> list[LastState]:
        """What was seen last of servers that are no longer in the fleet, or are somewhere else now; it is forgotten."""
        here = {backend.id: backend for backend in backends}
        found: list[LastState] = []
        try:
            for path in self._folder.iterdir():
                if not path.stem.isdigit() or path.suffix != ".json":
                    continue
                server_id = int(path.stem)
                known = self._written.get(server_id)
                if known is None and server_id in here:
                    known = self._known(server_id)  # of an earlier life: looked at once
                if known is not None and server_id in here and _same_server(known.backend, here[server_id]):
                    self._written.setdefault(server_id, known)
                    continue
                known = known or self._known(server_id)
                path.unlink(missing_ok=True)
                self._written.pop(server_id, None)
                if known is not None:
                    found.append(known)
        except OSError:
            pass  # there is no folder yet, or it will be tidied the next time
        return found

    def _known(self, server_id: int) -> LastState | None:
        try:
            return _DECODER.decode(self._path(server_id).read_bytes())
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _path(self, server_id: int) -> Path:
        return self._folder / f"{server_id}.json"


def _same_server(known: Backend, backend: Backend) -> bool:
    return known.name == backend.name and same_place(known, backend)


def _without_key(backend: Backend) -> Backend:
    return msgspec.structs.replace(backend, api_key=None)


def _says_the_same(old: LastState, new: LastState) -> bool:
    """Equal but for what changes with every poll, and not much older."""
    was, now = old.state.polled_at_s or 0.0, new.state.polled_at_s or 0.0
    return (
        abs(now - was) < REFRESH_S
        and same_but_fleeting(old.state, new.state)
        and old == msgspec.structs.replace(new, state=old.state)
    )
