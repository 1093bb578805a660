"""Workers that dial in at the public port: their WebSockets end here, their messages go on to the hub and back.

The hub decides who comes in and what is said (`hub/tunnels.py`); this side only carries, both ways within credit, so
that a worker that does not read costs a window here and stops nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque

from fleetproxy.core import access
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.proxy.plane import Plane
from fleetproxy.transport.hub import HubClient
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import WINDOW_BYTES, FrameError

#: Larger messages close the socket, as at `hub.listen`. An MCP relay's answer is one message.
MAX_MESSAGE_BYTES = frames.MAX_PAYLOAD_BYTES - 1
MAX_RELAY_MESSAGE_BYTES = 16 * 1024 * 1024 - 1
FRAGMENT_BYTES = 64 * 1024
#: The hub has this long to say whether the socket may come in.
WELCOME_S = 10.0
#: Leaving waits this long for close frames to be taken.
CLOSE_S = 1.0
_WORDS = (b"llm", b"asr", b"mcp")


class Tunnel:
    """One socket on its way to the hub. A `transport.hub.Stream`."""

    def __init__(self, hub: HubClient, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._number = 0
        self._credit = WINDOW_BYTES
        self._more_credit = asyncio.Event()
        #: The message that is coming in, and what of it no credit was given for.
        self._parts: list[bytes] = []
        self._parts_cost = 0
        #: Credit to give back.
        self._owed = 0
        #: The worker has taken everything so far.
        self._idle = True
        #: Messages for the worker: (text or bytes, the credit to give back once it is taken).
        self._messages: deque[tuple[str | bytes, int]] = deque()
        self._wake = asyncio.Event()
        self.welcome: asyncio.Future[payloads.Welcome] = loop.create_future()
        #: How the hub ended it: the close to pass on; None while it lives.
        self.closed: payloads.Close | None = None
        #: The longest message the worker may send.
        self.max_message_bytes = MAX_MESSAGE_BYTES

    def open(self, knock: payloads.Knock) -> bool:
        """Ask the hub; the answer is `welcome`. False when it is not there."""
        if knock.path.startswith("/api/mcp/"):
            self.max_message_bytes = MAX_RELAY_MESSAGE_BYTES
        number = self._hub.open(self)
        if number is None:
            return False
        self._number = number
        opening = payloads.Open("tunnel", "", 0, payloads.encode(knock))
        self._hub.send(frames.encode(frames.OPEN, number, payloads.encode(opening)))
        return True

    def end(self, kind: int, payload: payloads.Payload) -> None:
        """The worker's side is over: tell the hub, unless it knows."""
        if self._number:
            self._hub.send(frames.encode(kind, self._number, payloads.encode(payload)))
            self._over()

    def close(self, code: int, reason: str) -> None:
        """Close both sides."""
        if self.closed is None:
            self.closed = payloads.Close(code, reason)
            self.end(frames.END, self.closed)
            self._wake.set()

    async def give(self, message: str | bytes) -> None:
        """A message of the worker, on to the hub. Waits while the hub takes nothing."""
        kind = payloads.TEXT if isinstance(message, str) else payloads.BINARY
        raw = message.encode() if isinstance(message, str) else message
        for at in range(0, max(len(raw), 1), FRAGMENT_BYTES):
            while self._credit <= 0 and self._number:
                self._more_credit.clear()
                await self._more_credit.wait()
            if not self._number:
                return
            more = payloads.MORE if at + FRAGMENT_BYTES < len(raw) else 0
            fragment = bytes((kind | more,)) + raw[at : at + FRAGMENT_BYTES]
            self._credit -= len(fragment)
            self._hub.send(frames.encode(frames.DATA, self._number, fragment))

    async def next(self) -> str | bytes | None:
        """The next message for the worker, who has taken the one before; None when there will be none."""
        self._give_back()
        while not self._messages:
            if self.closed is not None:
                return None
            self._idle = True
            self._owed += self._parts_cost
            self._parts_cost = 0
            self._give_back()
            self._wake.clear()
            await self._wake.wait()
        self._idle = False
        message, cost = self._messages.popleft()
        self._owed += cost
        return message

    def _give_back(self) -> None:
        if self._owed >= WINDOW_BYTES // 2 and self._number:
            self._hub.send(frames.window(self._number, self._owed))
            self._owed = 0

    # --- transport.hub.Stream ----------------------------------------------------------------------------------------

    def frame(self, kind: int, payload: bytes) -> None:
        match kind:
            case frames.DATA if payload:
                self._part(payload)
            case frames.WINDOW:
                self._credit += frames.credit(payload)
                self._more_credit.set()
            case frames.HEAD if not self.welcome.done():
                welcome = payloads.decode(payload, payloads.Welcome)
                self.welcome.set_result(welcome)
                if welcome.status != 101:
                    self._over()
            case frames.END:
                self._ended(payloads.decode(payload, payloads.Close))
            case frames.RESET:
                self._ended(payloads.Close(1011, "server error"))
            case _:
                raise FrameError(f"a {frames.NAMES[kind]} frame does not belong inside a tunnel")

    def lost(self) -> None:
        """Without the hub there is nobody to talk to: the worker should come again."""
        if not self.welcome.done():
            self.welcome.set_result(payloads.Welcome(503, "the hub is restarting"))
        self._ended(payloads.Close(1001, "server is leaving"))

    def _part(self, payload: bytes) -> None:
        """A message may be larger than the window: while nothing else waits, it is gathered on credit."""
        self._parts.append(payload)
        self._parts_cost += len(payload)
        if payload[0] & payloads.MORE:
            if self._idle:
                self._owed += self._parts_cost
                self._parts_cost = 0
                self._give_back()
            return
        parts, self._parts = self._parts, []
        raw = b"".join(part[1:] for part in parts)
        message: str | bytes = raw if payload[0] & payloads.BINARY else raw.decode("utf-8", "replace")
        self._messages.append((message, self._parts_cost))
        self._parts_cost = 0
        self._idle = False
        self._wake.set()

    def _ended(self, close: payloads.Close) -> None:
        if self.closed is None:
            self.closed = close
        self._over()
        self._wake.set()

    def _over(self) -> None:
        if self._number:
            self._hub.forget(self._number)
            self._number = 0
        self._more_credit.set()


