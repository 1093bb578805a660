"""One worker process: the agent, its signals, its local pages."""

from __future__ import annotations

import asyncio
import os
import signal

import uvloop

from fleetproxy import log
from fleetproxy.listen import App, Listener, serve
from fleetproxy.notify import notify
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Log
from fleetproxy.worker.agent import Agent, GaveUp
from fleetproxy.worker.mcp import McpAgent
from fleetproxy.worker.options import Options, token_path
from fleetproxy.worker.status import MetricsPage, StatusPage, make_token


def run(options: Options) -> int:
    """Work until told to leave. Exit code 0 after draining or a second signal, 1 when it gave up."""
    os.umask(0o077)
    log.setup(Settings(log=Log(level=options.log_level)), f"worker-{options.family}")  # type: ignore[arg-type]
    try:
        uvloop.run(_run(options))
    except GaveUp as error:
        log.get("worker").error("%s; not dialling again (--reconnect=false)", error)
        return 1
    return 0


async def _run(options: Options) -> None:
    agent = McpAgent(options, os.environ) if options.family == "mcp" else Agent(options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.drain)
    stop = asyncio.Event()
    pages = [asyncio.ensure_future(_serve(app, address, stop)) for app, address in _pages(agent)]
    # It works as soon as it dials: a fleet that is away at boot holds nothing up, and STATUS says which it is.
    notify("READY=1\nSTATUS=Dialling")
    try:
        await agent.run()
    finally:
        notify("STOPPING=1")
        stop.set()
        if pages:
            await asyncio.wait(pages, timeout=1.0)


def _pages(agent: Agent) -> list[tuple[App, tuple[str, int]]]:
    pages: list[tuple[App, tuple[str, int]]] = []
    options = agent.options
    if options.status is not None:
        path = token_path(options.family, os.environ)
        try:
            token = make_token(path)
        except OSError as error:
            log.get("worker").warning("no control over /control: the token cannot be kept in %s: %s", path, error)
            token = ""
        pages.append((StatusPage(agent, token), options.status))
    if options.metrics is not None:
        pages.append((MetricsPage(agent), options.metrics))
    return pages


async def _serve(app: App, address: tuple[str, int], stop: asyncio.Event) -> None:
    try:
        await serve(app, Listener(host=address[0], port=address[1], connections=64), stop)
    except Exception:
        log.get("worker").exception("the page at %s:%d cannot be served", *address)
