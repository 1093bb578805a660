"""Subprocesses of an MCP server, each with those who talk to it: one client for a session, or one request at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from fleetproxy.families.mcp import rpc, streamable
from fleetproxy.families.mcp.streamable import Line
from fleetproxy.transport.base import Headers
from fleetproxy.worker.child import Child
from fleetproxy.worker.stdio_calls import EVENTS, PING, PING_S, Asked, Waiting

_log = logging.getLogger("fleetproxy.worker.stdio")

SESSION = b"mcp-session-id"
#: What a session says while nobody listens: kept up to this, the oldest dropped.
MAX_KEPT, MAX_KEPT_BYTES = 256, 1024 * 1024
#: Requests of a session that have no answer yet, also such whose caller has left.
MAX_WAITING = 1024
#: A subprocess whose caller has left has this long to finish what it was told to cancel.
CANCEL_S = 5.0

Key = tuple[bool, Any]


class Session:
    """A subprocess with the one client that shook hands with it."""

    def __init__(self, identity: str, on_end: Callable[[Session], None], loop: asyncio.AbstractEventLoop) -> None:
        self.id = identity
        self.child: Child | None = None
        self._on_end = on_end
        self._loop = loop
        self._waiting: dict[Key, Waiting] = {}
        self._listener: Asked | None = None
        self._listener_timer: asyncio.TimerHandle | None = None
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self.dropped = 0
        self.used_s = loop.time()

    @property
    def busy(self) -> bool:
        """Somebody waits for something."""
        return self._listener is not None or any(not waiting.asked.closed for waiting in self._waiting.values())

    # --- from the caller ---------------------------------------------------------------------------------------------

    def post(self, asked: Asked, envelope: rpc.Envelope, message: Mapping[str, Any], body: bytes) -> None:
        """A message for the server."""
        self.used_s = self._loop.time()
        child = self.child
        if child is None or child.ended or child.full or len(self._waiting) >= MAX_WAITING:
            asked.refuse(503, streamable.SERVER_ERROR, "the MCP server takes nothing now", envelope.id)
            return
        if envelope.kind != "request":
            child.send(streamable.one_line(body))
            asked.whole(202, [], b"")
            return
        key = streamable.key_of(envelope.id)
        if key is None or key in self._waiting:
            asked.refuse(400, streamable.INVALID_REQUEST, "a request with this id is running", envelope.id)
            return
        headers: Headers = [(SESSION, self.id.encode())]
        waiting = Waiting(asked, envelope.id, streamable.asked_token(message), headers, alone=False)
        self._waiting[key] = waiting
        # Leaving is no cancellation in these revisions: the server goes on, nobody hears it.
        asked.on_left = waiting.forget
        asked.on_room = self._resume
        child.send(streamable.one_line(body))

    def listen(self, asked: Asked) -> None:
        """GET: what the server says of its own accord."""
        self.used_s = self._loop.time()
        if self._listener is not None and not self._listener.closed:
            asked.refuse(409, streamable.INVALID_REQUEST, "this session has a listener already")
            return
        self._listener = asked
        asked.on_left = self._unlisten
        asked.on_room = self._resume
        asked.begin(200, [*EVENTS, (SESSION, self.id.encode())])
        self._beat()
        kept, self._kept = self._kept, deque()
        self._kept_bytes = 0
        for line in kept:
            asked.add(streamable.event(line))

    # --- from the server ---------------------------------------------------------------------------------------------

    def line(self, line: bytes) -> None:
        read = streamable.read_line(line)
        if read is None:
            _log.debug("the MCP server wrote a line that is no message")
            return
        if read.is_response:
            key = streamable.key_of(bytes(read.id))
            waiting = self._waiting.pop(key, None) if key is not None else None
            if waiting is not None:
                self.used_s = self._loop.time()
                waiting.answer(line, read)
            return
        if not any(waiting.message(line) for waiting in self._whose(read)):
            self._say(line)
        if self._full:
            assert self.child is not None
            self.child.pause()

    def ended(self) -> None:
        """The subprocess is gone."""
        self._on_end(self)
        self.give_up("the MCP server has ended")

    def give_up(self, why: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.fail(why)
        self.hang_up()

    def hang_up(self) -> None:
        """No more listening."""
        listener = self._listener
        self._unlisten()
        if listener is not None:
            listener.end()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _whose(self, read: Line) -> list[Waiting]:
        """The running requests that a message may belong to, the likeliest first."""
        running = [waiting for waiting in reversed(self._waiting.values()) if not waiting.asked.closed]
        token = streamable.progress_token(read)
        if token is not None:
            return [waiting for waiting in running if waiting.token == token]
        return running if len(running) == 1 or self._listener is None else []

    def _say(self, line: bytes) -> None:
        if self._listener is not None and not self._listener.closed:
            self._listener.add(streamable.event(line))
            return
        self._kept.append(line)
        self._kept_bytes += len(line)
        while len(self._kept) > MAX_KEPT or (self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1):
            self._kept_bytes -= len(self._kept.popleft())
            self.dropped += 1

    @property
    def _full(self) -> bool:
        listening = self._listener is not None and self._listener.full
        return listening or any(waiting.asked.full for waiting in self._waiting.values())

    def _resume(self) -> None:
        if self.child is not None and not self._full:
            self.child.resume()

    def _unlisten(self) -> None:
        self._listener = None
        self.used_s = self._loop.time()
        if self._listener_timer is not None:
            self._listener_timer.cancel()

    def _beat(self) -> None:
        if self._listener is not None:
            self._listener.add(PING)
            self._listener_timer = self._loop.call_later(PING_S, self._beat)


class Spare:
    """A subprocess for requests that stand for themselves, one at a time."""

    def __init__(self, rests: Callable[[Spare], None], gone: Callable[[Spare], None]) -> None:
        self.child: Child | None = None
        self._rests = rests
        self._gone = gone
        self._waiting: Waiting | None = None
        self._key: Key | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.used_s = 0.0

    def serve(self, asked: Asked, waiting: Waiting, body: bytes) -> None:
        assert self.child is not None
        self._waiting, self._key = waiting, streamable.key_of(waiting.identity)
        asked.on_left = self._cancel
        asked.on_room = self.child.resume
        self.child.send(streamable.one_line(body))

    def line(self, line: bytes) -> None:
        read = streamable.read_line(line)
        if read is None or self._key is None:
            return
        waiting = self._waiting
        if read.is_response:
            if streamable.key_of(bytes(read.id)) == self._key:
                self._waiting = self._key = None
                if self._timer is not None:
                    self._timer.cancel()
                if waiting is not None:
                    waiting.answer(line, read)
                self._rests(self)
        elif waiting is not None:
            waiting.message(line)
            if waiting.asked.full and self.child is not None:
                self.child.pause()

    def ended(self) -> None:
        waiting, self._waiting = self._waiting, None
        self._gone(self)
        if waiting is not None:
            waiting.fail("the MCP server has ended")

    def _cancel(self) -> None:
        """The caller has left: that is how such a request is cancelled."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or self.child is None:
            return
        waiting.forget()
        notice = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%b}}'
        self.child.resume()
        self.child.send(notice % waiting.identity)
        self._timer = asyncio.get_running_loop().call_later(CANCEL_S, self._gone, self)
