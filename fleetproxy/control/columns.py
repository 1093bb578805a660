"""Columns of the load board: who counts where, and when a column may serve somebody else.

A server keeps its column as long as it is in the fleet. A column that was given back rests until no process can still
count in it: every process has acknowledged a snapshot without its server, and its sum is zero. Columns never used
come first, so reused ones are needed only after thousands of servers have come and gone.

The map is kept in the runtime folder, beside the board it describes: a control that starts anew goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from fleetproxy.link.board import WORKER_COLUMNS

#: Columns for configured servers: those below the hub's.
COLUMNS = WORKER_COLUMNS.start


class Map(msgspec.Struct, frozen=True, kw_only=True):
    """Who has which column. Every column is in use, resting, free, or not yet used (`next` and above)."""

    #: The start of the service the board belongs to.
    boot: str
    columns: dict[str, int] = {}
    #: Column -> version of the first snapshot without its server; None while that has not been made.
    resting: dict[int, int | None] = {}
    free: tuple[int, ...] = ()
    next: int = 0


class Columns:
    """The map of this start of the service, kept in `path`."""

    def __init__(self, path: Path, boot: str) -> None:
        self._path = path
        known = _read(path)
        self._map = known if known is not None and known.boot == boot else Map(boot=boot)

    def assign(self, names: Iterable[str]) -> dict[str, int]:
        """Columns of exactly these servers; those of other servers begin to rest.

        A server for which there is none (all `COLUMNS` are in use or resting) is missing from the answer. The
        map is on disk when this returns. Raises OSError.
        """
        old, wanted = self._map, tuple(dict.fromkeys(names))
        columns = {name: old.columns[name] for name in wanted if name in old.columns}
        resting = old.resting | {column: None for name, column in old.columns.items() if name not in columns}
        free, following = list(old.free), old.next
        for name in wanted:
            if name in columns:
                continue
            if following < COLUMNS:
                columns[name], following = following, following + 1
            elif free:
                columns[name] = free.pop()
        self._keep(Map(boot=old.boot, columns=columns, resting=resting, free=tuple(free), next=following))
        return columns

    def published(self, version: int) -> None:
        """The snapshot of this version was made from the columns assigned last. Raises OSError."""
        resting = {column: version if at is None else at for column, at in self._map.resting.items()}
        self._keep(msgspec.structs.replace(self._map, resting=resting))

    def reclaim(self, acknowledged: Callable[[int], bool], load: Callable[[int], int]) -> None:
        """Let columns that have rested long enough serve again. Raises OSError."""
        done = [
            column
            for column, version in self._map.resting.items()
            if version is not None and load(column) == 0 and acknowledged(version)
        ]
        if done:
            resting = {column: version for column, version in self._map.resting.items() if column not in done}
            self._keep(msgspec.structs.replace(self._map, resting=resting, free=(*self._map.free, *done)))

    @property
    def resting(self) -> int:
        return len(self._map.resting)

    def _keep(self, new: Map) -> None:
        if new == self._map:
            return
        temporary = self._path.with_name(self._path.name + ".new")
        temporary.write_bytes(msgspec.msgpack.encode(new))
        temporary.replace(self._path)
        self._map = new


def _read(path: Path) -> Map | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Map)
    except (OSError, msgspec.MsgspecError):
        return None
