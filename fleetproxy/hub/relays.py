"""MCP relays: how they come in, how calls reach them, and who has how many of them running.

A relay is a worker of the family `mcp`. One of ours takes HTTP requests in frames like any worker. A stock one speaks
nfrx's protocol (`wire/relays.py`): a session for each call, the request whole in one message, one answer. Session ids
are made here and belong to the socket they were given to: what another relay says about them is nothing.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator

import msgspec

from fleetproxy.core.worker import MAX_CONCURRENCY, Offer
from fleetproxy.families.mcp import RELAY_ID
from fleetproxy.hub.agent_link import BUSY_UNSENT_BYTES, Ears
from fleetproxy.hub.proxies import Proxy
from fleetproxy.hub.session import POLICY, Session
from fleetproxy.hub.sockets import Socket
from fleetproxy.hub.streams import Stream
from fleetproxy.hub.workers import Connected, Credentials, Workers
from fleetproxy.settings import Settings
from fleetproxy.wire import frames, payloads, relays
from fleetproxy.wire.frames import FrameError

#: A relay's message may be as long as this; the stock server has no limit, and answers are one message.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024 - 1
#: Notifications, ends of sessions and event streams one caller may have running at one relay, beside its calls.
MAX_OTHERS = 64
#: Methods of a relay told apart in the state.
MAX_METHODS = 64
#: Sessions that are over, remembered to tell late messages from made-up ones.
REMEMBERED = 1024
PIECE_BYTES = 64 * 1024

_ANSWER_HEADERS = ((b"content-type", b"application/json"),)


class CallStream(Stream):
    """A call under way."""

    __slots__ = ("asked", "calls", "started_at_s")

    def __init__(self, proxy: Proxy, number: int, relay: Connected, asked: payloads.RelayCall, calls: Calls) -> None:
        super().__init__(proxy, number, relay)
        self.asked = asked
        self.calls = calls
        #: Seconds since the epoch.
        self.started_at_s = calls.wall_s()

    def refuse(self, code: str) -> None:
        super().refuse(code)
        self.calls.ended(self)

    def _over(self) -> None:
        super()._over()
        self.calls.ended(self)


class Running(msgspec.Struct, frozen=True):
    """A call as the state shows it."""

    id: str
    relay: str
    method: str
    started_at_s: float


class Calls:
    """Brings calls to relays; counts them by caller and by method."""

    def __init__(self, workers: Workers, wall_s: Callable[[], float] = time.time) -> None:
        self._workers = workers
        self.wall_s = wall_s
        self._limits = {"call": 16}
        self._live: dict[CallStream, None] = {}
        #: (relay, caller, kind) -> running.
        self._of: Counter[tuple[str, str, str]] = Counter()
        #: Relay -> method -> running; methods stay, at 0, while their relay does.
        self._methods: dict[str, Counter[str]] = {}
        #: Since start: "opened", and refusals by their code.
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._live)

    def configure(self, settings: Settings) -> None:
        self._limits = {"call": settings.mcp.calls_per_caller}

    def open(self, proxy: Proxy, number: int, opening: payloads.Open) -> None:
        """A proxy process brings a call. Raises FrameError when it makes no sense."""
        relay_id = opening.who
        asked = payloads.decode(opening.request, payloads.RelayCall)
        relay = self._workers.connected("mcp", relay_id)
        code = ""
        key = (relay_id, asked.caller, asked.kind)
        if relay is None:
            code = "relay_offline"
        elif self._of[key] >= self._limits.get(asked.kind, MAX_OTHERS):
            code = "too_many_calls"
        if relay is None or code:
            if not self._of[key]:
                del self._of[key]
            self.counts[code] += 1
            proxy.send(frames.encode(frames.RESET, number, payloads.encode(payloads.Reset(code))))
            return
        stream = CallStream(proxy, number, relay, asked, self)
        proxy.streams[number] = stream
        self._live[stream] = None
        self._of[key] += 1
        self._count(relay_id, asked.method, 1)
        self.counts["opened"] += 1
        relay.take(stream, asked.request)

    def ended(self, stream: CallStream) -> None:
        """A call is over, however."""
        if stream not in self._live:
            return
        del self._live[stream]
        relay_id, asked = stream.worker.worker.id, stream.asked
        key = (relay_id, asked.caller, asked.kind)
        self._of[key] -= 1
        if self._of[key] <= 0:
            del self._of[key]
        self._count(relay_id, asked.method, -1)

    def running(self) -> Iterator[Running]:
        """The calls under way, oldest first."""
        for stream in self._live:
            asked = stream.asked
            yield Running(asked.request_id, stream.worker.worker.id, asked.method or asked.kind, stream.started_at_s)

    def methods(self) -> dict[str, dict[str, int]]:
        """Relay -> method -> running, for the relays that are connected."""
        here = {connected.worker.id for connected in self._workers if connected.worker.family == "mcp"}
        for relay_id in self._methods.keys() - here:
            del self._methods[relay_id]
        return {relay_id: dict(self._methods.get(relay_id, ())) for relay_id in here}

    def _count(self, relay_id: str, method: str, by: int) -> None:
        if not method:
            return
        known = self._methods.setdefault(relay_id, Counter())
        if method not in known and len(known) >= MAX_METHODS:
            method = "other"
        known[method] += by


class RelaySession(Session):
    """The far end is an MCP relay, or wants to be one."""

    silence_s, silence_code, silence_reason = 45.0, 1000, relays.DEAD

    def _register(self, data: str | bytes) -> None:
        try:
            hello = relays.read_hello(data)
        except relays.RelayError:
            self._dismiss(relays.INVALID_REGISTER, POLICY)
            return
        link = StockLink(self._socket, self, self._sessions.count, self._sessions.max_response_bytes)
        connected = self._enter(
            hello.client_key,
            Credentials(
                family="mcp",
                worker_id=hello.id or str(uuid.uuid4()),
                worker_name=hello.client_name,
                protocol="nfrx",
                remote=self._socket.remote,
            ),
            Offer(max_concurrency=MAX_CONCURRENCY),
            link,
        )
        if connected is not None:
            self._socket.send(relays.ack(connected.worker.id))
            self._socket.trust(MAX_MESSAGE_BYTES)

    def _objection(self, worker_id: str, owner: str) -> str | None:
        """Ids are part of addresses. Who shows its key takes an id over: its old connection is half open, or its own
        mistake. Without a key nobody can tell, so who is there stays."""
        if worker_id and not RELAY_ID.match(worker_id):
            return relays.ID_IN_USE
        if not owner and self._sessions.workers.connected("mcp", worker_id) is not None:
            return relays.ID_IN_USE
        return super()._objection(worker_id, owner)


class _Call:
    """One session with a stock relay."""

    __slots__ = ("body", "held", "opened", "sent", "sid", "stream", "whole")

    def __init__(self, stream: CallStream) -> None:
        self.sid = str(uuid.uuid4())
        self.stream = stream
        self.body = bytearray()
        #: The body is here whole; the relay has said `open.ok`; the request has gone.
        self.whole = self.opened = self.sent = False
        #: What of the answer the caller has given no credit for yet; None before there is one.
        self.held: deque[bytes] | None = None


#: What `rpc` adds to a payload.
_ENVELOPE_BYTES = len(relays.rpc(str(uuid.UUID(int=0)), b""))


class StockLink:
    """Implements `streams.Link` for stock relays."""

    def __init__(self, socket: Socket, ears: Ears, count: Callable[[str], None], max_response_bytes: int) -> None:
        self._socket = socket
        self._ears = ears
        self._count = count
        self._max_response_bytes = max_response_bytes
        self._calls: dict[str, _Call] = {}
        self._over: OrderedDict[str, None] = OrderedDict()

    # --- towards the relay -------------------------------------------------------------------------------------------

    def open(self, stream: Stream, request: bytes) -> str | None:
        assert isinstance(stream, CallStream)
        if self._socket.unsent_bytes > BUSY_UNSENT_BYTES:
            return "worker_busy"
        asked = payloads.decode(request, payloads.Request)
        call = _Call(stream)
        who = stream.asked
        opening = relays.opening(call.sid, who.request_id, who.method, who.token)
        length = asked.content_length
        if asked.method != "POST" or length is None:
            return "relay_refused"
        if max(len(opening.encode()), length + _ENVELOPE_BYTES) > relays.MAX_STOCK_BYTES:
            return "relay_frame_limit"
        stream.token = call
        self._calls[call.sid] = call
        self._socket.send(opening)
        return None

    def data(self, stream: Stream, payload: bytes) -> None:
        call = self._call(stream)
        call.body += payload
        if call.whole or len(call.body) > relays.MAX_STOCK_BYTES:
            raise FrameError("more of a body than was announced")

    def end(self, stream: Stream) -> None:
        call = self._call(stream)
        call.whole = True
        self._send(call)

    def window(self, stream: Stream, credit: int) -> None:
        call = self._call(stream)
        if call.held is not None:
            self._flush(call)

    def cancel(self, stream: Stream) -> None:
        call = self._call(stream)
        if self._forget(call):
            self._socket.send(relays.close(call.sid, relays.DONE))

    @staticmethod
    def _call(stream: Stream) -> _Call:
        assert isinstance(stream.token, _Call)
        return stream.token

    def _send(self, call: _Call) -> None:
        if call.sent or not call.whole or not call.opened:
            return
        call.sent = True
        self._socket.send(relays.rpc(call.sid, bytes(call.body)).decode())
        call.body.clear()
        if call.stream.asked.kind != "call":
            # Nobody waits for what a notification brings; the stock relay answers it all the same.
            self._answer(call, 202, b"")

    # --- from the relay ----------------------------------------------------------------------------------------------

    def message(self, data: str | bytes) -> int:
        try:
            frame = relays.read(data)
        except relays.RelayError as error:
            self._ears.violation(str(error))
            return 1
        if frame.t in ("ping", "pong"):
            self._ears.alive()
            return 1
        call = self._calls.get(frame.sid)
        if call is None:
            self._unknown(frame)
            return 1
        match frame.t:
            case "open.ok" if not call.opened:
                call.opened = True
                self._send(call)
            case "open.fail":
                wrong = frame.code == relays.UNAUTHORIZED
                self._fail(call, "relay_unauthorized" if wrong else "relay_refused")
            case "rpc" if call.sent and call.held is None:
                self._rpc(call, bytes(frame.payload))
            case "close" if call.held is None:
                self._fail(call, "relay_no_answer" if call.opened else "relay_refused")
            case "open.ok" | "rpc" | "close" if call.opened and call.held is not None:
                self._count("late")
                return 1
            case _:
                self._ears.violation(f"a message {frame.t[:32]!r} out of order")
                self._fail(call, "relay_no_answer" if call.opened else "relay_refused")
        return 0

    def _unknown(self, frame: relays.Frame) -> None:
        if frame.sid in self._over:
            self._count("late")
        elif frame.sid:
            self._count("foreign")
            self._ears.violation("a message of a session it was not given")
        else:
            self._count("ignored")

    def _rpc(self, call: _Call, payload: bytes) -> None:
        if len(payload) > self._max_response_bytes:
            self._fail(call, "relay_answer_too_large")
        elif payload[:1] != b"{":
            self._fail(call, "relay_no_answer")
        else:
            self._answer(call, 200, payload)

    def _answer(self, call: _Call, status: int, body: bytes) -> None:
        call.held = deque(body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))
        head = payloads.Head(status, _ANSWER_HEADERS if body else (), len(body))
        call.stream.head(payloads.encode(head))
        self._flush(call)

    def _flush(self, call: _Call) -> None:
        """Pass on what there is credit for; the end when nothing is left."""
        stream, held = call.stream, call.held
        assert held is not None
        while held and stream.credit > 0:
            piece = held.popleft()
            if len(piece) > stream.credit:
                held.appendleft(piece[stream.credit :])
                piece = piece[: stream.credit]
            stream.data(piece)
        if not held and self._forget(call):
            self._socket.send(relays.close(call.sid, relays.DONE))
            stream.end()

    def _fail(self, call: _Call, code: str) -> None:
        if self._forget(call):
            self._socket.send(relays.close(call.sid, relays.DONE))
            call.stream.reset(code)

    def _forget(self, call: _Call) -> bool:
        if self._calls.pop(call.sid, None) is None:
            return False
        self._over[call.sid] = None
        if len(self._over) > REMEMBERED:
            self._over.popitem(last=False)
        return True
