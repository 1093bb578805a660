"""The agent: keeps a connection to the server, keeps an eye on the backend, tells each of the other."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Protocol

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

import fleetproxy
from fleetproxy.core.backend import Backend
from fleetproxy.core.worker import Offer
from fleetproxy.notify import notify
from fleetproxy.transport.base import Transport
from fleetproxy.transport.pool import Http1Transport, tls_context
from fleetproxy.wire.frames import SUBPROTOCOL, FrameError
from fleetproxy.wire.nfrx import NfrxError
from fleetproxy.worker import machine
from fleetproxy.worker.desk import Desk
from fleetproxy.worker.frame_side import FrameSide
from fleetproxy.worker.nfrx_side import NfrxSide
from fleetproxy.worker.options import Options
from fleetproxy.worker.outbox import Outbox
from fleetproxy.worker.probe import Found, Probe, ProbeFailed
from fleetproxy.worker.sides import Side

_log = logging.getLogger("fleetproxy.worker")

#: What is offered to the server; one that takes none of them gets nfrx's JSON.
SUBPROTOCOLS: tuple[Subprotocol, ...] = (Subprotocol(SUBPROTOCOL),)
HEARTBEAT_S = 5.0
#: A server of ours that says nothing for this long, not even to a ping, is gone.
SILENCE_S = 20.0
DIAL_S = 15.0
#: Wait before dialling again: the first tries are this far apart (a server that was started anew is back in seconds),
#: then it doubles, up to a bound. Each is drawn between half and the whole of it.
AGAIN_S, SOON_TRIES, AGAIN_MAX_S = 1.0, 5, 30.0
#: A connection that lived this long was a good one: the next wait is short again.
GOOD_S = 60.0
#: A request's whole body is one message in nfrx's language.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
#: Answers of the backend's idle connections are dropped after this.
KEEPALIVE_IDLE_S = 60.0

#: What a server's closing word means to whoever runs the worker.
ADVICE = {
    "unauthorized": "the server refuses this worker's key; set --client-key to the server's auth.client_key",
    "superseded": "another worker with the same id has dialled in; give each its own --client-id",
    "id in use": "another worker with the same id is connected; give each its own --client-id",
    "full": "the server has no room for another worker",
}


class Standing(msgspec.Struct):
    """How the agent is doing, for its status page."""

    connected_to_server: bool = False
    connected_to_backend: bool = False
    draining: bool = False
    leaving: bool = False
    #: What was wrong last with the backend, and with the connection; "" when nothing is.
    backend_error: str = ""
    server_error: str = ""
    #: Seconds since the epoch of the last heartbeat sent; 0 before the first.
    last_heartbeat_s: float = 0.0
    connections: int = 0

    @property
    def last_error(self) -> str:
        return self.server_error or self.backend_error


class Looking(Protocol):
    """Looks at a backend, again and again."""

    async def look(self) -> Found:
        """What it can do now. Raises ProbeFailed."""

    def offer(self, found: Found | None, vram_bytes: int | None) -> Offer:
        """What the worker offers after a look; nothing when it failed."""


class GaveUp(Exception):
    """The connection failed and the agent was told not to dial again."""


class Agent:
    """One worker. `run` returns when it has drained or was told to stop."""

    def __init__(
        self,
        options: Options,
        *,
        rng: random.Random | None = None,
        transport: Transport | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        address = options.backend
        self.options = options
        self._loop = loop
        self._rng = rng or random.Random()  # noqa: S311 - spreads reconnects, guards nothing
        self._backend = Backend(
            name="backend",
            id=0,
            column=0,
            scheme=address.scheme,
            host=address.host,
            port=address.port,
            path_prefix=address.prefix,
            api_key=options.api_key,
        )
        self._http1 = Http1Transport(loop, tls_context) if transport is None else None
        self._transport: Transport = transport if transport is not None else self._http1  # type: ignore[assignment]
        self.desk = Desk(self._transport, self._backend, loop, options.max_concurrency)
        self._probe = self._make_probe()
        self._gauge = machine.Gauge()
        self._vram_bytes: int | None = None
        self.standing = Standing()
        # Identity
        base = f"{address.scheme}://{self._backend.authority}{address.prefix}"
        self.worker_id = options.worker_id or machine.worker_id(options.family, base)
        self.worker_name = options.worker_name
        self.client_key = options.client_key or ""
        self.version = fleetproxy.__version__
        self.build_sha = ""
        self.build_date = ""
        self.current: Offer = self._probe.offer(None, None)
        self._side: Side | None = None
        self._socket: ClientConnection | None = None
        self._drained = asyncio.Event()
        self._undrained = asyncio.Event()
        self._stop = asyncio.Event()

    def _make_probe(self) -> Looking:
        return Probe(self.options, self._backend, self._transport, machine.host())

    def _make_side(self, out: Outbox, *, ours: bool) -> Side:
        """Our end of a new connection, in frames (`ours`) or in nfrx's language."""
        kind = FrameSide if ours else NfrxSide
        return kind(self, self.desk, self._backend, out)

    # --- wishes --------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take nothing new, finish what runs, then leave. A second time: leave now."""
        if self.standing.draining:
            self.stop()
            return
        _log.info("draining: %d requests to finish", len(self.desk))
        self.standing.draining = True
        if self._side is not None:
            self._side.goodbye(self.current)
        self._drained.set()

    def undrain(self) -> None:
        """Take requests again, if the agent has not left yet."""
        if self.standing.draining and not self.standing.leaving:
            self.standing.draining = False
            self._drained.clear()
            self._undrained.set()

    def stop(self) -> None:
        """Leave now; what runs is broken off."""
        self.standing.leaving = True
        self._stop.set()

    # --- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until drained or stopped. Raises GaveUp when it may not dial again and the connection failed."""
        self._vram_bytes = await machine.vram_bytes()
        await self._look()
        tasks = [
            asyncio.ensure_future(part) for part in (self._keep_looking(), self._keep_connected(), self._until_left())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.standing.leaving = True
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self.desk.drop_all()
            if self._http1 is not None:
                self._http1.close()

    async def _until_left(self) -> None:
        stopping = asyncio.ensure_future(self._stop.wait())
        finishing = asyncio.ensure_future(self._finish())
        try:
            await asyncio.wait({stopping, finishing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            finishing.cancel()

    async def _finish(self) -> None:
        """Returns when drained: everything finished, or the time for it over."""
        while True:
            await self._drained.wait()
            self._undrained.clear()
            finished = asyncio.ensure_future(self.desk.all_done())
            changed = asyncio.ensure_future(self._undrained.wait())
            try:
                await asyncio.wait(
                    {finished, changed}, timeout=self.options.drain_s, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                finished.cancel()
                changed.cancel()
            if not self.standing.draining:
                if self._socket is not None:
                    await self._socket.close(1000, "undrained")  # the register message of a new one says it best
                continue
            self.standing.leaving = True
            if self._socket is not None:
                await self._socket.close(1000, "drained")
            return

    # --- the backend ---------------------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self.options.poll_s)
            await self._look()
            if self._http1 is not None:
                self._http1.expire(self._loop.time() - KEEPALIVE_IDLE_S)

    async def _look(self) -> None:
        standing = self.standing
        try:
            found = await self._probe.look()
        except ProbeFailed as error:
            if str(error) != standing.backend_error:
                _log.warning("the backend cannot be used: %s", error)
            standing.connected_to_backend = False
            standing.backend_error = str(error)
            offer = self._probe.offer(None, self._vram_bytes)
        else:
            if not standing.connected_to_backend:
                _log.info("the backend (%s) has %d models", found.family or found.make, len(found.models))
            standing.connected_to_backend = True
            standing.backend_error = ""
            offer = self._probe.offer(found, self._vram_bytes)
        if offer != self.current:
            self.current = offer
            if self._side is not None:
                self._side.offer(offer)

    # --- the server ----------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        tries = 0
        while True:
            began = self._loop.time()
            error = await self._connect()
            self.standing.connected_to_server = False
            if self.standing.leaving:
                await self._stop.wait()  # `_finish` closed it; the end is near
            if error:
                self.standing.server_error = error
                _log.warning("not connected: %s", error)
                # The server's words are in it: on a line of their own they could be more than a status.
                notify(f"STATUS=Not connected: {' '.join(error.split())}")
                if not self.options.reconnect:
                    raise GaveUp(error)
            tries = 1 if self._loop.time() - began >= GOOD_S else tries + 1
            await asyncio.sleep(again_s(tries) * self._rng.uniform(0.5, 1.0))

    async def _connect(self) -> str:
        """One connection, from dialling to its end. Returns what ended it, "" for a word of farewell."""
        key = self.options.client_key
        dialling = connect(
            self.options.server_url,
            subprotocols=SUBPROTOCOLS or None,
            additional_headers={"Authorization": f"Bearer {key}"} if key else None,
            user_agent_header=f"fleetproxy-worker/{self.version}",
            compression=None,
            open_timeout=DIAL_S,
            ping_interval=HEARTBEAT_S * 2,
            ping_timeout=SILENCE_S,
            max_size=MAX_MESSAGE_BYTES,
            max_queue=64,
        )
        try:
            async with dialling as socket:
                self._socket = socket
                await self._converse(socket)
        except ConnectionClosed as closed:
            return _farewell(closed)
        except InvalidStatus as refused:
            return f"the server answered {refused.response.status_code}{_words(refused.response.body)}"
        except (InvalidHandshake, OSError, TimeoutError, ValueError) as error:
            return f"{self.options.server_url}: {str(error) or type(error).__name__}"
        finally:
            self._socket = None
        return ""

    async def _converse(self, socket: ClientConnection) -> None:
        out = Outbox()
        ours = socket.subprotocol == SUBPROTOCOL
        side = self._make_side(out, ours=ours)
        self._side = side
        side.hello(self.current)
        if self.standing.draining:
            side.goodbye(self.current)
        self.standing.connected_to_server = True
        self.standing.connections += 1
        _log.info("connected to %s (%s)", self.options.server_url, socket.subprotocol or "nfrx")
        notify(f"STATUS=Connected to {self.options.server_url}")
        tasks = [
            asyncio.ensure_future(part)
            for part in (out.write(socket), self._read(socket, side, ours), self._beat(side, socket))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._side = None
            side.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, socket: ClientConnection, side: Side, ours: bool) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S if ours else None):
                data = await socket.recv()
            try:
                side.message(data)
            except FrameError as error:
                await socket.close(1002, "protocol")
                raise ValueError(f"the server broke the protocol: {error}") from None
            except NfrxError as error:
                _log.warning("a message of the server makes no sense: %s", error)

    async def _beat(self, side: Side, socket: ClientConnection) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self.standing.server_error = ""  # a connection that lasts is a good one
            side.beat(self._gauge.cpu_percent(), self._gauge.ram_percent())
            self.standing.last_heartbeat_s = time.time()


def again_s(tries: int) -> float:
    """The longest wait before dialling again, after so many connections that failed or did not last."""
    return min(AGAIN_S * 2.0 ** max(0, min(tries, 64) - SOON_TRIES), AGAIN_MAX_S)


def _farewell(closed: ConnectionClosed) -> str:
    """What a close frame said, in words for whoever runs the worker."""
    received = closed.rcvd
    if received is None:
        return "the connection broke off"
    reason = received.reason
    advice = ADVICE.get(reason)
    if advice is not None:
        return advice
    return f"the server closed the connection ({received.code}{f': {reason}' if reason else ''})"


def _words(body: bytes | bytearray | None) -> str:
    text = bytes(body or b"").decode("utf-8", "replace").strip().splitlines()
    return f": {text[0][:200]}" if text else ""
