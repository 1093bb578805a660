"""The hub process: the rendezvous of everything that spans connections. Lives on one loop, survives its guests."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Coroutine
from itertools import islice

from fleetproxy import log
from fleetproxy.core.table import Snapshot
from fleetproxy.hub import memory, sockets
from fleetproxy.hub.channels import Transfers
from fleetproxy.hub.door import Door
from fleetproxy.hub.line import SWEEP_S, WaitingLine
from fleetproxy.hub.proxies import Opener, Proxies
from fleetproxy.hub.relays import Calls, Running
from fleetproxy.hub.session import Sessions
from fleetproxy.hub.tunnels import Tunnels
from fleetproxy.hub.workers import Connected, News, Workers
from fleetproxy.link.board import Board
from fleetproxy.link.client import LinkClient
from fleetproxy.link.messages import Count, Hello, Pulse, RelayedCall, RelaysPulse, WorkersPulse, WorkersSeen
from fleetproxy.process import Process
from fleetproxy.settings import Settings
from fleetproxy.settings.servers import parse_listen
from fleetproxy.wire import frames, payloads

#: Control hears of every worker's heartbeat this often.
PULSE_SWEEPS = 4
#: MCP calls under way that control hears of, the oldest first.
MAX_TOLD_CALLS = 200
GOING_AWAY = 1001
#: How long leaving may wait for workers to take their close frame.
GOODBYE_S = 0.5


class OverMemoryError(RuntimeError):
    """The hub held more memory than `hub.memory_bytes`; it is started anew."""


class Hub:
    """The parts of the hub, and how news travel between them."""

    def __init__(self, process: Process, board: Board) -> None:
        loop = asyncio.get_running_loop()
        self._process = process
        self.waiting = WaitingLine(board, loop)
        self.workers = Workers(board, self.waiting, loop, self._tell)
        self.sessions = Sessions(self.workers, loop)
        self.door = Door(self.sessions, loop)
        self.tunnels = Tunnels(self.door)
        self.transfers = Transfers(loop)
        self.calls = Calls(self.workers)
        openers: dict[str, Opener] = {
            "tunnel": self.tunnels.open,
            "channel": self.transfers.open,
            "relay": self.calls.open,
        }
        self.proxies = Proxies(self.waiting, self.workers, openers, self._greeting)
        hello = Hello(process.name, os.getpid(), process.boot)
        self.link = LinkClient(process.runtime / "link.sock", hello, self._publish, on_rotate=lambda: None)
        #: Connections to control at which it was told of all workers.
        self._told_connection = 0
        self._sweeps = 0
        self._configure()
        process.reload.append(self._configure)

    def _configure(self) -> None:
        self.door.configure(self._process.settings)
        self.transfers.configure(self._process.settings)
        self.calls.configure(self._process.settings)

    def _publish(self, snapshot: Snapshot) -> None:
        self.workers.reserved_names = frozenset(
            routed.backend.name for routed in snapshot.table.backends if routed.backend.scheme != "hub"
        )
        self.waiting.publish(snapshot)
        self.workers.rest(snapshot.resting)

    def _tell(self, news: News) -> None:
        """Workers came, changed or left: every proxy hears it, and control."""
        self.proxies.tell(_presence(news))
        if self.link.connected and self._told_connection == self.link.connections:
            self.link.send(WorkersSeen(news.present, news.left))

    def _greeting(self) -> bytes:
        return _presence(self.workers.news())

    async def sweep(self) -> None:
        """Every second, for ever. Raises OverMemoryError when we have grown too large."""
        limit_bytes = self._process.settings.hub.memory_bytes
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweeps += 1
            self.waiting.sweep()
            self.sessions.sweep()
            resident = memory.resident_bytes()
            self._report(resident)
            if resident > limit_bytes:
                raise OverMemoryError(f"the hub held {resident} bytes, more than hub.memory_bytes = {limit_bytes}")

    def _report(self, resident_bytes: int) -> None:
        link = self.link
        if not link.connected:
            return
        if self._told_connection != link.connections:
            self._told_connection = link.connections
            link.send(WorkersSeen(self.workers.news().present, whole=True))
        if self._sweeps % PULSE_SWEEPS == 0 and len(self.workers):
            link.send(WorkersPulse(tuple(map(_pulse, self.workers))))
        functions = self.calls.methods()
        if functions:
            link.send(RelaysPulse(tuple(map(_relayed, islice(self.calls.running(), MAX_TOLD_CALLS))), functions))
        counters = {f"queue_events:{word}": number for word, number in self.waiting.counts.items()}
        counters |= {f"workers:{word}": number for word, number in self.workers.counts.items()}
        counters |= {f"worker_sockets:{word}": number for word, number in self.sessions.counts.items()}
        counters |= {f"worker_refusals:{word}": number for word, number in self.door.counts.items()}
        counters |= {f"transfers:{word}": number for word, number in self.transfers.counts.items()}
        counters |= {f"relay_calls:{word}": number for word, number in self.calls.counts.items()}
        counters["transfer_bytes"] = self.transfers.passed_bytes
        counters["tunnels_refused"] = self.tunnels.refused
        counters["link_dropped"] = link.dropped
        gauges = {
            "queue_waiting": float(len(self.waiting)),
            "hub_proxies": float(len(self.proxies)),
            "hub_workers": float(len(self.workers)),
            "hub_sockets": float(len(self.door)),
            "hub_tunnels": float(len(self.tunnels)),
            "transfer_channels": float(len(self.transfers)),
            "relay_calls_open": float(len(self.calls)),
            "hub_held_bytes": float(self.sessions.held.answers + self.sessions.held.collecting),
            "hub_resident_bytes": float(resident_bytes),
        }
        link.send(Count(counters, gauges))


async def main(process: Process) -> None:
    """Serve until told to leave: after `draining`, once the last proxy process has gone; after `stop`, at once."""
    memory.limit_address_space(process.settings.hub.memory_bytes)
    board = Board(process.runtime / "board", row=0)
    hub = Hub(process, board)
    path = process.runtime / "hub.sock"
    servers = [await hub.proxies.listen(path)]
    address = process.settings.hub.listen
    if address is not None:
        host, port = parse_listen(address, process.settings.host)
        servers.append(await sockets.listen(hub.door, host, port, _tls(process.settings)))
    log.get("hub").info("hub ready")
    try:
        await _first_to_end(hub.link.run(), hub.sweep(), _until_left(process, hub))
    finally:
        for server in servers:
            server.close()
        path.unlink(missing_ok=True)
        await _say_goodbye(hub)
        hub.transfers.close()
        hub.proxies.close()
        hub.workers.close()
        hub.waiting.close()


async def _say_goodbye(hub: Hub) -> None:
    """Close every worker's socket with a word, and give the words a moment to leave."""
    hub.sessions.close(GOING_AWAY, "server is leaving")
    for _ in range(10):
        if not hub.sessions.open:
            return
        await asyncio.sleep(GOODBYE_S / 10)


