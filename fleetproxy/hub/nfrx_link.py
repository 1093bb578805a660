"""A stock nfrx worker: its JSON messages on one side, the hub's frames on the other (`wire/nfrx.py`).

What that protocol cannot do is done here. It has no flow control: what a slow caller has not taken is held, up to a
bound, and then that one request is given up, never the worker's socket. It takes a request only whole: the body is
collected first. It says the head of an answer before it knows whether there will be one: the head is kept until the
first byte, so that an early failure can still go to another worker.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, deque
from collections.abc import Callable

from fleetproxy.errors import FleetError
from fleetproxy.hub.agent_link import BUSY_UNSENT_BYTES, Ears
from fleetproxy.hub.sockets import Socket
from fleetproxy.hub.streams import Stream
from fleetproxy.wire import nfrx, payloads
from fleetproxy.wire.frames import FrameError
from fleetproxy.wire.multipart import BadForm, FormReader, boundary_of
from fleetproxy.wire.peek import peek

#: A request's body is one JSON string in this protocol; larger ones are refused.
MAX_BODY_BYTES = 32 * 1024 * 1024
#: Bodies of all requests that are being collected.
MAX_COLLECTING_BYTES = 256 * 1024 * 1024
#: Answer bytes held for one caller that does not take them; and for all of them.
MAX_HELD_BYTES = 4 * 1024 * 1024
MAX_HELD_IN_ALL_BYTES = 256 * 1024 * 1024
#: Answers go on in pieces of at most this.
PIECE_BYTES = 64 * 1024
#: Ids of requests that are over, remembered to tell late messages from made-up ones.
REMEMBERED = 1024

#: The headers a stock server sends to its workers.
_FORWARDED = {
    b"content-type": "Content-Type",
    b"accept": "Accept",
    b"accept-language": "Accept-Language",
    b"user-agent": "User-Agent",
    b"x-request-id": "X-Request-Id",
}


class Held:
    """Bytes held by all nfrx workers' links together."""

    def __init__(self) -> None:
        self.collecting = 0
        self.answers = 0


class _Call:
    """One request of this link."""

    __slots__ = ("body", "ended", "head", "held", "held_bytes", "id", "request", "sent", "stream")

    def __init__(self, stream: Stream, request: payloads.Request) -> None:
        self.id = str(uuid.uuid4())
        self.stream = stream
        self.request = request
        self.body = bytearray()
        self.sent = False
        #: The answer's head, until its first byte comes.
        self.head: nfrx.ResponseHead | None = None
        #: Answer bytes the caller has given no credit for yet.
        self.held: deque[bytes] = deque()
        self.held_bytes = 0
        #: How the answer ended, while held bytes are still to go.
        self.ended: nfrx.ResponseEnd | None = None


