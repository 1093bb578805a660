"""The control process: what watches, decides for the data plane, remembers, and answers the operator.

    link.sock     ◄─► proxies and hub: snapshots out; observations, counters, workers in
    control.sock  ◄── proxies relay the dashboard API, /metrics and the pages; the command line talks here too
    TCP           ◄── the same on an address of its own (`dashboard.listen`), metrics alone (`metrics.listen`)

It may die at any moment and start anew: proxies go on with the last snapshot, rows wait in the spool, and what it
knew of the fleet is read back from disk before the first snapshot is made.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fleetproxy import __version__, log
from fleetproxy.control.agents import Agents
from fleetproxy.control.analytics.history import History
from fleetproxy.control.analytics.journal import Journal
from fleetproxy.control.analytics.records import Records
from fleetproxy.control.analytics.store import Store
from fleetproxy.control.analytics.upkeep import StoreUpkeep
from fleetproxy.control.api.explain import Routing
from fleetproxy.control.api.fleet import Desk
from fleetproxy.control.api.workers import WorkersDesk
from fleetproxy.control.columns import Columns
from fleetproxy.control.deploys import tell_of_own
from fleetproxy.control.fleet import LiveFleet
from fleetproxy.control.last_states import LastStates
from fleetproxy.control.live.feed import Live
from fleetproxy.control.live.picture import Sight
from fleetproxy.control.metrics import Metrics
from fleetproxy.control.notify.notifier import Overheard
from fleetproxy.control.poller import Poller
from fleetproxy.control.publisher import Publisher
from fleetproxy.control.services import Services
from fleetproxy.control.visitors import Visitors
from fleetproxy.control.watch import Watch
from fleetproxy.control.web import Web
from fleetproxy.core.record import AuditRecord
from fleetproxy.core.table import Snapshot
from fleetproxy.link.board import Board
from fleetproxy.link.framing import read_boot, read_snapshot
from fleetproxy.link.messages import Count, Hello, Message, Observe, RelaysPulse, WorkersPulse, WorkersSeen
from fleetproxy.link.server import LinkServer
from fleetproxy.process import Process
from fleetproxy.settings import Settings
from fleetproxy.settings.files import certificate_end
from fleetproxy.transport.httpx_client import HttpxClient

_log = log.get("control")

BEAT_S = 1.0
#: A change that was asked for is answered when every process has it, or after this.
EVERYWHERE_S = 2.0
#: A service that starts waits at most this long for its servers' first answers.
FIRST_LOOK_S = 1.0
#: Workers of a hub that is gone are kept this long: the connection may only have been broken.
HUB_GRACE_S = 5.0
#: A control that starts anew waits at most this long to hear of the workers the last snapshot had.
WORKERS_WAIT_S = 3.0
#: Answers still running when control leaves are given this long.
LEAVE_S = 1.0


async def main(process: Process) -> None:
    """Run until the process is told to leave; the rest of the spool is loaded first."""
    async with AsyncExitStack() as stack:
        control = await Control.build(process, stack)
        await control.run()


class Control:
    """The parts of control and how they hang together."""

    @classmethod
    async def build(cls, process: Process, stack: AsyncExitStack) -> Control:
        """Open what must be open before anything runs. Raises StoreBroken, OSError."""
        control = cls(process)
        await stack.enter_async_context(control.client)
        stack.callback(control.board.close)
        control.services = await Services.open(
            data=process.data,
            runtime=process.runtime,
            settings=control.settings,
            fleet=control.fleet,
            records=control.history,
            caller=control.client,
        )
        stack.push_async_callback(control.services.close)
        return control

    services: Services

    def __init__(self, process: Process) -> None:
        self.process = process
        runtime, data = process.runtime, process.data
        boot = read_boot(runtime)
        last = read_snapshot(runtime / "snapshot")
        #: The snapshot the processes go on with; None when the whole service has just started.
        self.inherited = last if last is not None and last.boot == boot else None
        self.board = Board(runtime / "board")
        self.client = HttpxClient(wire_bytes=process.settings.limits.poll_body_bytes)
        self.journal = Journal(data / "spool", process.boot)
        self.told = Overheard(self.journal)
        self.columns = Columns(runtime / "columns", boot)
        self.fleet = LiveFleet(
            self.settings,
            columns=self.columns,
            board=self.board,
            journal=self.told,
            last_states=LastStates(data / "servers"),
            machine=socket.gethostname(),
        )
        self.fleet.first_seen_s = dict(last.first_seen_s) if last is not None else {}
        if self.inherited is not None:
            self.fleet.resting = self.inherited.resting
        self.poller = Poller(self.client, lambda: process.settings.poll, self.fleet.found)
        self.agents = Agents(
            self.client,
            self.fleet.members,
            self.told,
            data / "boots.json",
            interval_s=lambda: process.settings.poll.interval_s,
            key=lambda: process.settings.poll.agent_key,
        )
        self.link = LinkServer(runtime / "link.sock", self.hear, expected=_processes(process.settings))
        self.link.on_leave = self.left
        self.publisher = Publisher(
            self.fleet.snapshot, self.publish, path=runtime / "snapshot", versions=data / "snapshot.version", boot=boot
        )
        self.visitors = Visitors()
        self.visitors_known = asyncio.Event()
        self.watch = Watch(
            self.settings,
            self.fleet,
            self.visitors,
            self.board,
            draining=process.draining.is_set,
            processes=self.processes,
        )
        self.live = Live(self.sight(), hosts=self.hosts)
        certificate = process.settings.tls.cert
        ends = certificate_end(certificate) if certificate else None
        self.metrics = Metrics(
            process.settings.metrics.max_series,
            board=self.board,
            certificate_ends_s=ends.timestamp() if ends else None,
        )
        self.store = Store(
            data / "analytics.duckdb",
            data / "spool",
            process.settings.analytics,
            feed=self.feed,
            journal=self.journal,
            rotate=self.link.rotate_all,
        )
        self.metrics.watch(self.store, self.journal)
        self.history = History(self.store)
        self.records = Records(self.store, self.hosts)
        self._published = asyncio.Event()
        self._refresh_wanted = asyncio.Event()
        self._reload_wanted = False
        #: Set when the last rows are to be loaded; when listeners and link are to end.
        self._resting = asyncio.Event()
        self._closing = asyncio.Event()
        self.web = Web(self.settings, runtime, self.state, self._closing)

    def settings(self) -> Settings:
        return self.process.settings

    def hosts(self) -> dict[str, str]:
        """Address of each backend by name."""
        return {backend.name: backend.authority for backend, _ in self.fleet.backends()}

    def processes(self) -> list[str]:
        """Names of the processes connected now."""
        return [hello.process for hello in self.link.processes()]

    def feed(self, records: Sequence[AuditRecord]) -> None:
        """Audit rows on their way into the store, in the store's thread."""
        self.metrics.feed(records)
        self.watch.tallies.feed(records)
        self.live.feed(records)

    def sight(self) -> Sight:
        """What the live stream looks at."""
        return Sight(
            members=self.fleet.members,
            visitors=self.visitors.all,
            relays=lambda: self.visitors.relays,
            machines=self.agents.shown,
            load=self.board.load,
            waiting=self.board.waiting,
            resting=lambda: self.fleet.resting,
            pulls=self.pulls,
            store=self.store_state,
            draining=self.process.draining.is_set,
            processes=self.processes,
        )

    def pulls(self) -> list[dict[str, Any]]:
        return self.services.pulls.shown()

    def store_state(self) -> dict[str, Any]:
        status = self.store.status
        return {"ok": status.ok, "trouble": status.trouble, "detail": status.detail}

    # --- running ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run every part until one fails or the process is told to leave."""
        services, web = self.services, self.web
        self.told.listeners += [services.notifier.hear, self.live.hear]
        tell_of_own(self.process.data / "fleetproxy.version", __version__, time.time(), self.told.put)
        services.hurry = self.poller.hurry
        services.everywhere = self.everywhere
        services.put = self.told.put
        services.upkeep = StoreUpkeep(self.store)
        loading = asyncio.create_task(self.store.run(self._resting), name="store")
        parts = [
            ("link", self.link.run(self._closing)),
            ("fleet", self.keep_fleet()),
            ("beat", self.beat()),
            ("agents", self.agents.run()),
            ("samples", self.metrics.sample(self.journal, self._closing)),
            ("services", services.run(self._closing)),
            ("live", self.live.run(self._published)),
            ("control.sock", web.answer(self._published)),
            *((name, web.listen(name, app, listener)) for name, app, listener in web.addresses()),
        ]
        tasks: list[asyncio.Task[Any]] = [loading, *(asyncio.create_task(part, name=name) for name, part in parts)]
        draining = asyncio.create_task(self.process.draining.wait())
        try:
            await asyncio.wait((*tasks, draining), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
                    raise RuntimeError(f"{task.get_name()} ended by itself")
            await self.rest(loading)
            await asyncio.wait(tasks, timeout=LEAVE_S)
        finally:
            for task in (*tasks, draining):
                task.cancel()
            await asyncio.gather(*tasks, draining, return_exceptions=True)

    async def rest(self, loading: asyncio.Task[None]) -> None:
        """Leave: no more polls; answer until the rest of the spool is loaded, or until told to leave at once."""
        await self.poller.stop()
        self.journal.rotate()
        self._resting.set()
        self.watch.close()
        self.live.close()
        told = asyncio.create_task(self.process.stop.wait())
        await asyncio.wait({loading, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        self._closing.set()

    async def keep_fleet(self) -> None:
        """Take in servers, then publish what changes, and look again whenever settings or state did."""
        await self.fleet.begin(self.services, self.poller, self.publisher.changed)
        self.services.store.on_change(self.look_again)
        self.process.reload.append(self.reload)
        await (self.hear_of_workers() if self.inherited else self.see_servers())
        self.publisher.publish()
        self._published.set()
        publishing = asyncio.ensure_future(self.publisher.run())
        try:
            while True:
                await self._refresh_wanted.wait()
                self._refresh_wanted.clear()
                await self.refresh()
        finally:
            publishing.cancel()

    async def see_servers(self) -> None:
        """The whole service has just started: a first look at the servers, so that the first request finds them."""
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                await self.poller.poll_all()
        except TimeoutError:
            pass  # somebody does not answer; whoever did is in

    async def hear_of_workers(self) -> None:
        """Control alone starts anew: its first snapshot must not send away the workers that are here."""
        routed = self.inherited.table.backends if self.inherited else ()
        if any(one.backend.scheme == "hub" for one in routed):
            try:
                async with asyncio.timeout(WORKERS_WAIT_S):
                    await self.visitors_known.wait()
            except TimeoutError:
                pass

    async def refresh(self) -> None:
        reload, self._reload_wanted = self._reload_wanted, False
        try:
            if reload:
                self.link.expected = _processes(self.settings())
                await self.fleet.reload()
            else:
                await self.fleet.apply()
        except Exception:
            _log.exception("the fleet could not be brought up to date; it stays as it was")
        if reload:
            self.metrics.reloaded(True)
            _log.info("settings taken in: %d servers", len(self.fleet.backends()))

    async def beat(self) -> None:
        """Each second: let servers go that have come to rest, and their columns."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                self.fleet.tick()
                self.metrics.count("control", Count(self.services.counters(), {}))
                self.columns.reclaim(self.link.acknowledged, lambda c: self.board.load(c) + self.board.waiting(c))
            except OSError as error:
                _log.warning("the map of the load board could not be written: %s", error.strerror)

    # --- what happens ----------------------------------------------------------------------------------------

    def reload(self) -> None:
        """SIGHUP: the settings are new."""
        self._reload_wanted = True
        self._refresh_wanted.set()

    def look_again(self) -> None:
        """The operational state changed."""
        self._refresh_wanted.set()

    async def everywhere(self) -> None:
        """Publish what has changed, and wait until every process uses it: for a while, not for a process that hangs."""
        self.publisher.publish()
        await self.link.everybody_has(self.publisher.snapshot.version, EVERYWHERE_S)

    def publish(self, snapshot: Snapshot) -> None:
        self.link.publish(snapshot)
        self.watch.changed()
        self.metrics.fleet(snapshot.table, self.fleet.states())
        try:
            self.columns.published(snapshot.version)
        except OSError as error:
            _log.warning("the map of the load board could not be written: %s", error.strerror)

    def hear(self, process: str, message: Message) -> None:
        """A process says something."""
        match message:
            case Observe(backend):
                self.poller.hurry(backend)
            case Count():
                self.metrics.count(process, message)
                self.watch.count(process, message)
                self.live.count(process, message)
            case Hello():
                self.metrics.started(process, message.pid)
            case WorkersSeen():
                self.visitors.seen(message)
                self.visitors_known.set()
                self.fleet.welcome(self.visitors.guests())
                self.watch.changed()
            case WorkersPulse() | RelaysPulse():
                self.visitors.pulse(message)

    def left(self, process: str) -> None:
        """A process's connection ended."""
        self.metrics.left(process)
        self.watch.left(process)
        self.live.left(process)
        if process == "hub":
            self.visitors_known.clear()
            asyncio.get_running_loop().call_later(HUB_GRACE_S, self.forget_workers)

    def forget_workers(self) -> None:
        """The hub has not come back, and its workers with it."""
        if not self.visitors_known.is_set():
            self.visitors.clear()
            self.fleet.welcome(())

    # --- the web ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "services": self.services,
            "records": self.records,
            "metrics": self.metrics,
            "visitors": self.visitors,
            "watch": self.watch,
            "live": self.live,
            "workers": WorkersDesk(self.visitors, self.fleet, self.everywhere),
            "routing": Routing(lambda: self.publisher.snapshot, self.visitors, self.board, self.live.picture.tripped),
            "desk": Desk(self.fleet, self.poller.poll_all, self.checks, self.agents.shown),
        }

    def checks(self) -> Mapping[str, bool]:
        """What `/readyz` asks."""
        return {
            "backends": any(routed.usable for routed in self.publisher.snapshot.table.backends),
            "hub": any(hello.process == "hub" for hello in self.link.processes()),
            "accepting": not self.process.draining.is_set(),
        }


def _processes(settings: Settings) -> frozenset[str]:
    """The processes that must know of a snapshot before a column is used anew."""
    return frozenset({"hub", *(f"proxy-{index}" for index in range(settings.processes))})
