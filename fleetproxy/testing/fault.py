"""A scripted raw upstream: does to its peer exactly what a script says, and writes down what the peer did.

    async with FaultUpstream(models=("m",)) as upstream:
        upstream.script = [Send(NDJSON_HEAD), Send(chunk(b"{}")), Rst()]
        ...
        assert upstream.requests[0].closed_s is not None

It answers the questions by which servers are polled like a healthy server (`GET /`, `/api/version`, `/api/tags`,
`/api/ps`, `/health`, `/v1/models`), so that a fleet takes it for one; everything else gets the script.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, Self

import msgspec

from fleetproxy.testing.script import (
    Drip,
    Fin,
    Firehose,
    HalfClose,
    Keep,
    Rst,
    Script,
    Send,
    Sleep,
    Stall,
    poll_answers,
    response,
)
from fleetproxy.testing.streams import Plain, Stream, Tls, deaf

#: Body bytes kept of one request; all of them are counted and hashed.
KEEP_BODY_BYTES = 1 << 20


class Seen(msgspec.Struct, kw_only=True):
    """One request, as it arrived. `*_s` are `time.monotonic()`."""

    connection: int
    method: str
    target: str
    headers: list[tuple[str, str]]
    #: The head, byte for byte, without the empty line.
    head: bytes
    arrived_s: float
    #: The first `KEEP_BODY_BYTES` of the body.
    body: bytes = b""
    body_bytes: int = 0
    body_sha256: str = ""
    #: The body was whole by its own framing.
    body_complete: bool = False
    #: When and how the peer ended the connection before our script did; None while it is there.
    closed_s: float | None = None
    closed_by: Literal["fin", "reset"] | None = None
    #: Bytes of the answer handed to the kernel.
    sent_bytes: int = 0
    #: The script came to its end.
    done: bool = False

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)


class _Peer:
    """One accepted connection: its reader never rests, so that the instant of the peer's close is known."""

    def __init__(self, stream: Stream, number: int) -> None:
        self.stream = stream
        self.number = number
        self.closed_s: float | None = None
        self.closed_by: Literal["fin", "reset"] | None = None
        self.seen: Seen | None = None
        self.by_reset = False
        #: Cleared, the peer's bytes stay in the kernel and its window fills.
        self.reading = asyncio.Event()
        self.reading.set()
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    def start_reading(self) -> None:
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while data := await self.stream.receive():
                self._buffer += data
                self._news.set()
                await self.reading.wait()
            self.gone("fin")
        except (ConnectionError, OSError):
            self.gone("reset")

    def gone(self, how: Literal["fin", "reset"]) -> None:
        self.closed_s, self.closed_by = time.monotonic(), how
        self._mark()
        self._news.set()

    def _mark(self) -> None:
        if self.seen is not None and not self.seen.done:
            self.seen.closed_s, self.seen.closed_by = self.closed_s, self.closed_by

    async def _more(self) -> None:
        if self.closed_s is not None:
            self._mark()
            raise ConnectionResetError
        self._news.clear()
        await self._news.wait()

    async def _take_to(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            await self._more()
        data = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return data

    async def request(self) -> Seen:
        """The next request's head."""
        raw = await self._take_to(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        words = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self.seen = Seen(
            connection=self.number,
            method=words[0],
            target=words[1] if len(words) > 1 else "",
            headers=headers,
            head=raw,
            arrived_s=time.monotonic(),
        )
        if self.closed_s is not None:  # it came together with its sender's goodbye
            self._mark()
        return self.seen

    async def body(self, seen: Seen) -> None:
        """Read the body by its framing; what came stays in `seen` even when it breaks off."""
        digest = hashlib.sha256()
        try:
            if [value.lower() for value in seen.all("transfer-encoding")] == ["chunked"]:
                while size := int((await self._take_to(b"\r\n")).partition(b";")[0], 16):
                    await self._counted(seen, digest, size)
                    await self._take_to(b"\r\n")
                while await self._take_to(b"\r\n"):
                    pass
            else:
                await self._counted(seen, digest, int(seen.header("content-length") or 0))
            seen.body_complete = True
        finally:
            seen.body_sha256 = digest.hexdigest()

    async def _counted(self, seen: Seen, digest: hashlib._Hash, count: int) -> None:
        while count:
            while not self._buffer:
                await self._more()
            piece = bytes(self._buffer[:count])
            del self._buffer[: len(piece)]
            count -= len(piece)
            digest.update(piece)
            seen.body_bytes += len(piece)
            seen.body += piece[: max(0, KEEP_BODY_BYTES - len(seen.body))]

    async def left(self) -> None:
        """Wait until the peer has gone."""
        self._mark()
        while self.closed_s is None:
            self._buffer.clear()
            with contextlib.suppress(ConnectionResetError):
                await self._more()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        self.stream.close(by_reset=self.by_reset)


class FaultUpstream:
    """The scripted upstream. Keeps every request that is not a poll."""

    def __init__(
        self,
        models: Sequence[str] = ("m",),
        *,
        kind: Literal["ollama", "openai"] = "ollama",
        resident: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.models = list(models)
        self.resident = list(resident)
        self.kind = kind
        self.tls = tls
        #: What every request that is not a poll gets, after its body was read.
        self.script: Script = [Send(response(body=b"{}")), Keep()]
        #: Chooses the script of one request, by its number from 1; overrides `script`.
        self.choose: Callable[[int, Seen], Script] | None = None
        #: Done at once to each new connection, before anything is read (polls too).
        self.greeting: Script = ()
        #: False leaves request bodies in the kernel, so that the peer's window fills.
        self.read_body = True
        #: False closes the connection on polls: dead to the poller alone.
        self.answer_polls = True
        #: Scripts of single polls, instead of the usual answers: path -> script.
        self.polls: dict[str, Script] = {}
        self.requests: list[Seen] = []
        self.polled: list[str] = []
        self.connections = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def listening(self) -> bool:
        return self._listener is not None

    async def __aenter__(self) -> Self:
        self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def listen(self) -> None:
        """Open the port: a free one, or the one it had before."""
        listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(1024)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    async def refuse(self) -> None:
        """Close the port, keep open connections: newcomers get ECONNREFUSED until `listen`."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
            self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def vanish(self) -> None:
        """Close the port and every connection, kept ones too: the machine is gone until `listen`."""
        await self.refuse()
        await self.hang_up()

    @contextlib.asynccontextmanager
    async def deaf(self) -> AsyncIterator[None]:
        """For the length of the block, connections to the port never complete."""
        await self.vanish()
        with deaf(self.host, self.port):
            yield
        self.listen()

    async def close(self) -> None:
        """The end."""
        await self.vanish()

    async def hang_up(self) -> None:
        """Break off every open connection, keep the port."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget(self) -> None:
        """Empty the books."""
        self.requests.clear()
        self.polled.clear()

    def running(self) -> list[Seen]:
        """Requests whose peer is still there and whose script has not ended."""
        return [seen for seen in self.requests if not seen.done and seen.closed_s is None]

    # --- inside -------------------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            self.connections += 1
            task = asyncio.create_task(self._serve(sock, self.connections))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket, number: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer: _Peer | None = None
        try:
            peer = _Peer(Plain(sock) if self.tls is None else await Tls.accept(sock, self.tls), number)
            peer.start_reading()
            if self.greeting and not await self._play(peer, self.greeting, None):
                return
            while await self._play(peer, *await self._next(peer)):
                pass
        except OSError:  # the peer left, or spoke no TLS
            if peer is not None and peer.closed_s is None:
                peer.gone("reset")
        finally:
            if peer is None:
                sock.close()
            else:
                await peer.close()

    async def _next(self, peer: _Peer) -> tuple[Script, Seen]:
        """The next request of a connection, and what is to be done about it."""
        seen = await peer.request()
        poll = self._poll(seen.method, seen.target.partition("?")[0])
        if poll is not None:
            self.polled.append(seen.target)
            await peer.body(seen)
            return poll, seen
        self.requests.append(seen)
        script = self.script if self.choose is None else self.choose(len(self.requests), seen)
        if self.read_body:
            await peer.body(seen)
        else:
            peer.reading.clear()
        return script, seen

    def _poll(self, method: str, path: str) -> Script | None:
        if method not in {"GET", "HEAD"}:
            return None
        if path in self.polls:
            return self.polls[path]
        text = poll_answers(self.kind, self.models, self.resident).get(path)
        if text is None:
            return None
        if not self.answer_polls:
            return [Fin()]
        kind = "text/plain" if path == "/" else "application/json"
        body = text.encode()
        answer = response(body=b"" if method == "HEAD" else body, headers=[("Content-Type", kind)], length=len(body))
        return [Send(answer), Keep()]

    async def _play(self, peer: _Peer, script: Script, seen: Seen | None) -> bool:
        """Run a script; True when the connection goes on."""
        keep = False
        for step in script:
            match step:
                case Send(data):
                    await self._send(peer, data, seen)
                case Sleep(seconds):
                    await asyncio.sleep(seconds)
                case Drip(data, bytes_per_s):
                    for index in range(len(data)):
                        await self._send(peer, data[index : index + 1], seen)
                        await asyncio.sleep(1.0 / bytes_per_s)
                case Firehose(piece, total_bytes):
                    left = total_bytes
                    while left is None or left > 0:
                        await self._send(peer, piece, seen)
                        left = None if left is None else left - len(piece)
                case HalfClose():
                    peer.stream.half_close()
                case Stall():
                    await peer.left()
                    return False
                case Rst():
                    peer.by_reset = True
                    break
                case Fin():
                    break
                case Keep():
                    keep = True
                    break
        else:
            keep = seen is None  # a greeting without an end goes over to the requests
        if seen is not None:
            seen.done = True
        return keep

    async def _send(self, peer: _Peer, data: bytes, seen: Seen | None) -> None:
        await peer.stream.send(data)
        if seen is not None:
            seen.sent_bytes += len(data)