def _presence(news: News) -> bytes:
    """PRESENCE frames, one for each worker."""
    said = [payloads.Presence(worker=worker.light()) for worker in news.present]
    said += [payloads.Presence(left=key) for key in news.left]
    return b"".join(frames.encode(frames.PRESENCE, 0, payloads.encode(one)) for one in said)


def _relayed(call: Running) -> RelayedCall:
    return RelayedCall(call.id, call.relay, call.method, call.started_at_s)


def _pulse(connected: Connected) -> Pulse:
    worker = connected.worker
    return Pulse(
        family=worker.family,
        id=worker.id,
        last_heartbeat_s=worker.last_heartbeat_s,
        cpu_percent=worker.cpu_percent,
        ram_percent=worker.ram_percent,
        in_flight=len(connected.streams),
        processed=connected.processed,
        failed=connected.failed,
    )


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """The public port's certificate serves `hub.listen` too."""
    tls = settings.tls
    if tls.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    return context


async def _first_to_end(*coroutines: Coroutine[None, None, None]) -> None:
    """Run them side by side until one ends; then end the others. Raises what it raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _until_left(process: Process, hub: Hub) -> None:
    await process.draining.wait()
    hub.door.draining = True
    await _first_to_end(hub.proxies.all_gone(), _set(process.stop))
