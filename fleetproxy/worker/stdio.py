"""An MCP server that speaks over its standard streams, as Streamable HTTP: sessions, events, requests of its own.

A session (revisions with a handshake) is a subprocess of its own, from `initialize` to DELETE, a long silence, or its
own end. Requests that stand for themselves (2026-07-28 on) are served by subprocesses that have one of them at a time:
whatever such a one says meanwhile belongs to that request.

Where a session's messages go: an answer to whom it answers, progress to whose token it names; anything else to the
request that is running, where several run to the listener (GET), else to the newest of them; with nobody there it is
kept until there is a listener.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BadRpc
from fleetproxy.families.mcp import rpc, streamable
from fleetproxy.transport.base import Call
from fleetproxy.worker.child import Child
from fleetproxy.worker.stdio_calls import Asked, Waiting
from fleetproxy.worker.stdio_session import SESSION, Session, Spare

_log = logging.getLogger("fleetproxy.worker.stdio")

#: A subprocess between two requests that stand for themselves is ended after this.
SPARE_S = 60.0
SWEEP_S = 1.0


class StdioServer:
    """Implements `transport.base.Transport`: answers as an MCP server over HTTP would."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, most: int, idle_s: float) -> None:
        self._command = tuple(command)
        self._environment = environment
        self._most = most
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[str, Session] = {}
        self._spares: deque[Spare] = deque()
        #: Subprocesses there are, or are about to be.
        self._children = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    @property
    def children(self) -> int:
        """Subprocesses there are."""
        return self._children

    async def open(self, backend: Backend, call: Call, connect_s: float) -> Asked:
        asked = Asked(call, self._take_in, self._loop)
        if call.body is not None:
            asked.write_end()
        return asked

    def hang_up(self) -> None:
        """End all listening, so that what runs can come to its end."""
        for session in tuple(self._sessions.values()):
            session.hang_up()

    async def close(self) -> None:
        """End every subprocess."""
        self._sweeper.cancel()
        for session in tuple(self._sessions.values()):
            self._end(session)
        for spare in tuple(self._spares):
            self._drop(spare)
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _take_in(self, asked: Asked, body: bytes) -> None:
        """Serve a request whose body is here."""
        alone = streamable.stands_alone(asked.headers)
        match asked.method:
            case "POST":
                self._post(asked, body, alone)
            case "GET" | "DELETE" if not alone:
                session = self._session(asked)
                if session is None:
                    return
                if asked.method == "DELETE":
                    self._end(session)
                    asked.whole(200, [], b"")
                elif streamable.accepts(asked.headers, b"text/event-stream"):
                    session.listen(asked)
                else:
                    asked.refuse(406, streamable.INVALID_REQUEST, "a listener must accept text/event-stream")
            case _:
                allow = (b"allow", b"POST" if alone else b"DELETE, GET, POST")
                asked.refuse(405, streamable.INVALID_REQUEST, "method not allowed", b"", allow)

    def _post(self, asked: Asked, body: bytes, alone: bool) -> None:
        try:
            envelope = rpc.read(body)
            message: dict[str, Any] = msgspec.json.decode(body)
        except BadRpc as error:
            asked.refuse(400, streamable.INVALID_REQUEST, str(error), error.identity)
            return
        if alone:
            self._alone(asked, envelope, message, body)
        elif envelope.kind == "request" and envelope.method == "initialize" and SESSION not in asked.headers:
            self._spawn(self._initialize(asked, envelope, message, body))
        else:
            session = self._session(asked, envelope.id)
            if session is not None:
                session.post(asked, envelope, message, body)

    def _session(self, asked: Asked, identity: bytes = b"") -> Session | None:
        """The session a request belongs to; it is answered when there is none."""
        name = asked.headers.get(SESSION)
        if name is None:
            asked.refuse(400, streamable.INVALID_REQUEST, "Bad Request: Missing session ID", identity)
            return None
        session = self._sessions.get(name.decode("latin-1"))
        if session is None:
            asked.refuse(404, streamable.INVALID_REQUEST, "Not Found: Invalid or expired session ID", identity)
        return session

    def _alone(self, asked: Asked, envelope: rpc.Envelope, message: Mapping[str, Any], body: bytes) -> None:
        if envelope.kind == "notification":
            asked.whole(202, [], b"")  # there is nothing such a notification could be about
            return
        if envelope.kind == "response":
            asked.refuse(400, streamable.INVALID_REQUEST, "a response to nothing", envelope.id)
            return
        wrong = streamable.mismatch(asked.headers, message)
        if wrong:
            asked.refuse(400, streamable.HEADER_MISMATCH, wrong, envelope.id)
            return
        self._spawn(self._borrow(asked, envelope, body))

    async def _initialize(self, asked: Asked, envelope: rpc.Envelope, message: Mapping[str, Any], body: bytes) -> None:
        session = Session(secrets.token_urlsafe(24), self._forget, self._loop)
        session.child = await self._start(asked, envelope.id, session.line, session.ended)
        if session.child is not None:
            self._sessions[session.id] = session
            session.post(asked, envelope, message, body)

    async def _borrow(self, asked: Asked, envelope: rpc.Envelope, body: bytes) -> None:
        """A request that stands for itself gets a subprocess that has nothing to do, or a new one."""
        spare = None
        while self._spares and spare is None:
            spare = self._spares.pop()
            if spare.child is None or spare.child.ended:
                spare = None
        if spare is None:
            spare = Spare(self._rest, self._drop)
            spare.child = await self._start(asked, envelope.id, spare.line, spare.ended)
            if spare.child is None:
                return
        if asked.closed:
            self._rest(spare)
        else:
            spare.serve(asked, Waiting(asked, envelope.id, None, [], alone=True), body)

    async def _start(
        self, asked: Asked, identity: bytes, on_line: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> Child | None:
        """A new subprocess; `asked` is answered when there can be none."""
        if self._children >= self._most and not self._make_room():
            asked.refuse(
                503, streamable.SERVER_ERROR, "too many sessions at this MCP server; try again later", identity
            )
            return None
        self._children += 1
        try:
            return await Child.start(self._command, self._environment, on_line, on_end)
        except OSError as error:
            self._children -= 1
            _log.error("the MCP server cannot be started: %s", error)
            asked.refuse(502, streamable.SERVER_ERROR, "the MCP server cannot be started", identity)
            return None

    # --- subprocesses ------------------------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """End one that has nothing to do: the one that has rested longest. False when all are busy."""
        if self._spares:
            self._drop(self._spares.popleft())
            return True
        idle = [session for session in self._sessions.values() if not session.busy]
        if not idle:
            return False
        self._end(min(idle, key=lambda session: session.used_s))
        return True

    def _forget(self, session: Session) -> None:
        """A session's subprocess is gone."""
        if self._sessions.pop(session.id, None) is not None and session.child is not None:
            self._spawn(self._bury(session.child))

    def _end(self, session: Session) -> None:
        if self._sessions.pop(session.id, None) is None:
            return
        session.give_up("the session has ended")
        if session.child is not None:
            self._spawn(self._bury(session.child))

    def _rest(self, spare: Spare) -> None:
        spare.used_s = self._loop.time()
        self._spares.append(spare)

    def _drop(self, spare: Spare) -> None:
        if spare in self._spares:
            self._spares.remove(spare)
        child, spare.child = spare.child, None
        if child is not None:
            self._spawn(self._bury(child))

    async def _bury(self, child: Child) -> None:
        self._children -= 1
        await child.stop()

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for session in tuple(self._sessions.values()):
            if not session.busy and now_s - session.used_s > self._idle_s:
                _log.info("a session was silent for %.0f s; it is ended", self._idle_s)
                self._end(session)
        for spare in tuple(self._spares):
            if now_s - spare.used_s > SPARE_S:
                self._drop(spare)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
