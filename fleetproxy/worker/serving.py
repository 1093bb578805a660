"""One request that came from the server, served by the backend: the way there, the answer's way back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendLost, BackendReset, ConnectionStale, FleetError
from fleetproxy.transport.base import Call, Headers, Transport, Upstream

CONNECT_S = 10.0


class Reply(Protocol):
    """Where the answer goes: one of the two wire languages."""

    def head(self, status: int, headers: Headers, content_length: int | None) -> None: ...

    def data(self, piece: bytes) -> bool:
        """False when it takes no more for now; `Serving.resume` is called when it does again."""

    def end(self) -> None: ...

    def failed(self, error: FleetError, begun: bool) -> None:
        """The answer did not come, or not all of it."""

    def taken(self, size: int) -> None:
        """So many bytes of the request's body have gone on to the backend."""


class Serving:
    """Implements `transport.base.Sink` for the backend's answer."""

    def __init__(
        self,
        transport: Transport,
        backend: Backend,
        reply: Reply,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[Serving], None],
    ) -> None:
        self._transport = transport
        self._backend = backend
        self._reply = reply
        self._loop = loop
        self._on_end = on_end
        self._upstream: Upstream | None = None
        self._body: deque[bytes] = deque()
        self._body_whole = False
        self._more_body = asyncio.Event()
        self._begun = False
        self._done: asyncio.Future[None] = loop.create_future()
        self._task: asyncio.Task[None] | None = None
        #: Called when it has ended, however.
        self.on_finish: Callable[[], object] = lambda: None

    def start(self, call: Call) -> None:
        """Serve the request. `call.body` None: the body comes by `feed`."""
        self._task = self._loop.create_task(self._serve(call))

    @property
    def started(self) -> bool:
        return self._task is not None

    def feed(self, piece: bytes) -> None:
        self._body.append(piece)
        self._more_body.set()

    def feed_end(self) -> None:
        self._body_whole = True
        self._more_body.set()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if self._task is not None:
            self._task.cancel()

    def resume(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()

    # --- Sink --------------------------------------------------------------------------------------------------------

    def piece(self, data: bytes, last: bool) -> None:
        if data and not self._reply.data(data) and not last and self._upstream is not None:
            self._upstream.pause()
        if last:
            self._reply.end()
            self._finish()

    def broken(self, error: Exception) -> None:
        self._reply.failed(error if isinstance(error, FleetError) else BackendLost(), True)
        self._finish()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _serve(self, call: Call) -> None:
        uploading: asyncio.Task[None] | None = None
        try:
            self._upstream = upstream = await self._transport.open(self._backend, call, CONNECT_S)
            if call.body is None:
                uploading = self._loop.create_task(self._upload(upstream))
            try:
                answer = await upstream.answer()
            except ConnectionStale:
                if call.body is None:
                    raise
                upstream.close()
                call = msgspec.structs.replace(call, fresh=True)
                self._upstream = upstream = await self._transport.open(self._backend, call, CONNECT_S)
                answer = await upstream.answer()
            self._begun = True
            self._reply.head(answer.status, answer.headers, answer.content_length)
            upstream.pipe(self)
            await self._done
        except FleetError as error:
            self._reply.failed(error, self._begun)
        except asyncio.CancelledError:
            raise
        except Exception:
            self._reply.failed(BackendLost() if self._begun else BackendReset(), self._begun)
            raise
        finally:
            if uploading is not None:
                uploading.cancel()
            if self._upstream is not None:
                self._upstream.close()
            self.on_finish()
            self._on_end(self)

    async def _upload(self, upstream: Upstream) -> None:
        while True:
            while self._body:
                piece = self._body.popleft()
                waiting = upstream.write(piece)
                if waiting is not None:
                    try:
                        await waiting
                    except FleetError:
                        return  # `answer` tells the same
                self._reply.taken(len(piece))
            if self._body_whole:
                upstream.write_end()
                return
            self._more_body.clear()
            await self._more_body.wait()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
