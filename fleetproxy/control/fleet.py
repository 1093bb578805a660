"""The fleet as it is now: which servers there are, what polls say of them, and the snapshot that follows.

    settings, state ──► apply() ──► servers, their numbers and columns ──► poller
    poll            ──► found() ──► states, events ──► journal, last states
                        both    ──► changed() ──► publisher ──► snapshot()

Decisions are made in `core.fleet`; here they meet the clock, the disk and the neighbours. One event loop's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from fleetproxy import log
from fleetproxy.control import descriptors, policy
from fleetproxy.control.analytics.rows import Row
from fleetproxy.control.bodies import Bodies
from fleetproxy.control.columns import Columns
from fleetproxy.control.deploys import Deploys
from fleetproxy.control.last_states import LastState, LastStates
from fleetproxy.control.probe import Probe
from fleetproxy.control.sightings import (
    first_sights,
    just_after,
    observation,
    row,
    same_but_fleeting,
    same_place,
    unloaded,
)
from fleetproxy.control.state.servers import ServerEntry
from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.core.fleet import Fleet, FleetEvent, ModelEvent, ServerEvent, Thresholds, compile_table
from fleetproxy.core.table import Principal, RoutingTable, Snapshot
from fleetproxy.settings import Server, Settings
from fleetproxy.settings.servers import BadAddress, to_backend

_log = log.get("control.fleet")

#: Models whose first sight is kept in mind.
MAX_FIRST_SEEN = 20_000


#: A reload waits at most this long for the first answers of servers that are new.
FIRST_LOOK_S = 1.0


class Book(Protocol):
    """What the operational state keeps for the fleet: `control.services.Services`."""

    async def register_servers(self, names: Iterable[str]) -> dict[str, int]: ...
    async def server_entries(self) -> list[ServerEntry]: ...
    async def principals(self) -> dict[bytes, Principal]: ...


class Pollster(Protocol):
    """`control.poller.Poller`."""

    async def sync(self, backends: Iterable[Backend]) -> None: ...
    async def polled(self, names: Iterable[str]) -> None: ...


class Counter(Protocol):
    """`link.board.Board`."""

    def load(self, column: int) -> int: ...
    def waiting(self, column: int) -> int: ...


class Pen(Protocol):
    """`control.analytics.journal.Journal`."""

    def put(self, *rows: Row) -> None: ...


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One server of the fleet, for showing."""

    backend: Backend
    state: BackendState
    #: Where it was defined.
    origin: Literal["file", "api"]
    #: The metrics agent's port on its machine; None: the usual one.
    metrics_port: int | None
    #: Model in memory -> seconds since the epoch when it was seen to come.
    loaded_at_s: dict[str, float]
    in_flight: int
    waiting: int
    #: Taken out of the fleet; requests of it are still running.
    leaving: bool


class _Leaving(msgspec.Struct, frozen=True):
    """A server that was taken out and may still be working."""

    server: _Server
    until_s: float


