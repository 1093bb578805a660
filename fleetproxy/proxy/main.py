"""A proxy process: the public port, the data plane behind it, its ends of the link, the hub and the spool."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import time
from collections.abc import Coroutine
from typing import Any

from fleetproxy import log
from fleetproxy.core.table import Snapshot
from fleetproxy.errors import Draining
from fleetproxy.link.board import Board
from fleetproxy.link.client import LinkClient
from fleetproxy.link.messages import Count, Hello, Observe
from fleetproxy.link.spool import Spool
from fleetproxy.listen import Listener, serve
from fleetproxy.process import Process
from fleetproxy.proxy.app import Guest, build
from fleetproxy.proxy.mcp import Mcp
from fleetproxy.proxy.passage import Passage
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.presence import Presence
from fleetproxy.proxy.recorder import Recorder
from fleetproxy.proxy.spool_file import Disk
from fleetproxy.proxy.transfer import Transfer
from fleetproxy.proxy.tunnel import Tunnels
from fleetproxy.proxy.waiting import Waiting
from fleetproxy.transport.http2 import Http2Transport
from fleetproxy.transport.hub import HubClient
from fleetproxy.transport.hub_upstream import HubTransport
from fleetproxy.transport.pool import Http1Transport, tls_context

#: Spool segments are closed, counters sent and idle connections looked at this often.
BEAT_S = 1.0

_log = log.get("proxy")


async def main(process: Process) -> None:
    loop = asyncio.get_running_loop()
    settings = process.settings
    board = Board(process.runtime / "board", row=1 + process.index)
    limit_bytes = process.settings.analytics.spool_bytes // process.settings.processes
    spool = Spool(process.data / "spool", "requests", process.boot, process.name, limit_bytes=limit_bytes)
    http1 = Http1Transport(loop, tls_context)
    http2 = Http2Transport(loop)
    hub = HubClient(process.runtime / "hub.sock", process.name)
    plane = Plane(
        name=process.name,
        snapshot=Snapshot(),
        board=board,
        recorder=Recorder(spool, process.name, time.monotonic),
        transports={"http1": http1, "http2": http2, "hub": HubTransport(hub, loop)},
        instance=hashlib.sha256(os.fsencode(process.data)).hexdigest()[:8],
        waiting=Waiting(board, hub),
        hub_connected=lambda: hub.connected,
        processes=settings.processes,
        disk=Disk(process.data / "uploads", settings.asr.spool_bytes),
        clock=time.monotonic,  # the loop has the time of its turn, in whole milliseconds
    )
    presence = Presence(hub, plane.publish, loop)
    plane.hub_settled = presence.settled
    link = LinkClient(
        process.runtime / "link.sock",
        Hello(process=process.name, pid=os.getpid(), boot=process.boot),
        presence.publish,
        spool.rotate,
    )
    plane.observe = lambda backend, kind: link.send(Observe(backend=backend, kind=kind))
    tunnels = Tunnels(plane, hub)
    guests: dict[str, Guest] = {
        "mcp": Mcp(plane, hub, lambda: process.settings.mcp),
        "transfer": Transfer(plane, hub, lambda: process.settings),
    }
    app = build(plane, Passage(plane, process.runtime / "control.sock"), tunnels, guests)

    stop = asyncio.Event()
    listener = Listener(
        host=settings.host,
        port=settings.port,
        fd=process.listen_fd,
        tls_cert=settings.tls.cert,
        tls_key=settings.tls.key,
        connections=settings.limits.connections,
    )
    # What exists now lives as long as the process: the collector need not look at it again. The data plane makes few
    # cycles, so it may also look less often (2 % of CPU per request at the default thresholds).
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)

    background = [
        _hold(part) for part in (link.run(), hub.run(), plane.sweep(), _beat(plane, spool, link, http1, http2))
    ]
    leaving = asyncio.ensure_future(_leave(process, plane, tunnels, stop))
    try:
        await serve(app, listener, stop)
    finally:
        leaving.cancel()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, leaving, return_exceptions=True)
        spool.rotate()
        http1.close()
        await http2.aclose()


async def _leave(process: Process, plane: Plane, tunnels: Tunnels, stop: asyncio.Event) -> None:
    """Refuse new work while the listener still accepts; let what runs end, up to the limit; then stop."""
    await process.draining.wait()
    plane.draining = True
    for tell in plane.on_drain:
        tell()
    deadline = plane.clock() + plane.snapshot.limits.drain_s
    await plane.idle(deadline, process.stop)
    for exchange in list(plane.live):
        exchange.interrupt(Draining("This server stopped before the answer was complete."))
    await plane.idle(plane.clock() + 1.0, process.stop)
    await tunnels.leave(deadline, process.stop)
    stop.set()


async def _beat(plane: Plane, spool: Spool, link: LinkClient, http1: Http1Transport, http2: Http2Transport) -> None:
    """Each second: close the spool segment, tell control our counters, let idle connections go."""
    while True:
        await asyncio.sleep(BEAT_S)
        spool.rotate()
        plane.trips.cool()
        limits = plane.snapshot.limits
        http1.expire(plane.clock() - limits.keepalive_idle_s)
        names = frozenset(routed.backend.name for routed in plane.snapshot.table.backends)
        http1.keep_only(names | {"control"})
        http2.keep_only(names)
        counters = dict(plane.counters)
        counters["audit_rows"] = spool.written
        counters["audit_dropped"] = spool.dropped
        counters["overloaded"] = plane.budget.refused
        counters["link_dropped"] = link.dropped
        gauges = {
            "exchanges": float(sum(not exchange.lasting for exchange in plane.live)),
            "buffered_bytes": float(plane.budget.held_bytes),
            "upload_spool_bytes": float(plane.disk.held_bytes if plane.disk is not None else 0),
            "draining": float(plane.draining),
        }
        breakers = {column: state.name.lower() for column, state in plane.trips.states().items() if state}
        link.send(Count(counters=counters, gauges=gauges, breakers=breakers))


def _hold(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A background part whose failure ends the process loudly: the supervisor starts a whole one."""
    task = asyncio.ensure_future(coroutine)

    def ended(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and done.exception() is not None:
            _log.error("a background part failed", exc_info=done.exception())
            os._exit(1)

    task.add_done_callback(ended)
    return task
