"""One request on its way through the hub: from a proxy process to a worker, and its answer back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import WINDOW_BYTES, FrameError

if TYPE_CHECKING:
    from fleetproxy.hub.proxies import Proxy
    from fleetproxy.hub.workers import Connected


class StreamEnd(Protocol):
    """What a stream of a proxy's connection leads to."""

    def frame(self, kind: int, payload: bytes) -> None:
        """A frame of the stream. Raises FrameError when it is not allowed."""

    def abandon(self) -> None:
        """The proxy process is gone."""


class Link(Protocol):
    """A worker's wire language, from the hub's side."""

    def open(self, stream: Stream, request: bytes) -> str | None:
        """Pass a request on. Returns the code of an error when that cannot be done now."""

    def data(self, stream: Stream, payload: bytes) -> None: ...

    def end(self, stream: Stream) -> None: ...

    def window(self, stream: Stream, credit: int) -> None: ...

    def cancel(self, stream: Stream) -> None:
        """Forget the stream, and have the worker forget it. Never refused, never dropped."""

    def message(self, data: str | bytes) -> int:
        """A message of the worker. Returns how much of it nobody had asked for, in messages."""


class Stream:
    """Pairs a proxy's stream with a worker's. Lives until one side has ended it."""

    __slots__ = ("answered", "credit", "number", "proxy", "token", "worker")

    def __init__(self, proxy: Proxy, number: int, worker: Connected) -> None:
        self.proxy = proxy
        self.number = number
        self.worker = worker
        #: What the worker's link knows it by.
        self.token: object = None
        #: Body bytes the proxy takes before it gives more credit.
        self.credit = WINDOW_BYTES
        #: The head of the answer has gone by.
        self.answered = False

    # --- from the proxy ----------------------------------------------------------------------------------------------

    def frame(self, kind: int, payload: bytes) -> None:
        link = self.worker.link
        match kind:
            case frames.DATA:
                link.data(self, payload)
            case frames.END:
                link.end(self)
            case frames.WINDOW:
                credit = frames.credit(payload)
                self.credit += credit
                link.window(self, credit)
            case frames.RESET:
                self.abandon()
            case _:
                raise FrameError(f"a {frames.NAMES[kind]} frame does not belong inside a request")

    def abandon(self) -> None:
        self.worker.link.cancel(self)
        self._over()

    # --- from the worker ---------------------------------------------------------------------------------------------

    def head(self, payload: bytes) -> None:
        self.answered = True
        self.proxy.send(frames.encode(frames.HEAD, self.number, payload))

    def data(self, payload: bytes) -> None:
        """Body bytes, within the credit."""
        self.credit -= len(payload)
        self.proxy.send_data(frames.header(frames.DATA, self.number, len(payload)), payload)

    def end(self) -> None:
        """The answer is complete."""
        self.proxy.send(frames.encode(frames.END, self.number))
        self._over()

    def give_window(self, credit: int) -> None:
        """The worker takes so many more bytes of the request's body."""
        self.proxy.send(frames.window(self.number, credit))

    def reset(self, code: str, message: str = "") -> None:
        """The answer will not come, or not all of it."""
        self.proxy.send(frames.encode(frames.RESET, self.number, payloads.encode(payloads.Reset(code, message[:512]))))
        self._over()

    def refuse(self, code: str) -> None:
        """The worker was never asked."""
        self.proxy.send(frames.encode(frames.RESET, self.number, payloads.encode(payloads.Reset(code))))
        self.proxy.streams.pop(self.number, None)

    def _over(self) -> None:
        self.proxy.streams.pop(self.number, None)
        self.worker.finished(self)
