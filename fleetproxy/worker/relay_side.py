"""The worker's end of nfrx's relay protocol, for MCP servers behind a stock nfrx server (`wire/relays.py`).

That protocol has no sessions: each call is one request and one answer. A server that opens a session at `initialize`
gets it back with every call after; callers share it, as they share the relay.
"""

from __future__ import annotations

import hmac
import logging

from fleetproxy.core.backend import Backend
from fleetproxy.core.worker import Offer
from fleetproxy.errors import BadRpc, FleetError
from fleetproxy.families.mcp import rpc, streamable
from fleetproxy.transport.base import Call, Headers
from fleetproxy.wire import relays
from fleetproxy.wire.relays import Frame
from fleetproxy.worker.desk import Desk
from fleetproxy.worker.options import Options
from fleetproxy.worker.outbox import Outbox
from fleetproxy.worker.serving import Serving
from fleetproxy.worker.sides import Identity

_log = logging.getLogger("fleetproxy.worker")

#: An answer is one message.
MAX_ANSWER_BYTES = 10 * 1024 * 1024
#: Sessions a server may have open here at once, also such that it never uses.
MAX_CALLS = 1024
_ASKED = b"content-type: application/json\r\naccept: application/json, text/event-stream\r\n"


class _Reply:
    """A `serving.Reply` that gathers an answer, and sends it as one message."""

    def __init__(self, side: RelaySide, sid: str, identity: bytes, *, opens: bool) -> None:
        self._side = side
        self._sid = sid
        self._identity = identity
        #: It answers `initialize`: a session in it is the one to use.
        self._opens = opens
        self._status = 0
        self._events = False
        self._body = bytearray()
        self._said = False

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        self._status = status
        for name, value in headers:
            if name == b"content-type":
                self._events = value.lower().startswith(b"text/event-stream")
            elif name == b"mcp-session-id" and self._opens:
                self._side.session = value

    def data(self, piece: bytes) -> bool:
        self._body += piece
        if len(self._body) > MAX_ANSWER_BYTES:
            self._body.clear()
            self._finish(streamable.error(self._identity, streamable.SERVER_ERROR, "the answer is too large"))
        elif self._events and (b"\n" in piece or b"\r" in piece) and b"\n\n" in self._body.replace(b"\r", b""):
            answer = streamable.answer_among(bytes(self._body))
            if answer:
                self._finish(answer)
        return True

    def end(self) -> None:
        body = bytes(self._body)
        answer = streamable.answer_among(body) if self._events else streamable.one_line(body)
        if self._status != 200 or streamable.read_line(answer) is None:
            text = f"Provider error ({self._status})"
            answer = streamable.error(self._identity, streamable.SERVER_ERROR, text)
        self._finish(answer)

    def failed(self, error: FleetError, begun: bool) -> None:
        self._finish(streamable.error(self._identity, streamable.SERVER_ERROR, "Provider error"))

    def taken(self, size: int) -> None:
        """Requests come whole in this language."""

    def _finish(self, answer: bytes) -> None:
        if not self._said:
            self._said = True
            self._side.answer(self._sid, answer)


class RelaySide:
    """Implements `Side` for stock nfrx servers."""

    def __init__(self, identity: Identity, desk: Desk, backend: Backend, out: Outbox, options: Options) -> None:
        self._identity = identity
        self._desk = desk
        self._backend = backend
        self._out = out
        self._options = options
        self._registered = False
        self._draining = False
        #: Sessions that were opened, and what serves their request.
        self._calls: dict[str, Serving | None] = {}
        #: The MCP server's session.
        self.session: bytes | None = None

    def hello(self, offer: Offer) -> None:
        self._out.put(relays.hello(self._identity.worker_name, self._identity.worker_id))

    def offer(self, offer: Offer) -> None:
        """This language has no word for it."""

    def beat(self, cpu_percent: float, ram_percent: float) -> None:
        self._out.put(relays.ping())

    def goodbye(self, offer: Offer) -> None:
        self._draining = True

    def message(self, data: str | bytes) -> None:
        try:
            if self._registered:
                self._frame(relays.read(data))
            else:
                self._registered = True
                _log.info("registered as %s", relays.read_ack(data))
        except relays.RelayError as error:
            _log.warning("a message of the server makes no sense: %s", error)

    def close(self) -> None:
        calls, self._calls = self._calls, {}
        for serving in calls.values():
            if serving is not None:
                self._desk.drop(serving)

    def answer(self, sid: str, payload: bytes) -> None:
        """The answer to a call."""
        if sid in self._calls:
            self._out.put(relays.rpc(sid, payload).decode("utf-8", "replace"))
            self._out.put(relays.close(sid, relays.DONE))
            serving = self._calls.pop(sid)
            if serving is not None:
                self._desk.drop(serving)  # of a stream of events nobody reads the rest

    def _frame(self, frame: Frame) -> None:
        sid = frame.sid
        match frame.t:
            case "open":
                token = self._options.auth_token
                if token is not None and not hmac.compare_digest(frame.auth.encode(), token.encode()):
                    self._out.put(relays.open_fail(sid, relays.UNAUTHORIZED, "unauthorized"))
                elif self._draining or self._desk.full or len(self._calls) >= MAX_CALLS:
                    self._out.put(relays.open_fail(sid, "MCP_PROVIDER_UNAVAILABLE", "busy"))
                else:
                    self._calls[sid] = None
                    self._out.put(relays.open_ok(sid))
            case "rpc" if sid in self._calls and self._calls[sid] is None:
                self._serve(sid, bytes(frame.payload))
            case "close":
                serving = self._calls.pop(sid, None)
                if serving is not None:
                    self._desk.drop(serving)

    def _serve(self, sid: str, payload: bytes) -> None:
        try:
            envelope = rpc.read(payload)
        except BadRpc as error:
            self.answer(sid, streamable.error(error.identity, streamable.INVALID_REQUEST, str(error)))
            return
        lines = _ASKED
        opens = envelope.method == "initialize"
        if self.session is not None and not opens:
            lines += b"mcp-session-id: %b\r\n" % self.session
        if self._options.api_key is not None:
            lines += b"authorization: Bearer %b\r\n" % self._options.api_key.encode()
        call = Call(
            method=b"POST",
            target=self._options.endpoint.encode("latin-1", "replace"),
            header_lines=lines,
            body=payload,
            fresh=True,
        )
        reply = _Reply(self, sid, envelope.id, opens=opens)
        serving = self._desk.open(reply)
        self._calls[sid] = serving
        serving.start(call)