class NfrxLink:
    """Implements `streams.Link` for stock agents."""

    def __init__(
        self,
        socket: Socket,
        ears: Ears,
        count: Callable[[str], None],
        held: Held,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._socket = socket
        self._ears = ears
        self._count = count
        self._held = held
        self._calls: dict[str, _Call] = {}
        self._over: OrderedDict[str, None] = OrderedDict()

    # --- towards the worker ------------------------------------------------------------------------------------------

    def open(self, stream: Stream, request: bytes) -> str | None:
        if self._socket.unsent_bytes > BUSY_UNSENT_BYTES or self._held.collecting > MAX_COLLECTING_BYTES:
            return "worker_busy"
        asked = payloads.decode(request, payloads.Request)
        if not asked.target.startswith(b"/v1/"):
            return "worker_refused"
        if (asked.content_length or 0) > self._max_body_bytes:
            return "body_too_large"
        call = _Call(stream, asked)
        stream.token = call
        self._calls[call.id] = call
        return None

    def data(self, stream: Stream, payload: bytes) -> None:
        call = self._call(stream)
        if call.sent:
            raise FrameError("body bytes after the body's end")
        call.body += payload
        self._held.collecting += len(payload)
        if len(call.body) > self._max_body_bytes:
            self._forget(call)
            stream.reset("body_too_large")
        else:
            stream.give_window(len(payload))

    def end(self, stream: Stream) -> None:
        call = self._call(stream)
        if call.sent:
            raise FrameError("a second end of the body")
        call.sent = True
        request, body = call.request, bytes(call.body)
        self._held.collecting -= len(call.body)
        call.body.clear()
        headers = _request_headers(request.header_lines)
        order = nfrx.Request(
            request_id=call.id,
            method=request.method,
            path=request.target[len(b"/v1") :].decode("latin-1"),
            headers=headers,
            stream=_streams(headers, body),
            body=body,
        )
        self._socket.send(nfrx.write(order))

    def window(self, stream: Stream, credit: int) -> None:
        self._flush(self._call(stream))

    def cancel(self, stream: Stream) -> None:
        call = self._call(stream)
        if self._forget(call) and call.sent:
            self._socket.send(nfrx.write(nfrx.Cancel(request_id=call.id)))

    @staticmethod
    def _call(stream: Stream) -> _Call:
        assert isinstance(stream.token, _Call)
        return stream.token

    # --- from the worker ---------------------------------------------------------------------------------------------

    def message(self, data: str | bytes) -> int:
        try:
            message = nfrx.read_agent(data)
        except nfrx.NfrxError as error:
            call = self._calls.get(error.request_id)
            if call is not None:
                self._break(call, "bad_response")
            self._ears.violation(str(error))
            return 1
        match message:
            case nfrx.ResponseChunk():
                call = self._find(message.request_id)
                if call is not None:
                    self._chunk(call, message)
                    return 0 if message.data else 1
            case nfrx.ResponseHead() | nfrx.ResponseEnd():
                call = self._find(message.request_id)
                if call is not None:
                    if isinstance(message, nfrx.ResponseHead):
                        self._head(call, message)
                    else:
                        self._end(call, message)
                    return 0
            case nfrx.Heartbeat():
                self._ears.standing(
                    payloads.Standing(cpu_percent=message.host_cpu_percent, ram_percent=message.host_ram_used_percent)
                )
            case nfrx.StatusUpdate():
                self._ears.update(message)
            case nfrx.Register():
                self._ears.violation("a second register")
            case nfrx.Other():
                self._count("ignored")
        return 1

    def _find(self, request_id: str) -> _Call | None:
        call = self._calls.get(request_id)
        if call is not None and call.sent and call.ended is None:
            return call
        if request_id in self._over:
            self._count("late")
        else:
            self._count("foreign")
            self._ears.violation("a message of a request it was not given")
        return None

    def _head(self, call: _Call, message: nfrx.ResponseHead) -> None:
        if call.head is not None or call.stream.answered:
            self._ears.violation("a second head")
        elif not 200 <= message.status <= 599:
            self._break(call, "bad_response")
        else:
            call.head = message

    def _chunk(self, call: _Call, message: nfrx.ResponseChunk) -> None:
        if call.head is None and not call.stream.answered:
            self._ears.violation("a chunk before its head")
            return
        self._send_head(call)
        data = message.data
        call.held.extend(data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES))
        call.held_bytes += len(data)
        self._held.answers += len(data)
        self._flush(call)
        if call.held_bytes > MAX_HELD_BYTES or (call.held_bytes and self._held.answers > MAX_HELD_IN_ALL_BYTES):
            self._count("slow_caller")
            self._break(call, "backend_lost", "The answer was given up: it was not read fast enough.")

    def _end(self, call: _Call, message: nfrx.ResponseEnd) -> None:
        if call.head is None and not call.stream.answered:
            if message.failed:
                self._fail_early(call, message)
            else:
                self._break(call, "bad_response")
                self._ears.violation("an end before its head")
        elif call.head is not None and message.failed:
            self._fail_early(call, message)
        else:
            self._send_head(call)
            call.ended = message
            self._flush(call)

    def _fail_early(self, call: _Call, end: nfrx.ResponseEnd) -> None:
        """It failed before the first byte: as good as not having begun."""
        self._forget(call)
        refused = end.error_code == "worker_draining"
        call.stream.reset("worker_refused" if refused else "backend_reset", "" if refused else end.error_message)

    def _send_head(self, call: _Call) -> None:
        head, call.head = call.head, None
        if head is None:
            return
        headers = tuple((name.lower().encode(), value.encode()) for name, value in head.headers)
        length = next((value for name, value in headers if name == b"content-length"), b"")
        call.stream.head(
            payloads.encode(
                payloads.Head(head.status, headers, int(length) if length.isdigit() and len(length) < 19 else None)
            )
        )

    def _flush(self, call: _Call) -> None:
        """Pass on what there is credit for."""
        stream, held = call.stream, call.held
        while held and stream.credit > 0:
            piece = held.popleft()
            if len(piece) > stream.credit:
                held.appendleft(piece[stream.credit :])
                piece = piece[: stream.credit]
            call.held_bytes -= len(piece)
            self._held.answers -= len(piece)
            stream.data(piece)
        if call.ended is not None and not held:
            self._forget(call)
            if call.ended.failed:
                stream.reset("backend_lost")
            else:
                stream.end()

    def _break(self, call: _Call, code: str, message: str = "") -> None:
        """Give up one request, whatever state it is in."""
        self.cancel(call.stream)
        call.stream.reset("backend_lost" if call.stream.answered and code == "bad_response" else code, message)

    def _forget(self, call: _Call) -> bool:
        if self._calls.pop(call.id, None) is None:
            return False
        if not call.sent:
            self._held.collecting -= len(call.body)
            call.body.clear()
        self._held.answers -= call.held_bytes
        call.held_bytes = 0
        call.held.clear()
        self._over[call.id] = None
        if len(self._over) > REMEMBERED:
            self._over.popitem(last=False)
        return True


def _request_headers(lines: bytes) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        known = _FORWARDED.get(name.strip().lower())
        if known is not None:
            headers[known] = value.strip().decode("latin-1")
    return headers


def _streams(headers: dict[str, str], body: bytes) -> bool:
    """What the request says of itself; agents of this protocol want to be told beside it."""
    if headers.get("Content-Type", "").lower().startswith("multipart/form-data"):
        return _form_streams(headers["Content-Type"], body)
    if not headers.get("Content-Type", "").lower().startswith("application/json"):
        return False
    try:
        return peek(body).stream is True
    except FleetError:
        return False


def _form_streams(content_type: str, body: bytes) -> bool:
    try:
        reader = FormReader(boundary_of(content_type.encode("latin-1", "replace")), ("stream",))
        reader.feed(body)
    except BadForm:
        return False
    field = reader.fields.get("stream")
    return field is not None and field.value.strip().lower() in (b"1", b"t", b"true")
