"""The hub process: the rendezvous of everything that spans connections. Lives on one loop, survives its guests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine

from fleetproxy import log
from fleetproxy.hub import memory
from fleetproxy.hub.line import SWEEP_S, WaitingLine
from fleetproxy.hub.proxies import Proxies
from fleetproxy.link.board import Board
from fleetproxy.link.client import LinkClient
from fleetproxy.link.messages import Count, Hello
from fleetproxy.process import Process


class OverMemoryError(RuntimeError):
    """The hub held more memory than `hub.memory_bytes`; it is started anew."""


async def main(process: Process) -> None:
    """Serve until told to leave: after `draining`, once the last proxy process has gone; after `stop`, at once."""
    limit_bytes = process.settings.hub.memory_bytes
    memory.limit_address_space(limit_bytes)
    board = Board(process.runtime / "board", row=0)
    waiting = WaitingLine(board, asyncio.get_running_loop())
    proxies = Proxies(waiting)

    hello = Hello(process.name, os.getpid(), process.boot)
    link = LinkClient(process.runtime / "link.sock", hello, waiting.publish, on_rotate=lambda: None)
    path = process.runtime / "hub.sock"
    server = await proxies.listen(path)
    log.get("hub").info("hub ready")
    try:
        await _first_to_end(
            link.run(),
            _sweep(waiting, proxies, link, limit_bytes),
            _until_left(process, proxies),
        )
    finally:
        server.close()
        path.unlink(missing_ok=True)
        proxies.close()
        waiting.close()


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


async def _until_left(process: Process, proxies: Proxies) -> None:
    await process.draining.wait()
    await _first_to_end(proxies.all_gone(), _set(process.stop))


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _sweep(waiting: WaitingLine, proxies: Proxies, link: LinkClient, limit_bytes: int) -> None:
    """Every second: the line's sweep, the counters to control, a look at our own size."""
    while True:
        await asyncio.sleep(SWEEP_S)
        waiting.sweep()
        resident = memory.resident_bytes()
        counters = {f'fleetproxy_queue_events_total{{event="{event}"}}': n for event, n in waiting.counts.items()}
        gauges = {
            "fleetproxy_queue_waiting": float(len(waiting)),
            "fleetproxy_hub_proxies": float(len(proxies)),
            "fleetproxy_hub_resident_bytes": float(resident),
        }
        link.send(Count(counters, gauges))
        if resident > limit_bytes:
            raise OverMemoryError(f"the hub held {resident} bytes, more than hub.memory_bytes = {limit_bytes}")
