"""A worker of our own: frames over its WebSocket, handed through. Bodies are neither copied apart nor looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

from fleetproxy.hub.sockets import Socket
from fleetproxy.hub.streams import Stream
from fleetproxy.wire import frames, nfrx, payloads
from fleetproxy.wire.frames import Decoder, Frame, FrameError

#: With more than this still unsent to it, a worker gets no new request. Some dozens of requests with pictures in them
#: are on their way at once when a crowd asks: that is no reason to refuse, a worker that takes nothing is.
BUSY_UNSENT_BYTES = 16 * 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
#: Frames in one message; our agents join fewer (`worker/outbox.py`). Each is work that nothing else can interrupt.
MAX_FRAMES = 1024


class Ears(Protocol):
    """Who listens to what a worker says of itself."""

    def standing(self, standing: payloads.Standing) -> None:
        """It offers this from now on, or says how its machine is doing."""

    def alive(self) -> None:
        """It said no more than that."""

    def update(self, update: nfrx.StatusUpdate) -> None:
        """The same in nfrx's words: parts of it."""

    def leaving(self) -> None:
        """It takes no new requests."""

    def violation(self, what: str) -> None:
        """It broke the rules of its protocol; too often, and it has to go."""


class AgentLink:
    """Implements `streams.Link` for the subprotocol fleetproxy.v1."""

    def __init__(self, socket: Socket, ears: Ears, count: Callable[[str], None]) -> None:
        self._socket = socket
        self._ears = ears
        self._count = count
        self._decoder = Decoder()
        self._numbers = itertools.count(1)
        self._issued = 0
        self._streams: dict[int, Stream] = {}

    # --- towards the worker ------------------------------------------------------------------------------------------

    def open(self, stream: Stream, request: bytes) -> str | None:
        if self._socket.unsent_bytes > BUSY_UNSENT_BYTES:
            return "worker_busy"
        self._issued = number = next(self._numbers)
        stream.token = number
        self._streams[number] = stream
        self._socket.send(frames.encode(frames.OPEN, number, request))
        return None

    def data(self, stream: Stream, payload: bytes) -> None:
        self._socket.send(frames.encode(frames.DATA, self._number(stream), payload))

    def end(self, stream: Stream) -> None:
        self._socket.send(frames.encode(frames.END, self._number(stream)))

    def window(self, stream: Stream, credit: int) -> None:
        self._socket.send(frames.window(self._number(stream), credit))

    def cancel(self, stream: Stream) -> None:
        number = self._number(stream)
        if self._streams.pop(number, None) is not None:
            reset = payloads.encode(payloads.Reset("client_gone"))
            self._socket.send(frames.encode(frames.RESET, number, reset))

    @staticmethod
    def _number(stream: Stream) -> int:
        assert isinstance(stream.token, int)
        return stream.token

    # --- from the worker ---------------------------------------------------------------------------------------------

    def message(self, data: str | bytes) -> int:
        """Raises FrameError on what is no frames, or too many: the connection is of no use then."""
        if isinstance(data, str):
            self._ears.violation("a text message")
            return 1
        chatter = 0
        for number, frame in enumerate(self._decoder.feed(data)):
            if number >= MAX_FRAMES:
                raise FrameError(f"more than {MAX_FRAMES} frames in one message")
            if not frame.stream:
                self._on_connection(frame)
                chatter += 1
            elif not self._on_stream(frame):
                chatter += 1
        return chatter

    def _on_connection(self, frame: Frame) -> None:
        match frame.kind:
            case frames.PING:
                self._socket.send(frames.encode(frames.PONG, 0, frame.payload[:64]))
                self._ears.alive()
            case frames.STATUS:
                self._ears.standing(payloads.decode(frame.payload, payloads.Standing))
            case frames.GOAWAY:
                self._ears.leaving()
            case frames.PONG:
                pass
            case _:
                self._ears.violation(f"a {frames.NAMES[frame.kind]} frame")

    def _on_stream(self, frame: Frame) -> bool:
        """Whether somebody waits for what it says."""
        stream = self._streams.get(frame.stream)
        if stream is None:
            # What was under way when we cancelled is no fault of the worker's.
            self._count("late" if frame.stream <= self._issued else "foreign")
            if frame.stream > self._issued:
                self._ears.violation("a frame of a stream nobody opened")
            return False
        match frame.kind:
            case frames.DATA if stream.answered and len(frame.payload) <= stream.credit:
                stream.data(frame.payload)
            case frames.HEAD if not stream.answered and len(frame.payload) <= MAX_HEAD_BYTES:
                stream.head(frame.payload)
            case frames.END if stream.answered:
                del self._streams[frame.stream]
                stream.end()
            case frames.WINDOW:
                stream.give_window(frames.credit(frame.payload))
            case frames.RESET:
                del self._streams[frame.stream]
                reset = payloads.decode(frame.payload, payloads.Reset)
                stream.reset(reset.code, reset.message)
            case _:
                self._break(stream, frame)
        return frame.kind != frames.DATA or bool(frame.payload)

    def _break(self, stream: Stream, frame: Frame) -> None:
        """Out of order, or past its credit: this answer cannot be believed any more."""
        self.cancel(stream)
        stream.reset("backend_lost" if stream.answered else "bad_response")
        self._ears.violation(f"a {frames.NAMES[frame.kind]} frame out of order")
