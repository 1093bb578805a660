"""The worker's end of the two wire languages: frames (`fleetproxy.v1`) and nfrx's JSON."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fleetproxy.core.backend import Backend
from fleetproxy.core.worker import Offer
from fleetproxy.errors import FleetError
from fleetproxy.families import registry
from fleetproxy.transport.base import Call, Headers
from fleetproxy.wire import frames, nfrx, payloads
from fleetproxy.wire.frames import WINDOW_BYTES, Decoder, Frame, FrameError
from fleetproxy.worker.desk import Desk
from fleetproxy.worker.outbox import Outbox
from fleetproxy.worker.serving import Serving

_log = logging.getLogger("fleetproxy.worker")

PIECE_BYTES = 32 * 1024
_TARGET = re.compile(rb"/[\x21-\x7e]*\Z")


class Identity(Protocol):
    """Who this worker is: the fields both languages register with."""

    worker_id: str
    worker_name: str
    client_key: str
    version: str
    build_sha: str
    build_date: str


class Side(Protocol):
    """One connection's wire language. `message` raises FrameError or NfrxError when the server makes no sense."""

    def hello(self, offer: Offer) -> None: ...

    def offer(self, offer: Offer) -> None:
        """This is on offer from now on."""

    def beat(self, cpu_percent: float, ram_percent: float) -> None:
        """A sign of life."""

    def goodbye(self, offer: Offer) -> None:
        """No new requests, please."""

    def message(self, data: str | bytes) -> None: ...

    def close(self) -> None:
        """The connection is gone: what runs for it stops."""


# --- frames ------------------------------------------------------------------------------------------------------


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

    __slots__ = ("body", "call", "reply", "serving")

    def __init__(self, reply: _FrameReply, serving: Serving) -> None:
        self.reply = reply
        self.serving = serving
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
        code = ""
        if self._draining or not _TARGET.match(request.target):
            code = "worker_refused"
        elif self._desk.full:
            code = "worker_busy"
        if code:
            self._out.put(frames.encode(frames.RESET, number, payloads.encode(payloads.Reset(code))))
            return
        reply = _FrameReply(number, self._out)
        reply.serving = serving = self._desk.open(reply)
        reply.on_done = lambda: self._streams.pop(number, None)
        stream = self._streams[number] = _Stream(reply, serving)
        length = request.content_length
        call = Call(
            method=request.method.encode("latin-1"),
            target=self._backend.path_prefix.encode() + request.target,
            header_lines=with_key(request.header_lines, self._backend.api_key),
            body=None,
            content_length=length,
            fresh=not _is_read(request),
        )
        if length is not None and length <= WINDOW_BYTES:
            # All of it is on its way already: one write to the backend, and a kept connection may be used.
            stream.body, stream.call = bytearray(), call
        else:
            serving.start(call)

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


# --- nfrx --------------------------------------------------------------------------------------------------------


class _NfrxReply:
    """A `serving.Reply` in nfrx's messages. No credit there: the socket's own back-pressure has to do."""

    def __init__(self, request_id: str, out: Outbox) -> None:
        self._id = request_id
        self._out = out

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        joined: dict[str, str] = {}
        for name, value in headers:
            key, text = name.decode("latin-1").title(), value.decode("latin-1")
            joined[key] = f"{joined[key]}, {text}" if key in joined else text
        self._say(nfrx.ResponseHead(request_id=self._id, status=status, headers=tuple(joined.items())))

    def data(self, piece: bytes) -> bool:
        for at in range(0, len(piece), PIECE_BYTES):
            self._say(nfrx.ResponseChunk(request_id=self._id, data=piece[at : at + PIECE_BYTES]))
        return not self._out.full

    def end(self) -> None:
        self._say(nfrx.ResponseEnd(request_id=self._id))

    def failed(self, error: FleetError, begun: bool) -> None:
        if not begun:
            # As the stock agent has it: an answer of its own that says why.
            self.head(502, [(b"content-type", b"application/json")], None)
            self.data(b'{"error":"%b"}' % error.code.encode())
        self._say(nfrx.ResponseEnd(request_id=self._id, error_code="upstream_error", error_message=str(error)))

    def taken(self, size: int) -> None:
        """Bodies come whole in this language."""

    def refuse(self, code: str, text: str) -> None:
        self.head(503, [(b"content-type", b"application/json")], None)
        self._say(nfrx.ResponseEnd(request_id=self._id, error_code=code, error_message=text))

    def _say(self, message: nfrx.AgentMessage) -> None:
        self._out.put(nfrx.write(message))


