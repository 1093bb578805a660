"""Control's end of the link: takes messages from every process, gives each the newest snapshot.

One connection per process. What waits for a process is two numbers, never a queue: the newest snapshot it has not
been sent, and the newest rotation it has not been asked for. So memory is bounded by one encoded snapshot for all, and
a process that does not read is dropped after `SEND_TIMEOUT_S`; it comes back and gets the newest snapshot at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from fleetproxy import log
from fleetproxy.core.table import Snapshot
from fleetproxy.link.framing import LinkError, encode, read
from fleetproxy.link.messages import Acknowledge, Hello, Message, Publish, Rotate, Rotated

_log = log.get("link")

#: A process must say Hello within this time of connecting.
HELLO_TIMEOUT_S = 5.0
#: A process that takes longer than this to read what was sent to it is dropped.
SEND_TIMEOUT_S = 10.0
#: Connections at once: 64 proxies, the hub, and as many that are just being replaced. More are closed unread.
MAX_CONNECTIONS = 160


class LinkCounts(msgspec.Struct):
    """What went by since the start."""

    connections: int = 0
    #: Closed because too many were open.
    refused: int = 0
    #: Dropped for not reading.
    slow: int = 0
    #: Dropped for garbage, or for no Hello in time.
    broken: int = 0
    #: Messages whose receiver raised.
    failed: int = 0
    published: int = 0


class _Peer:
    """One connected process."""

    def __init__(self, hello: Hello, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self.writer = writer
        self.wake = asyncio.Event()
        #: Version last written to it, version it says it uses.
        self.sent = -1
        self.acknowledged = -1
        #: Newest rotation asked for, sent, done.
        self.rotate_wanted = 0
        self.rotate_sent = 0
        self.rotated = 0


class LinkServer:
    """Serves `path` until stopped. `on_message(process name, message)` is called for every message of a process but
    acknowledgements, which this class keeps itself; it must not block.

    `expected` are the processes that must have acknowledged a version before `acknowledged` says so, connected or not.
    """

    def __init__(self, path: Path, on_message: Callable[[str, Message], None], expected: Collection[str] = ()) -> None:
        self._path = path
        self._on_message = on_message
        #: Called with the name of a process whose connection ended.
        self.on_leave: Callable[[str], None] = lambda _process: None
        self.expected = frozenset(expected)
        self._peers: dict[str, _Peer] = {}
        #: Processes whose connection broke: name -> (pid, version acknowledged). They may live on an old snapshot.
        self._absent: dict[str, tuple[int, int]] = {}
        self._connections: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._version = -1
        self._frame = b""
        self._rotation = 0
        self._progress = asyncio.Event()
        self.counts = LinkCounts()

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until `stop` is set. Raises OSError when the socket cannot be had."""
        server = await asyncio.start_unix_server(self._connected, sock=_bind(self._path))
        try:
            await stop.wait()
        finally:
            server.close()
            for writer in tuple(self._connections):
                writer.transport.abort()
            if self._handlers:
                await asyncio.wait(self._handlers)
            await server.wait_closed()
            self._path.unlink(missing_ok=True)

    def publish(self, snapshot: Snapshot) -> None:
        """Give every process this snapshot, now and when it connects later. Older unsent ones are forgotten."""
        self._frame = encode(Publish(snapshot))
        self._version = snapshot.version
        self.counts.published += 1
        for peer in self._peers.values():
            peer.wake.set()

    def processes(self) -> tuple[Hello, ...]:
        """The processes connected now."""
        return tuple(peer.hello for peer in self._peers.values())

    def acknowledged(self, version: int) -> bool:
        """Whether no process uses a snapshot older than `version` any more, as far as can be known.

        A process that lost its connection counts until it comes back or its pid is gone.
        """
        for name, (pid, acknowledged) in tuple(self._absent.items()):
            if not _alive(pid):
                del self._absent[name]
            elif acknowledged < version:
                return False
        if any(peer.acknowledged < version for peer in self._peers.values()):
            return False
        return self.expected <= self._peers.keys() | self._absent.keys()

    async def everybody_has(self, version: int, timeout_s: float) -> bool:
        """Wait until every process that is here uses `version` or a newer one. False when one does not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while any(peer.acknowledged < version for peer in self._peers.values()):
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def rotate_all(self, timeout_s: float = 1.0) -> bool:
        """Have every connected process close its spool segment. False when one has not said so in time."""
        self._rotation += 1
        number = self._rotation
        for peer in self._peers.values():
            peer.rotate_wanted = number
            peer.wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                while any(peer.rotated < number <= peer.rotate_wanted for peer in self._peers.values()):
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    # --- one connection --------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            self.counts.refused += 1
            writer.transport.abort()
            return
        self._connections.add(writer)
        self.counts.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        peer: _Peer | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = await read(reader)
            if not isinstance(hello, Hello):
                raise LinkError(f"the first message was a {type(hello).__name__}, not a Hello")
            peer = self._enter(hello, writer)
            await self._converse(peer, reader)
        except (LinkError, TimeoutError) as error:
            self.counts.broken += 1
            name = peer.hello.process if peer else "a process"
            _log.warning("link: %s was dropped: %s", name, error or "no Hello in time")
        except (EOFError, OSError):
            pass  # it left, or we are stopping
        except Exception:
            self.counts.broken += 1
            _log.exception("link: a connection failed")
        finally:
            if peer is not None:
                self._leave(peer)
            writer.transport.abort()
            self._connections.discard(writer)
            self._handlers.discard(task)

    def _enter(self, hello: Hello, writer: asyncio.StreamWriter) -> _Peer:
        name = hello.process
        old = self._peers.pop(name, None)
        if old is not None:  # respawned, or it reconnected before we saw the old connection end
            old.writer.transport.abort()
        self._absent.pop(name, None)
        peer = self._peers[name] = _Peer(hello, writer)
        self._deliver(name, hello)
        return peer

    def _leave(self, peer: _Peer) -> None:
        name = peer.hello.process
        if self._peers.get(name) is peer:
            del self._peers[name]
            self._absent = {name: state for name, state in self._absent.items() if _alive(state[0])}
            self._absent[name] = (peer.hello.pid, peer.acknowledged)
            self.on_leave(name)
        self._step()

    async def _converse(self, peer: _Peer, reader: asyncio.StreamReader) -> None:
        sending = asyncio.create_task(self._send(peer))
        try:
            while True:
                message = await read(reader)
                match message:
                    case Acknowledge(version):
                        peer.acknowledged = max(peer.acknowledged, version)
                        self._step()
                    case Rotated(number):
                        peer.rotated = max(peer.rotated, number)
                        self._step()
                    case Hello():
                        raise LinkError("a second Hello")
                    case _:
                        self._deliver(peer.hello.process, message)
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def _send(self, peer: _Peer) -> None:
        """Write what the peer has not got yet, newest only. Ends the connection rather than raising."""
        try:
            while True:
                if peer.rotate_sent < peer.rotate_wanted:
                    peer.rotate_sent = peer.rotate_wanted
                    peer.writer.write(encode(Rotate(peer.rotate_sent)))
                elif peer.sent != self._version:
                    peer.sent = self._version
                    peer.writer.write(self._frame)
                else:
                    peer.wake.clear()
                    await peer.wake.wait()
                    continue
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await peer.writer.drain()
        except TimeoutError:
            self.counts.slow += 1
            _log.warning("link: %s does not read; dropped, it will reconnect", peer.hello.process)
        except (OSError, RuntimeError):
            pass  # it left; uvloop raises RuntimeError when a closed transport is written to
        peer.writer.transport.abort()

    def _deliver(self, process: str, message: Message) -> None:
        try:
            self._on_message(process, message)
        except Exception:
            self.counts.failed += 1
            _log.exception("link: a %s of %s could not be handled", type(message).__name__, process)

    def _step(self) -> None:
        """Wake those who wait for acknowledgements or rotations."""
        self._progress.set()
        self._progress = asyncio.Event()


def _bind(path: Path) -> socket.socket:
    """A listening-to-be socket at `path`, mode 0600 before anybody can connect. A stale one is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError:
        listener.close()
        raise
    return listener


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