class Tunnels:
    """All tunnels of this process."""

    def __init__(self, plane: Plane, hub: HubClient) -> None:
        self._plane = plane
        self._hub = hub
        self._open: set[Tunnel] = set()

    def __len__(self) -> int:
        return len(self._open)

    @staticmethod
    def takes(raw_path: bytes) -> bool:
        """Whether a WebSocket to this path is for us."""
        segments = raw_path.split(b"/")
        return (
            len(segments) == 4 and segments[:2] == [b"", b"api"] and segments[2] in _WORDS and segments[3] == b"connect"
        )

    async def carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket from its upgrade to its end."""
        await receive()  # the upgrade itself
        plane = self._plane
        tunnel = Tunnel(self._hub, plane.loop)
        if plane.draining:
            await _deny(send, 503, "draining")
            return
        if not tunnel.open(self._knock(scope)):
            await _deny(send, 503, "the hub is restarting")
            return
        self._open.add(tunnel)
        try:
            async with asyncio.timeout(WELCOME_S):
                welcome = await tunnel.welcome
            if welcome.status != 101:
                await _deny(send, welcome.status, welcome.text)
                return
            accept: dict[str, object] = {"type": "websocket.accept"}
            if welcome.text:
                accept["subprotocol"] = welcome.text
            await send(accept)
            await self._converse(tunnel, receive, send)
        except TimeoutError:
            await _deny(send, 503, "the hub does not answer")
        finally:
            self._open.discard(tunnel)
            tunnel.end(frames.RESET, payloads.Reset("client_gone"))

    async def leave(self, deadline_s: float, now: asyncio.Event) -> None:
        """Close all sockets: once nothing runs on the hub's workers any more, at the deadline (loop time), or `now`.

        Another process may still have an answer under way on a worker whose socket is held here.
        """
        board = self._plane.board
        while self._open and self._plane.clock() < deadline_s and not now.is_set():
            if not any(board.load(worker.column) for worker in self._hub.workers.values()):
                break
            await asyncio.sleep(0.05)
        for tunnel in tuple(self._open):
            tunnel.close(1001, "server is leaving")
        for _ in range(100):
            if not self._open:
                return
            await asyncio.sleep(CLOSE_S / 100)

    def _knock(self, scope: Scope) -> payloads.Knock:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        client = scope["client"]
        peer = client[0] if client else ""
        networks = access.networks(self._plane.snapshot.access.trusted_proxies)
        own = dict(reversed(headers))
        return payloads.Knock(
            path=scope["raw_path"].decode("latin-1")[:1024],
            headers=tuple(headers[:128]),
            remote=access.client_address(peer, own, networks)[:64],
            trusted=access.trusted(peer, networks),
        )

    async def _converse(self, tunnel: Tunnel, receive: Receive, send: Send) -> None:
        reading = asyncio.ensure_future(_read(tunnel, receive))
        try:
            while (message := await tunnel.next()) is not None:
                key = "text" if isinstance(message, str) else "bytes"
                await send({"type": "websocket.send", key: message})
        finally:
            left = reading.done() and (reading.exception() is not None or reading.result())
            # A close waits for a `receive` that is under way: that one has to go first.
            reading.cancel()
            await asyncio.wait({reading})
        closed = tunnel.closed
        if closed is not None and not left:
            code = closed.code if 1000 <= closed.code < 5000 and closed.code not in (1005, 1006) else 1011
            await send({"type": "websocket.close", "code": code, "reason": closed.reason[:100]})


async def _read(tunnel: Tunnel, receive: Receive) -> bool:
    """From the worker to the hub. True when it has left, False when it has to go."""
    while True:
        message = await receive()
        if message["type"] != "websocket.receive":
            code = message.get("code") or 1005
            gone = payloads.Close(code if 0 <= code < 5000 else 1006)
            tunnel.end(frames.END, gone)
            tunnel._ended(gone)
            return True
        text = message.get("text")
        data: str | bytes = text if text is not None else message.get("bytes") or b""
        if len(data) > tunnel.max_message_bytes:
            tunnel.close(1009, "message too big")
            return False
        await tunnel.give(data)


async def _deny(send: Send, status: int, text: str) -> None:
    """Refuse the upgrade with an HTTP answer."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": text.encode() + b"\n"})
