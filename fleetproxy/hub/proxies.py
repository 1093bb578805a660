"""The proxy processes' connections: one multiplexed Unix socket each, on hub.sock."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from fleetproxy.hub import line
from fleetproxy.hub.line import WaitingLine
from fleetproxy.hub.streams import Stream, StreamEnd
from fleetproxy.hub.workers import Workers
from fleetproxy.transport.framed import FramedConnection
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import Frame, FrameError

_log = logging.getLogger("fleetproxy.hub")

#: 64 proxy processes, and as many that are just being replaced.
MAX_CONNECTIONS = 128


class Proxy:
    """One connected proxy process."""

    def __init__(self, number: int, connection: FramedConnection) -> None:
        self.number = number
        self.connection = connection
        #: Its name, once it has registered.
        self.process: str | None = None
        #: Its open streams.
        self.streams: dict[int, StreamEnd] = {}
        #: The highest stream it has opened: numbers only grow.
        self.opened = 0
        self.send = connection.send
        self.send_data = connection.send_data


#: Opens a stream of a proxy process to something other than a worker. Raises FrameError when that makes no sense.
Opener = Callable[[Proxy, int, payloads.Open], None]


class Proxies:
    """Serves hub.sock; hands each frame to whom it concerns. `greeting()` is what a new connection is told first."""

    def __init__(
        self,
        waiting: WaitingLine,
        workers: Workers,
        openers: Mapping[str, Opener],
        greeting: Callable[[], bytes] = bytes,
    ) -> None:
        self._waiting = waiting
        self._workers = workers
        self._openers = openers
        self._greeting = greeting
        self._by_connection: dict[FramedConnection, Proxy] = {}
        self._numbers = itertools.count(1)
        self._empty = asyncio.Event()
        self._empty.set()
        #: Connections closed because too many were open.
        self.refused = 0

    def __len__(self) -> int:
        return len(self._by_connection)

    async def listen(self, path: Path) -> asyncio.Server:
        """Start listening at `path`, replacing a stale socket. Raises OSError."""
        loop = asyncio.get_running_loop()
        return await loop.create_unix_server(lambda: _Accepted(self), sock=_bind(path))

    async def all_gone(self) -> None:
        """Wait until no proxy process is connected."""
        await self._empty.wait()

    def close(self) -> None:
        for connection in tuple(self._by_connection):
            connection.abort()

    def tell(self, data: bytes) -> None:
        """Send frames to every proxy process."""
        for proxy in tuple(self._by_connection.values()):
            if proxy.process is not None:
                proxy.send(data)

    def _made(self, connection: FramedConnection) -> None:
        if len(self._by_connection) >= MAX_CONNECTIONS:
            self.refused += 1
            connection.abort()
            return
        self._by_connection[connection] = Proxy(next(self._numbers), connection)
        self._empty.clear()

    def _frame(self, connection: FramedConnection, frame: Frame) -> None:
        proxy = self._by_connection.get(connection)
        if proxy is None:
            return  # refused at the door, its bytes were on the way
        if proxy.process is None:
            self._register(proxy, frame)
        elif frame.stream:
            self._stream(proxy, frame)
        elif frame.kind == frames.PING:
            pong = frames.encode(frames.PONG, 0, frame.payload)
            self._workers.when_told(lambda: proxy.send(pong))
        elif frame.kind in line.KINDS:
            self._waiting.frame(proxy.number, frame.kind, frame.payload)
        else:
            raise FrameError(f"a {frames.NAMES[frame.kind]} frame is not for the hub")

    def _register(self, proxy: Proxy, frame: Frame) -> None:
        if frame.kind != frames.REGISTER:
            raise FrameError(f"the first frame was {frames.NAMES[frame.kind]}, not REGISTER")
        proxy.process = payloads.decode(frame.payload, payloads.Register).process
        proxy.connection.name = proxy.process
        self._waiting.connect(proxy.number, proxy.send)
        proxy.send(self._greeting())

    def _stream(self, proxy: Proxy, frame: Frame) -> None:
        if frame.kind == frames.OPEN:
            if frame.stream <= proxy.opened:
                raise FrameError(f"stream {frame.stream} was opened before")
            proxy.opened = frame.stream
            self._open(proxy, frame.stream, payloads.decode(frame.payload, payloads.Open))
            return
        stream = proxy.streams.get(frame.stream)
        if stream is not None:
            stream.frame(frame.kind, frame.payload)
        elif frame.stream > proxy.opened:
            raise FrameError(f"stream {frame.stream} was never opened")
        # else it has ended here while this was on its way

    def _open(self, proxy: Proxy, number: int, opening: payloads.Open) -> None:
        match opening.to:
            case "worker":
                worker = self._workers.find(opening.column, opening.who)
                if worker is None:
                    gone = payloads.encode(payloads.Reset("connect_failed"))
                    proxy.send(frames.encode(frames.RESET, number, gone))
                    return
                stream = proxy.streams[number] = Stream(proxy, number, worker)
                worker.take(stream, opening.request)
            case other:
                opener = self._openers.get(other)
                if opener is None:
                    raise FrameError(f"there is nothing called {other} behind the hub")
                opener(proxy, number, opening)

    def _lost(self, connection: FramedConnection) -> None:
        proxy = self._by_connection.pop(connection, None)
        if proxy is not None and proxy.process is not None:
            self._waiting.disconnect(proxy.number)
            for stream in tuple(proxy.streams.values()):
                stream.abandon()
        if not self._by_connection:
            self._empty.set()


class _Accepted(FramedConnection):
    """A connection that introduces itself to the registry as it is made."""

    __slots__ = ("_proxies",)

    def __init__(self, proxies: Proxies) -> None:
        super().__init__(proxies._frame, proxies._lost)
        self._proxies = proxies

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxies._made(self)


def _bind(path: Path) -> socket.socket:
    """A socket at `path`, mode 0600 before anybody can connect."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError:
        listener.close()
        raise
    return listener
