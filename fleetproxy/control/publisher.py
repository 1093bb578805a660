"""Gives the data plane its snapshots: the newest state of everything, numbered, whole, soon.

Whoever changes something says `changed()`. Changes that come close together make one snapshot, at most 50 ms later
(later still only when making one takes long: a fleet of thousands must not eat the process). A snapshot that says
what the last one said is not sent. Before it is sent it is written to the runtime folder, for processes that start
while control is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fleetproxy import log
from fleetproxy.core.table import Snapshot
from fleetproxy.link.framing import LinkError, read_snapshot, write_snapshot

_log = log.get("control.publisher")

#: Changes are gathered for this long.
GATHER_S = 0.05
GATHER_MAX_S = 1.0
#: Making snapshots may take at most this share of the time.
_SHARE = 0.2
#: Versions are set aside on disk in blocks of this size, so that one write serves many snapshots.
BLOCK = 1000


class Versions:
    """Numbers that only grow, over restarts too, even when control was killed."""

    def __init__(self, path: Path, at_least: int = 0) -> None:
        self._path = path
        self._next = max(_read_number(path), at_least) + 1
        self._reserved = 0

    def next(self) -> int:
        number, self._next = self._next, self._next + 1
        if number > self._reserved:
            self._reserve(number + BLOCK)
        return number

    def _reserve(self, up_to: int) -> None:
        temporary = self._path.with_suffix(".new")
        try:
            temporary.write_text(str(up_to))
            temporary.replace(self._path)
        except OSError as error:
            # Serving goes first; the snapshot in the runtime folder still tells most restarts where we were.
            _log.warning("the number of the snapshot could not be kept: %s", error.strerror)
        self._reserved = up_to


class PublisherCounts(msgspec.Struct):
    #: Snapshots sent; made but equal to the last; that could not be made; that could not be written to the file.
    published: int = 0
    unchanged: int = 0
    failed: int = 0
    unwritten: int = 0
    #: Seconds the last one took to make and send.
    last_s: float = 0.0


class Publisher:
    """`make()` gives the state of everything as an unnumbered snapshot; `send(snapshot)` gives it to the processes."""

    def __init__(
        self,
        make: Callable[[], Snapshot],
        send: Callable[[Snapshot], None],
        *,
        path: Path,
        versions: Path,
        boot: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._send = send
        self._path = path
        self._boot = boot
        self._clock = clock
        last = read_snapshot(path)
        self._versions = Versions(versions, last.version if last else 0)
        self._changed = asyncio.Event()
        self.counts = PublisherCounts()
        #: The newest snapshot sent; version 0 before the first.
        self.snapshot = Snapshot()

    def changed(self) -> None:
        """Something that may matter to the data plane is different now."""
        self._changed.set()

    async def run(self) -> None:
        """Publish what changes, until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(min(GATHER_MAX_S, max(GATHER_S, self.counts.last_s / _SHARE)))
            self.publish()

    def publish(self) -> None:
        """Make a snapshot now and send it, if it says something new. Never raises."""
        self._changed.clear()
        began = self._clock()
        try:
            fresh = self._make()
            known = self.snapshot
            if known.version and fresh == msgspec.structs.replace(known, version=0, boot=""):
                self.counts.unchanged += 1
                return
            snapshot = msgspec.structs.replace(fresh, version=self._versions.next(), boot=self._boot)
            self._keep(snapshot)
            self._send(snapshot)
        except LinkError as error:
            self.counts.failed += 1
            _log.error("the processes keep their last snapshot: %s", error)
        except Exception:
            self.counts.failed += 1
            _log.exception("no snapshot could be made; the processes keep their last one")
        else:
            self.counts.published += 1
            self.snapshot = snapshot
        finally:
            self.counts.last_s = self._clock() - began

    def _keep(self, snapshot: Snapshot) -> None:
        try:
            write_snapshot(self._path, snapshot)
        except OSError as error:
            self.counts.unwritten += 1
            if self.counts.unwritten == 1:
                _log.warning("the snapshot could not be written to the runtime folder: %s", error.strerror)


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
