"""The worker's end of our own frames (`fleetproxy.v1`)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from fleetproxy.core.backend import Backend
from fleetproxy.core.worker import Offer
from fleetproxy.errors import FleetError
from fleetproxy.families import registry
from fleetproxy.transport.base import Call, Headers
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import WINDOW_BYTES, Decoder, Frame, FrameError
from fleetproxy.worker.desk import Desk
from fleetproxy.worker.outbox import Outbox
from fleetproxy.worker.serving import Serving
from fleetproxy.worker.sides import PIECE_BYTES, TARGET, Identity, with_key

_log = logging.getLogger("fleetproxy.worker")


class _FrameReply:
    """A `serving.Reply` in frames, within the credit of its stream."""

    def __init__(self, number: int, out: Outbox) -> None:
        self._number = number
        self._out = out
        self._credit = WINDOW_BYTES
        self._held: deque[bytes] = deque()
        self._ending: bytes | None = None
        self._owed = 0
        self.serving: Serving | None = None
        #: Called when the last word of the stream has been said, which may be long after the backend's.
        self.on_done: Callable[[], object] = lambda: None

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        head = payloads.Head(status, tuple(headers), content_length)
        self._out.put(frames.encode(frames.HEAD, self._number, payloads.encode(head)))

    def data(self, piece: bytes) -> bool:
        self._held.extend(piece[at : at + PIECE_BYTES] for at in range(0, len(piece), PIECE_BYTES))
        self._flush()
        return not self._held

    def end(self) -> None:
        self._end_with(frames.encode(frames.END, self._number))

    def failed(self, error: FleetError, begun: bool) -> None:
        reset = payloads.encode(payloads.Reset(error.code))
        self._end_with(frames.encode(frames.RESET, self._number, reset))

    def taken(self, size: int) -> None:
        self._owed += size
        if self._owed >= WINDOW_BYTES // 2:
            self._out.put(frames.window(self._number, self._owed))
            self._owed = 0

    def window(self, credit: int) -> None:
        self._credit += credit
        self._flush()
        if not self._held and self.serving is not None:
            self.serving.resume()

    def _end_with(self, last: bytes) -> None:
        self._ending = last
        self._flush()

    def _flush(self) -> None:
        held = self._held
        while held and self._credit > 0:
            piece = held.popleft()
            if len(piece) > self._credit:
                held.appendleft(piece[self._credit :])
                piece = piece[: self._credit]
            self._credit -= len(piece)
            self._out.put(frames.encode(frames.DATA, self._number, piece))
        if not held and self._ending is not None:
            self._out.put(self._ending)
            self._ending = None
            self.on_done()


class _Stream:
    """One stream from the server."""

    __slots__ = ("body", "call", "listens", "reply", "serving")

    def __init__(self, reply: _FrameReply, serving: Serving, *, listens: bool) -> None:
        self.reply = reply
        self.serving = serving
        #: It is a GET.
        self.listens = listens
        #: The request's body while it is gathered; None once it goes on piece by piece.
        self.body: bytearray | None = None
        self.call: Call | None = None


class FrameSide:
    """Implements `Side` for the subprotocol fleetproxy.v1."""

    def __init__(
        self,
        identity: Identity,
        desk: Desk,
        backend: Backend,
        out: Outbox,
        heard: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._identity = identity
        self._desk = desk
        self._backend = backend
        self._out = out
        self._heard = heard
        self._decoder = Decoder()
        self._streams: dict[int, _Stream] = {}
        self._draining = False

    def hello(self, offer: Offer) -> None:
        who = self._identity
        enrol = payloads.Enrol(
            worker_id=who.worker_id,
            worker_name=who.worker_name,
            client_key=who.client_key,
            version=who.version,
            build_sha=who.build_sha,
            build_date=who.build_date,
            offer=offer,
        )
        self._say(frames.REGISTER, payloads.encode(enrol))

    def offer(self, offer: Offer) -> None:
        if not self._draining:
            self._say(frames.STATUS, payloads.encode(payloads.Standing(offer=offer)))

    def beat(self, cpu_percent: float, ram_percent: float) -> None:
        standing = payloads.Standing(cpu_percent=cpu_percent, ram_percent=ram_percent)
        self._say(frames.STATUS, payloads.encode(standing))
        self._say(frames.PING, b"")

    def goodbye(self, offer: Offer) -> None:
        self._draining = True
        self._say(frames.GOAWAY, payloads.encode(payloads.Goaway(reason="draining")))

    def message(self, data: str | bytes) -> None:
        if isinstance(data, str):
            raise FrameError("a text message")
        for frame in self._decoder.feed(data):
            if frame.stream:
                self._on_stream(frame)
            elif frame.kind == frames.GOAWAY:
                _log.info("the server is leaving; this worker will dial in again")
                self._heard("goaway")
            elif frame.kind == frames.REGISTER:
                welcome = payloads.decode(frame.payload, payloads.Enrolled)
                _log.info("registered as %s (%s)", welcome.worker_name, welcome.worker_id)
                self._heard("registered")

    def close(self) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            self._desk.drop(stream.serving)

    def end_listening(self) -> None:
        """Streams that would go on for ever (GET) end now."""
        for stream in tuple(self._streams.values()):
            if stream.listens:
                stream.reply.end()
                self._desk.drop(stream.serving)

    def _say(self, kind: int, payload: bytes) -> None:
        self._out.put(frames.encode(kind, 0, payload))

    def _on_stream(self, frame: Frame) -> None:
        if frame.kind == frames.OPEN:
            self._open(frame.stream, payloads.decode(frame.payload, payloads.Request))
            return
        stream = self._streams.get(frame.stream)
        if stream is None:
            return  # it has ended here while this was on its way
        match frame.kind:
            case frames.DATA:
                self._body(stream, frame.payload)
            case frames.END:
                self._body_end(stream)
            case frames.WINDOW:
                stream.reply.window(frames.credit(frame.payload))
            case frames.RESET:
                del self._streams[frame.stream]
                self._desk.drop(stream.serving)

    def _open(self, number: int, request: payloads.Request) -> None:
        code = self._refusal(request)
        if code:
            self._out.put(frames.encode(frames.RESET, number, payloads.encode(payloads.Reset(code))))
            return
        reply = _FrameReply(number, self._out)
        reply.serving = serving = self._desk.open(reply)
        reply.on_done = lambda: self._streams.pop(number, None)
        stream = self._streams[number] = _Stream(reply, serving, listens=request.method == "GET")
        call = self._call(request)
        if request.content_length is not None and request.content_length <= WINDOW_BYTES:
            # All of it is on its way already: one write to the backend, and a kept connection may be used.
            stream.body, stream.call = bytearray(), call
        else:
            serving.start(call)

    def _refusal(self, request: payloads.Request) -> str:
        """Why this request is not taken, as the code of an error; "" when it is."""
        if self._draining or not TARGET.match(request.target):
            return "worker_refused"
        return "worker_busy" if self._desk.full else ""

    def _call(self, request: payloads.Request) -> Call:
        """What the backend is asked; the body comes."""
        return Call(
            method=request.method.encode("latin-1"),
            target=self._backend.path_prefix.encode() + request.target,
            header_lines=with_key(request.header_lines, self._backend.api_key),
            body=None,
            content_length=request.content_length,
            fresh=not _is_read(request),
        )

    def _body(self, stream: _Stream, payload: bytes) -> None:
        if stream.body is None:
            stream.serving.feed(payload)
            return
        stream.body += payload
        if len(stream.body) > WINDOW_BYTES:
            raise FrameError("a body longer than it was announced")

    def _body_end(self, stream: _Stream) -> None:
        if stream.body is None or stream.call is None:
            stream.serving.feed_end()
            return
        call = Call(
            method=stream.call.method,
            target=stream.call.target,
            header_lines=stream.call.header_lines,
            body=bytes(stream.body),
            fresh=stream.call.fresh,
        )
        stream.body = stream.call = None
        stream.serving.start(call)


def _is_read(request: payloads.Request) -> bool:
    """Whether the request may be sent twice, should a kept connection turn out to be closed."""
    path = request.target.partition(b"?")[0].decode("latin-1")
    endpoint = registry.find(request.method, path)
    return endpoint is not None and endpoint.read
