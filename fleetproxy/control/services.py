"""What the handlers of the dashboard API work with, made once per control process.

    services = await Services.open(data=..., runtime=..., settings=..., fleet=..., records=..., caller=...)
    app = Litestar(routes.HANDLERS + [...], guards=[services.guard], state=State({"services": services}))
    running = asyncio.create_task(services.run(stop));  ...;  await services.close()

What is written down (`control.analytics.journal`) should go through an `Overheard` journal whose listeners include
`services.notifier.hear`; `services.hurry = poller.hurry` lets a server be looked at at once after a change;
`services.put = journal.put` and `services.upkeep = StoreUpkeep(store)` connect scheduled jobs to the analytics.

The publisher asks `principals()` and `server_entries()` for what the API has added, and registers the configured
servers with `register_servers()`; `store.on_change(callback)` tells it when to ask again (after any change: compare).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import argon2
from litestar import Request

from fleetproxy import log
from fleetproxy.control.analytics.rows import Row
from fleetproxy.control.api.guard import Guard
from fleetproxy.control.calendar import Calendar
from fleetproxy.control.discovery import Discovery
from fleetproxy.control.job_actions import Actions, Upkeep
from fleetproxy.control.new_models import NewModels
from fleetproxy.control.notify.notifier import Notifier
from fleetproxy.control.passwords import Hasher, Throttle
from fleetproxy.control.ports import Caller, FleetPort, RecordsPort
from fleetproxy.control.pulls import Pulls
from fleetproxy.control.registry import Registry
from fleetproxy.control.state import Store, actions, keys, servers, sessions, upgrade, users
from fleetproxy.control.state.servers import ServerEntry
from fleetproxy.control.trial import Client
from fleetproxy.core.password_policy import password_fault, username_fault
from fleetproxy.core.table import Principal
from fleetproxy.errors import Conflict
from fleetproxy.settings import Settings
from fleetproxy.transport.base import Transport
from fleetproxy.transport.pool import Http1Transport, tls_context
from fleetproxy.transport.resolver import Resolver

_log = log.get("control")

#: In the runtime folder, readable by our own user alone: lets the command line in through control.sock.
LOCAL_KEY_FILE = "local.key"
#: In the data folder: an administrator existed once, so an empty state has been lost, not newly made.
CLAIMED_FILE = "state.claimed"
HOUSEKEEPING_S = 3600.0
AGAIN_S = 5.0
_PARTS = ("housekeeping", "notifier", "new models", "calendar")

T = TypeVar("T")


def wall_clock() -> datetime:
    return datetime.now(UTC)


class Services:
    """The operational half of control. Made by `open`; ends with `close`."""

    def __init__(
        self,
        store: Store,
        *,
        data: Path,
        settings: Callable[[], Settings],
        fleet: FleetPort,
        records: RecordsPort,
        caller: Client,
        transport: Transport | None = None,
        local_key: str | None = None,
        now: Callable[[], datetime] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        hashing_cost: argon2.PasswordHasher | None = None,
    ) -> None:
        self.store = store
        self.data = data
        self.settings = settings
        self.fleet = fleet
        self.records = records
        self.caller: Caller = caller
        #: Tries servers out; trials that run.
        self.trial_client = caller
        self.trials = 0
        self.now = now
        self.monotonic = monotonic
        self.hasher = Hasher(hashing_cost)
        self.throttle = Throttle()
        self.guard = Guard(store, settings, now, local_key)
        #: Looks at a server (by name) soon; set by whoever has a poller.
        self.hurry: Callable[[str], None] = lambda name: None
        #: Returns when what `fleet.apply()` took in is used by every process; set by whoever has the link.
        self.everywhere: Callable[[], Coroutine[Any, Any, None]] = _at_once
        self.resolver = Resolver()
        self.transport = transport or Http1Transport(asyncio.get_running_loop(), tls_context)
        self.registry = Registry(caller, lambda: settings().discovery, now)
        self.pulls = Pulls(store, self.transport, now, self.hurry_all)
        self.notifier = Notifier(
            store, settings, fleet, caller, self.transport, missing_models=records.missing_models, monotonic=monotonic
        )
        self.new_models = NewModels(store, fleet, now)
        #: What jobs do to the analytics, and where their runs are written down; set by whoever has them.
        self.upkeep: Upkeep | None = None
        self.put: Callable[[Row], None] = lambda row: None
        actions_of_jobs = Actions(
            fleet, caller, self.transport, exports=data / "exports", upkeep=lambda: self.upkeep, now=now
        )
        self.calendar = Calendar(store, actions_of_jobs, now, put=self._write_down, failed=self.notifier.job_failed)
        self.discovery = Discovery(caller, lambda: settings().discovery)
        #: Questions about the plan of jobs: answered now, and waiting.
        self.planning_slots = asyncio.Semaphore(2)
        self.planning_waiting = 0
        self.setup_lock = asyncio.Lock()
        #: Needed for the first administrator from anywhere but this machine; None once there is one.
        self.setup_token: str | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(
        cls,
        *,
        data: Path,
        runtime: Path,
        settings: Callable[[], Settings],
        fleet: FleetPort,
        records: RecordsPort,
        caller: Client,
    ) -> Services:
        """Open (create, migrate, repair) the state in the data folder and make everything that stands on it.

        Raises StoreBroken or StoreNewer with a sentence for the operator.
        """
        store = await Store.open(data / "state.db")
        if store.restored_from is not None:
            _log.error("state.db was damaged and set aside; restored from %s", store.restored_from)
        services = cls(
            store,
            data=data,
            settings=settings,
            fleet=fleet,
            records=records,
            caller=caller,
            local_key=_write_local_key(runtime),
        )
        await store.write(actions.interrupt, services.now())
        await services.first_administrator()
        return services

    async def run(self, stop: asyncio.Event) -> None:
        """Everything that goes on beside the calls, until `stop`."""
        parts = (self._keep_house, self.notifier.run, self.new_models.run, self.calendar.run)
        running = [self.spawn(self._keep_going(part, name), name) for part, name in zip(parts, _PARTS, strict=True)]
        await stop.wait()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _keep_going(self, part: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """A part that fails is begun anew after a while; the others go on meanwhile."""
        while True:
            try:
                await part()
            except Exception:
                _log.exception("%s failed; it is begun anew in %.0f s", name, AGAIN_S)
            await asyncio.sleep(AGAIN_S)

    async def _keep_house(self) -> None:
        """Ended sessions go, a copy of the state is made each day."""
        while True:
            try:
                await self.store.write(sessions.sweep, self.now())
                if self.store.path is not None:
                    await asyncio.to_thread(upgrade.daily_copy, self.store.path, self.now())
            except Exception:
                _log.exception("housekeeping of the state failed; it is tried again in an hour")
            await asyncio.sleep(HOUSEKEEPING_S)

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.calendar.close()
        await self.pulls.close()
        await self.notifier.close()
        self.hasher.close()
        await self.store.close()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run a coroutine beside the calls; it ends with control at the latest."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def lasting(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Wait for work that goes on when the caller leaves."""
        return await asyncio.shield(self.spawn(work, name))

    def counters(self) -> dict[str, int]:
        """Counters since start, as the exporter knows them."""
        outbox = self.notifier.outbox
        return {
            **{f"job_runs:{result}": count for result, count in self.calendar.counts.items()},
            "notices:sent": outbox.sent,
            "notices:failed": outbox.failed,
            "notices:dropped": outbox.dropped + self.notifier.overrun,
            "notices:muted": self.notifier.muted,
            "state_refused:busy": self.store.refused,
            "state_refused:logins": self.hasher.refused,
        }

    async def take_in(self) -> None:
        """The state has changed: returns when every process knows it."""
        await self.fleet.apply()
        await self.everywhere()

    def hurry_all(self) -> None:
        for backend, _ in self.fleet.backends():
            self.hurry(backend.name)

    # --- for the publisher ---------------------------------------------------------------------------------------

    async def principals(self) -> dict[bytes, Principal]:
        """SHA-256 of each API key in force -> whom it stands for."""
        return await self.store.read(keys.principals, self.now())

    async def register_servers(self, names: Iterable[str]) -> dict[str, int]:
        """The numbers of the configured servers, the same at every start: name -> id."""
        return await self.store.write(servers.register, tuple(names), self.now())

    async def server_entries(self) -> list[ServerEntry]:
        """Every server of the fleet: number, origin, maintenance and draining; whole when added through the API."""
        return await self.store.read(servers.entries)

    # --- the first administrator ---------------------------------------------------------------------------------

    async def first_administrator(self) -> None:
        """While there are no users: make the configured administrator, or a token for the setup page."""
        if await self.store.read(users.any_exist):
            self.claim()
            return
        auth = self.settings().auth
        if auth.admin_username and auth.admin_password:
            fault = username_fault(auth.admin_username) or password_fault(auth.admin_password, auth.admin_username)
            if fault is None:
                password_hash = await self.hasher.hash(auth.admin_password)
                try:
                    await self.store.write(users.create_first, auth.admin_username, password_hash, self.now())
                except Conflict:
                    pass  # another process was quicker
                self.claim()
                _log.info("administrator %s made from the settings", users.canonical_username(auth.admin_username))
                return
            _log.error("no administrator made from auth.admin_username and auth.admin_password: %s", fault)
        self.setup_token = secrets.token_urlsafe(18)
        _log.warning(
            "no users yet: make the first administrator at /dashboard/; from another machine with this token: %s",
            self.setup_token,
        )

    @property
    def claimed(self) -> bool:
        """An administrator existed in this data folder once."""
        return (self.data / CLAIMED_FILE).exists()

    def claim(self) -> None:
        self.setup_token = None
        (self.data / CLAIMED_FILE).touch(mode=0o600)

    def _write_down(self, row: Row) -> None:
        self.put(row)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s failed: %r", task.get_name(), task.exception())


async def _at_once() -> None:
    pass


def services_of(request: Request[Any, Any, Any]) -> Services:
    services = request.app.state["services"]
    assert isinstance(services, Services)
    return services


def _write_local_key(runtime: Path) -> str:
    """A new key for the command line, in a file only our own user reads."""
    key = secrets.token_hex(32)
    path = runtime / LOCAL_KEY_FILE
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(key)
    return key