class _Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server as settings and state define it."""

    backend: Backend
    origin: Literal["file", "api"]
    metrics_port: int | None


class LiveFleet:
    """Implements `control.ports.FleetPort`. `begin` once, before anything else."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        *,
        columns: Columns,
        board: Counter,
        journal: Pen,
        last_states: LastStates,
        machine: str,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._columns = columns
        self._board = board
        self._journal = journal
        self._last_states = last_states
        self._machine = machine
        self._wall = wall
        self._book: Book | None = None
        self._poller: Pollster | None = None
        self._changed: Callable[[], None] = lambda: None
        self._applying = asyncio.Lock()
        self._fleet = Fleet()
        self._bodies = Bodies()
        self._servers: dict[str, _Server] = {}
        self._leaving: dict[str, _Leaving] = {}
        self._guests: dict[str, tuple[Backend, BackendState]] = {}
        self._loaded_at_s: dict[str, dict[str, float]] = {}
        self._deploys = Deploys()
        self._principals: dict[bytes, Principal] = {}
        #: Model as listed -> seconds since the epoch when it was first in a snapshot.
        self.first_seen_s: dict[str, int] = {}
        #: Dial-in workers drained by an operator: (family, id).
        self.resting: frozenset[tuple[str, str]] = frozenset()
        #: Servers that could not be taken in: name -> why.
        self.refused: dict[str, str] = {}

    async def begin(self, book: Book, poller: Pollster, changed: Callable[[], None]) -> None:
        """Take in the configured servers and begin to poll. Raises StoreUnavailable, OSError."""
        self._book, self._poller, self._changed = book, poller, changed
        await self.reload()

    async def reload(self) -> None:
        """The settings are new: register their servers, then take everything in."""
        assert self._book is not None
        await self._book.register_servers([server.name for server in self._settings().servers])
        await self.apply()

    async def apply(self) -> None:
        """Take in changed servers, switches and keys: look at the state again, publish, poll what is new."""
        assert self._book is not None
        assert self._poller is not None
        async with self._applying:
            entries = await self._book.server_entries()
            self._principals = await self._book.principals()
            defined = self._defined(entries)
            fresh = [name for name, server in defined.items() if not self._knows(name, server)]
            gone = {name: server for name, server in self._servers.items() if name not in defined}
            if fresh and gone:
                await self._see(gone | defined, fresh)
            self._take_in(defined)
            self._changed()
            await self._poller.sync(server.backend for server in self._servers.values())

    async def _see(self, servers: dict[str, _Server], fresh: Sequence[str]) -> None:
        """Newcomers are looked at before others are sent away, so that there is always somebody to ask."""
        assert self._poller is not None
        self._take_in(servers)
        await self._poller.sync(server.backend for server in self._servers.values())
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._poller.polled(fresh)
        except TimeoutError:
            pass  # they do not answer; the others go all the same

    # --- what there is ---------------------------------------------------------------------------------------

    def backends(self) -> Sequence[tuple[Backend, BackendState]]:
        """Every server of the fleet, in the order of their ids, with what the last poll saw."""
        return [(server.backend, self._fleet.state(name)) for name, server in self._servers.items()]

    def states(self) -> Mapping[str, BackendState]:
        """What is known of each backend, workers included, by name. Never changed: a new one is made."""
        return self._fleet.states

    def members(self) -> list[Member]:
        """The same with everything there is to show; those that leave come last."""
        here = [self._member(server, leaving=False) for server in self._servers.values()]
        return here + [self._member(leaving.server, leaving=True) for leaving in self._leaving.values()]

    def snapshot(self) -> Snapshot:
        """The state of everything the data plane needs, unnumbered."""
        settings = self._settings()
        fleet = self._fleet
        staying = (backend for backend in fleet.backends if backend.name not in self._leaving)
        bodies, model_bodies = self._bodies.make(
            ((backend, fleet.state(backend.name)) for backend in staying), hide_backends=settings.routing.hide_backends
        )
        table = compile_table(fleet, settings.routing.aliases)
        self._date(table)
        return Snapshot(
            table=table,
            principals=policy.principals(settings, self._principals),
            access=policy.access(settings, self._machine),
            limits=policy.limits(settings),
            bodies=bodies | descriptors.bodies(settings),
            model_bodies=model_bodies,
            first_seen_s=self.first_seen_s,
            resting=self.resting,
        )

    def _date(self, table: RoutingTable) -> None:
        """Keep in mind since when each model is there; those long gone make room."""
        listed = {route.model for routes in table.models.values() for route in routes}
        fresh = listed - self.first_seen_s.keys()
        if fresh:
            known = self.first_seen_s
            if len(known) + len(fresh) > MAX_FIRST_SEEN:
                known = {model: at_s for model, at_s in known.items() if model in listed}
            self.first_seen_s = known | dict.fromkeys(sorted(fresh), int(self._wall()))

    # --- what happens ----------------------------------------------------------------------------------------

    def found(self, backend: Backend, probe: Probe) -> None:
        """A poll has ended."""
        name = backend.name
        before = self._fleet.state(name)
        at_s = max(self._wall(), just_after(before.polled_at_s))
        thresholds = Thresholds(self._settings().poll.offline_threshold, self._settings().poll.online_threshold)
        self._fleet, events = self._fleet.apply(observation(backend, probe, at_s), thresholds)
        after = self._fleet.state(name)
        if after is before:
            return  # not of this fleet any more
        self._tell(name, events)
        self._tell(name, first_sights(backend, after, frozenset(self._loaded_at_s.get(name, ())), at_s))
        self._last_states.write(backend, after, self._loaded_at_s.get(name, {}))
        if not same_but_fleeting(before, after):
            self._changed()

    def welcome(self, guests: Iterable[tuple[Backend, BackendState]]) -> None:
        """These are the dial-in workers that are connected now."""
        self._guests = {backend.name: (backend, state) for backend, state in guests}
        self._settle()
        self._changed()

    def tick(self) -> None:
        """Let go of servers that were taken out and have come to rest. Once a second."""
        now_s = self._wall()
        done = [
            name
            for name, leaving in self._leaving.items()
            if now_s >= leaving.until_s or not self._busy(leaving.server.backend.column)
        ]
        if done:
            for name in done:
                del self._leaving[name]
            self._take_in(self._servers)
            self._changed()

    # --- inside ----------------------------------------------------------------------------------------------

    def _defined(self, entries: Sequence[ServerEntry]) -> dict[str, _Server]:
        """The servers of settings and state, without columns yet, in the order of their numbers."""
        in_file = {server.name.lower(): server for server in self._settings().servers}
        self.refused = {}
        servers: dict[str, _Server] = {}
        for entry in sorted(entries, key=lambda entry: entry.id):
            server = entry.server if entry.origin == "api" else in_file.get(entry.name.lower())
            if server is None:
                continue  # of the file as it was; the next reload takes it out of the state
            backend = self._backend(server, entry)
            if backend is not None:
                servers[server.name] = _Server(backend=backend, origin=entry.origin, metrics_port=server.metrics_port)
        return servers

    def _backend(self, server: Server, entry: ServerEntry) -> Backend | None:
        try:
            backend = to_backend(server, id=entry.id, column=-1)
        except BadAddress as error:
            self._refuse(server.name, f"its url cannot be used: {error}")
            return None
        enabled = server.enabled if entry.is_disabled is None else not entry.is_disabled
        return msgspec.structs.replace(backend, enabled=enabled, draining=entry.is_draining)

    def _take_in(self, defined: dict[str, _Server]) -> None:
        """Make these the servers of the fleet; those that are no longer among them begin to leave."""
        until_s = self._wall() + self._settings().timeouts.drain_s
        for name, server in self._servers.items():
            if name not in defined and self._busy(server.backend.column):
                resting = msgspec.structs.replace(server.backend, draining=True)
                self._leaving[name] = _Leaving(msgspec.structs.replace(server, backend=resting), until_s)
        for name in defined:
            self._leaving.pop(name, None)
        columns = self._columns.assign((*defined, *self._leaving))
        for name in defined.keys() - columns.keys():
            self._refuse(name, "the load board is full")
        self._servers = {
            name: msgspec.structs.replace(server, backend=msgspec.structs.replace(server.backend, column=columns[name]))
            for name, server in defined.items()
            if name in columns
        }
        self._settle()

    def _settle(self) -> None:
        """States for exactly these servers: kept, or read from disk, or none."""
        fleet = self._fleet
        old = {backend.name: backend for backend in fleet.backends}
        leaving = (leaving.server.backend for leaving in self._leaving.values())
        polled = (*(server.backend for server in self._servers.values()), *leaving)
        states: dict[str, BackendState] = {}
        for gone in self._last_states.departed(polled):
            self._say_goodbye(gone)
        for backend in polled:
            name = backend.name
            known = old.get(name)
            if known is not None and known.id == backend.id and same_place(known, backend):
                states[name] = fleet.state(name)
                continue
            last = self._last_states.read(backend, self._wall())
            states[name] = last.state if last else BackendState()
            self._loaded_at_s[name] = dict(last.loaded_at_s) if last else {}
        guests = {name: guest for name, guest in self._guests.items() if name not in self._servers}
        states |= {name: state for name, (_, state) in guests.items()}
        backends = (*polled, *(backend for backend, _ in guests.values()))
        self._fleet = Fleet(backends=backends, states=states)
        names = {backend.name for backend in polled}
        self._loaded_at_s = {name: times for name, times in self._loaded_at_s.items() if name in names}
        self._deploys.keep(names)

    def _tell(self, name: str, events: Iterable[FleetEvent]) -> None:
        """Write events down. Before the state that follows: killed in between, one is told twice rather than never."""
        times = self._loaded_at_s.setdefault(name, {})
        for event in events:
            match event:
                case ServerEvent(kind="offline"):
                    _log.warning("%s is offline: %s", name, event.detail)
                case ServerEvent(kind="deploy") if not self._deploys.worth_telling(name, event.at_s):
                    continue
                case ServerEvent(kind="deploy"):
                    _log.info("%s has a new version: %s", name, event.detail)
                case ServerEvent():
                    _log.info("%s is online", name)
                case ModelEvent(kind="loaded"):
                    times[event.model] = event.at_s
                case ModelEvent():
                    times.pop(event.model, None)
            self._journal.put(row(event))

    def _say_goodbye(self, last: LastState) -> None:
        """Models in the memory of a server that has left are not ours any more: or they would be there for ever."""
        for model in last.loaded_at_s:
            self._journal.put(row(unloaded(last.backend, model, self._wall())))

    def _member(self, server: _Server, *, leaving: bool) -> Member:
        backend = server.backend
        return Member(
            backend=backend,
            state=self._fleet.state(backend.name),
            origin=server.origin,
            metrics_port=server.metrics_port,
            loaded_at_s=self._loaded_at_s.get(backend.name, {}),
            in_flight=self._board.load(backend.column),
            waiting=self._board.waiting(backend.column),
            leaving=leaving,
        )

    def _knows(self, name: str, server: _Server) -> bool:
        known = self._servers.get(name)
        return known is not None and same_place(known.backend, server.backend)

    def _busy(self, column: int) -> bool:
        return self._board.load(column) > 0 or self._board.waiting(column) > 0

    def _refuse(self, name: str, why: str) -> None:
        self.refused[name] = why
        _log.error("server %s is left out: %s", name, why)
