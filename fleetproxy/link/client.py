"""A process's end of the link: takes snapshots, tells control what it saw. Works on without control.

What waits to be sent is the newest message of each subject (one `Count`, one `Observe` per backend and kind, one
`Acknowledge`, ...; only what tells of changes is queued), so an absent control costs a bounded amount of memory and
nothing old is told first.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path

from fleetproxy import log
from fleetproxy.core.table import Snapshot
from fleetproxy.link.framing import LinkError, encode, read, read_boot, read_snapshot
from fleetproxy.link.messages import Acknowledge, Count, Hello, Message, Observe, Publish, Rotate, Rotated, WorkersPulse

_log = log.get("link")

#: Messages waiting for control at most; further ones are dropped and counted.
MAX_PENDING = 1024
#: Wait before the first reconnect and at most; each is drawn between half and the whole of it.
BACKOFF_S, BACKOFF_MAX_S = 0.05, 2.0
#: A connection that lived this long was a good one: the next reconnect starts from the short wait again.
GOOD_S = 5.0


class LinkClient:
    """Keeps one connection to control, for ever.

    `on_snapshot` gets every snapshot worth using, first the one in the runtime folder when control is not there yet;
    `on_rotate` closes the spool segment. Both are called on the loop and must not block. A snapshot whose receiver
    raised is not acknowledged.
    """

    def __init__(
        self,
        path: Path,
        hello: Hello,
        on_snapshot: Callable[[Snapshot], None],
        on_rotate: Callable[[], None],
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._path = path
        self._hello = hello
        self._on_snapshot = on_snapshot
        self._on_rotate = on_rotate
        self._rng = rng or random.Random()  # noqa: S311 - spreads reconnects, guards nothing
        self._clock = clock
        self._sleep = sleep
        self._pending: dict[Hashable, Message] = {}
        self._wake = asyncio.Event()
        self._serial = itertools.count()
        #: (boot, version) of the snapshot in use.
        self._in_use: tuple[str, int] | None = None
        #: Messages lost to a full queue, since start.
        self.dropped = 0
        #: Connections made, since start.
        self.connections = 0
        self.connected = False

    async def run(self) -> None:
        """Serve the link until cancelled."""
        self._restore()
        wait_s = BACKOFF_S
        while True:
            began = self._clock()
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                pass  # control is not there; it will be back
            else:
                await self._converse(reader, writer)
            if self._clock() - began >= GOOD_S:
                wait_s = BACKOFF_S
            await self._sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, BACKOFF_MAX_S)

    def send(self, message: Message) -> bool:
        """Leave a message for control; never blocks. False when the queue was full and it was dropped."""
        key = self._subject(message)
        if key not in self._pending and len(self._pending) >= MAX_PENDING:
            self.dropped += 1
            return False
        self._pending[key] = message
        self._wake.set()
        return True

    def _subject(self, message: Message) -> Hashable:
        match message:
            case Observe(backend, kind):
                return backend, kind
            case Count() | Acknowledge() | Rotated() | WorkersPulse():
                return type(message)
            case _:
                return next(self._serial)

    def _restore(self) -> None:
        """Start from the snapshot in the runtime folder, if it is of this start of the service."""
        snapshot = read_snapshot(self._path.with_name("snapshot"))
        if snapshot is not None and snapshot.boot == read_boot(self._path.parent):
            self._use(snapshot)

    def _use(self, snapshot: Snapshot) -> bool:
        identity = (snapshot.boot, snapshot.version)
        if identity == self._in_use:
            return True  # control sends its newest to every new connection
        try:
            self._on_snapshot(snapshot)
        except Exception:
            _log.exception("link: snapshot %d could not be used; the one before stays", snapshot.version)
            return False
        self._in_use = identity
        return True

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.connected = True
        sending = asyncio.create_task(self._send(writer))
        try:
            while True:
                match await read(reader):
                    case Publish(snapshot):
                        if self._use(snapshot):
                            self.send(Acknowledge(snapshot.version))
                    case Rotate(number):
                        self._rotate()
                        self.send(Rotated(number))
        except LinkError as error:
            _log.warning("link: control sent what is no message; reconnecting: %s", error)
        except (EOFError, OSError):
            pass
        finally:
            self.connected = False
            sending.cancel()
            await asyncio.wait({sending})
            writer.transport.abort()
            self._pending.pop(Acknowledge, None)  # both answer a connection that is gone
            self._pending.pop(Rotated, None)

    def _rotate(self) -> None:
        try:
            self._on_rotate()
        except Exception:
            _log.exception("link: the spool segment could not be closed")

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        """Write what is pending. Ends the connection rather than raising."""
        try:
            writer.write(encode(self._hello))
            while True:
                await writer.drain()
                if not self._pending:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                waiting, self._pending = self._pending, {}
                for message in waiting.values():
                    try:
                        writer.write(encode(message))
                    except LinkError as error:
                        self.dropped += 1
                        _log.warning("link: %s", error)
        except (OSError, RuntimeError):
            pass  # control left; uvloop raises RuntimeError when a closed transport is written to
        writer.transport.abort()