class NfrxSide:
    """Implements `Side` for stock nfrx servers."""

    def __init__(self, identity: Identity, desk: Desk, backend: Backend, out: Outbox) -> None:
        self._identity = identity
        self._desk = desk
        self._backend = backend
        self._out = out
        self._servings: dict[str, Serving] = {}
        self._offered: Offer | None = None
        self._draining = False
        out.on_room = self._resume

    def hello(self, offer: Offer) -> None:
        who = self._identity
        self._offered = offer
        self._put(
            nfrx.Register(
                worker_id=who.worker_id,
                worker_name=who.worker_name,
                client_key=who.client_key,
                models=offer.models,
                max_concurrency=offer.slots,
                version=who.version,
                build_sha=who.build_sha,
                build_date=who.build_date,
                agent_config=agent_config(offer),
            )
        )

    def offer(self, offer: Offer) -> None:
        before, self._offered = self._offered, offer
        if self._draining or (before is not None and _same_to_nfrx(before, offer)):
            return
        ready = offer.status == "idle"
        self._put(
            nfrx.StatusUpdate(
                max_concurrency=offer.slots,
                models=offer.models if ready else None,
                status=offer.status,
                agent_config=agent_config(offer) if ready else {},
            )
        )

    def beat(self, cpu_percent: float, ram_percent: float) -> None:
        self._put(nfrx.Heartbeat(ts=int(time.time()), host_cpu_percent=cpu_percent, host_ram_used_percent=ram_percent))

    def goodbye(self, offer: Offer) -> None:
        self._draining = True
        self._put(nfrx.StatusUpdate(max_concurrency=0, status="draining"))

    def message(self, data: str | bytes) -> None:
        message = nfrx.read_server(data)
        match message:
            case nfrx.Request():
                self._serve(message)
            case nfrx.Cancel(request_id=request_id):
                serving = self._servings.pop(request_id, None)
                if serving is not None:
                    self._desk.drop(serving)

    def close(self) -> None:
        servings, self._servings = self._servings, {}
        for serving in servings.values():
            self._desk.drop(serving)

    def _serve(self, request: nfrx.Request) -> None:
        reply = _NfrxReply(request.request_id, self._out)
        target = f"{self._backend.path_prefix}/v1{request.path}".encode("latin-1", "replace")
        if self._draining:
            reply.refuse("worker_draining", "worker is draining")
            return
        if not _TARGET.match(target) or request.request_id in self._servings:
            reply.refuse("worker_refused", "the request makes no sense")
            return
        lines = b"".join(
            b"%b: %b\r\n" % (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
            for name, value in request.headers.items()
            if name.lower() not in _NOT_FORWARDED and not _BREAKS.search(name + value)
        )
        call = Call(
            method=request.method.encode("latin-1", "replace"),
            target=target,
            header_lines=with_key(lines, self._backend.api_key, drop=True),
            body=request.body,
        )
        serving = self._desk.queue(reply, call)
        if serving is None:
            reply.refuse("worker_busy", "too many requests wait at this worker")
            return
        self._servings[request.request_id] = serving
        serving.on_finish = lambda: self._servings.pop(request.request_id, None)

    def _resume(self) -> None:
        for serving in tuple(self._servings.values()):
            serving.resume()

    def _put(self, message: nfrx.AgentMessage) -> None:
        self._out.put(nfrx.write(message))


_BREAKS = re.compile(r"[\r\n\0]")
#: Framing is made anew.
_NOT_FORWARDED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer", "expect"}
)


def agent_config(offer: Offer) -> dict[str, str]:
    """What nfrx's servers read of a worker beside its models."""
    host = offer.host
    config = {field: getattr(host, field) for field in host.__struct_fields__}
    if offer.embedding_batch_size:
        config["embedding_batch_size"] = str(offer.embedding_batch_size)
    return {name: value for name, value in config.items() if value}


def _same_to_nfrx(before: Offer, after: Offer) -> bool:
    return (before.models, before.slots, before.status, agent_config(before)) == (
        after.models,
        after.slots,
        after.status,
        agent_config(after),
    )


def with_key(lines: bytes, api_key: str | None, *, drop: bool = False) -> bytes:
    """Header lines with the backend's key in place of whatever credentials came; those stay when it has none."""
    if api_key is None and not drop:
        return lines
    kept = b"".join(
        line + b"\r\n" for line in lines.split(b"\r\n") if line and not line.lower().startswith(b"authorization:")
    )
    return kept if api_key is None else kept + b"authorization: Bearer %b\r\n" % api_key.encode()
