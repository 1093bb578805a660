"""One metrics agent: its address, its page, its signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import uvloop

from fleetproxy import log
from fleetproxy.listen import Listener, serve
from fleetproxy.notify import notify
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Log
from fleetproxy.worker.metrics.cards import Cards
from fleetproxy.worker.metrics.machine import Machine
from fleetproxy.worker.metrics.page import Page

_log = log.get("worker")


def run(host: str, port: int, key: str | None, log_level: str = "info") -> int:
    """Serve until told to leave. Exit code 1 when the address cannot be had."""
    log.setup(Settings(log=Log(level=log_level)), "worker-metrics")  # type: ignore[arg-type]
    try:
        listening = _listen(host, port)
    except OSError as error:
        _log.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        return 1
    # Inference comes first on this machine.
    os.nice(10)
    with listening:
        uvloop.run(_run(listening, key))
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Bound here, so that an address that is taken is said at once (SO_REUSEPORT would share it silently)."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


async def _run(listening: socket.socket, key: str | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    page = Page(Machine(Cards()).look, key)
    host, port = listening.getsockname()[:2]
    _log.info("metrics of this machine at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
    notify("READY=1")
    await serve(page, Listener(host=host, port=port, fd=listening.fileno(), connections=64), stop)
    notify("STOPPING=1")
