"""The state of everything as nfrx's clients read it: `{"plugins": {"llm": {...}, "asr": ..., "mcp": ..., ...}}`.

Field names and their order are nfrx's; what it left empty is filled (`server.state`, `models`), and ours is added:
`servers` beside `workers`, and the element `fleet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from fleetproxy import __version__
from fleetproxy.control.fleet import Member
from fleetproxy.control.tallies import Tallies
from fleetproxy.control.visitors import Visitor
from fleetproxy.core.backend import BackendState
from fleetproxy.core.worker import Worker, state_of
from fleetproxy.link.messages import RelaysPulse
from fleetproxy.settings import Settings

#: Elements that are there whatever `plugins` says.
OURS = ("fleet", "server")


class Members(Protocol):
    """`control.fleet.LiveFleet`."""

    def members(self) -> Sequence[Member]: ...


class Guests(Protocol):
    """`control.visitors.Visitors`."""

    relays: RelaysPulse

    def all(self) -> Sequence[Visitor]: ...


class Counter(Protocol):
    """`link.board.Board`."""

    def load(self, column: int) -> int: ...


class Envelope:
    """Made anew whenever it is asked for; nothing here changes anything."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        fleet: Members,
        visitors: Guests,
        board: Counter,
        tallies: Tallies,
        *,
        draining: Callable[[], bool],
        processes: Callable[[], Sequence[str]],
        wall: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._visitors = visitors
        self._board = board
        self._tallies = tallies
        self._draining = draining
        self._processes = processes
        self._wall = wall
        self._began_s = wall()
        #: The latest gauges of each process.
        self._gauges: dict[str, Mapping[str, float]] = {}

    def count(self, process: str, gauges: Mapping[str, float]) -> None:
        """A process has told its gauges."""
        if process in self._gauges or len(self._gauges) < 128:
            self._gauges[process] = gauges

    def left(self, process: str) -> None:
        self._gauges.pop(process, None)

    def make(self) -> bytes:
        """The envelope, as JSON with a line end."""
        return msgspec.json.encode({"plugins": self.plugins()}) + b"\n"

    def plugins(self) -> dict[str, Any]:
        settings = self._settings()
        members = self._fleet.members()
        visitors = self._visitors.all()
        found: dict[str, Any] = {}
        if "llm" in settings.plugins:
            found["llm"] = self._family("llm", visitors, members)
        if "asr" in settings.plugins:
            found["asr"] = self._family("asr", visitors, ())
        if "mcp" in settings.plugins:
            found["mcp"] = self._mcp(visitors)
        if "transfer" in settings.plugins:
            found["transfer"] = {"channels": int(self._gauge("transfer_channels"))}
        found["fleet"] = self._ours(members, visitors)
        found["server"] = {"drainable_inflight": int(self._gauge("exchanges"))}
        return dict(sorted(found.items()))

    def elements(self) -> tuple[str, ...]:
        """Ids of the elements there are now."""
        on = self._settings().plugins
        return tuple(sorted([*(name for name in ("llm", "asr", "mcp", "transfer") if name in on), *OURS]))

    # --- llm, asr ------------------------------------------------------------------------------------------------

    def _family(self, family: str, visitors: Iterable[Visitor], members: Sequence[Member]) -> dict[str, Any]:
        guests = [visitor for visitor in visitors if visitor.worker.family == family]
        workers = [self._worker(visitor) for visitor in guests]
        servers = [self._server(member) for member in members]
        usable = any(visitor.worker.offer.slots for visitor in guests) or any(
            server["status"] in ("idle", "working") for server in servers
        )
        everybody = [*workers, *servers]
        return {
            "server": self._summary(family, usable, everybody),
            "workers_summary": _counted(workers),
            "models": _models(guests, members),
            "workers": workers,
            "servers": servers,
        }

    def _summary(self, family: str, usable: bool, everybody: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        now_s = self._wall()
        lined = family == "llm"
        return {
            "now": _instant(now_s),
            "version": __version__,
            "state": "draining" if self._draining() or self._gauge("draining") else "ready" if usable else "not_ready",
            "uptime_s": round(max(0.0, now_s - self._began_s), 3),
            "jobs_inflight_total": sum(one["inflight"] for one in everybody),
            "jobs_completed_total": sum(
                one["processed_total"] - one["failures_total"] - one["left_total"] for one in everybody
            ),
            "jobs_failed_total": sum(one["failures_total"] for one in everybody),
            "scheduler_queue_len": int(self._gauge("queue_waiting")) if lined else 0,
            "scheduler_queue_capacity": self._settings().queue.size if lined else 0,
        }

    def _worker(self, visitor: Visitor) -> dict[str, Any]:
        worker, pulse = visitor.worker, visitor.pulse
        in_flight = self._board.load(worker.column)
        offer = worker.offer
        said: dict[str, Any] = {"id": worker.id, "name": worker.name, "version": worker.version}
        said |= {key: value for key, value in _build(worker) if value}
        said["host_info"] = _host(worker)
        cpu = pulse.cpu_percent if pulse is not None else worker.cpu_percent
        ram = pulse.ram_percent if pulse is not None else worker.ram_percent
        said |= {key: value for key, value in (("host_cpu_percent", cpu), ("host_ram_used_percent", ram)) if value}
        heard_s = max(worker.last_heartbeat_s, pulse.last_heartbeat_s if pulse is not None else 0.0)
        return said | {
            "status": _status(offer.status, offer.slots, in_flight),
            "connected_at": _instant(worker.connected_at_s),
            "last_heartbeat": _instant(heard_s),
            "max_concurrency": offer.max_concurrency,
            "embedding_batch_size": offer.embedding_batch_size,
            **self._numbers(worker.name, in_flight),
        }

    def _numbers(self, backend: str, in_flight: int) -> dict[str, Any]:
        tally = self._tallies.of(backend)
        return {
            "input_tokens_total": tally.tokens_in,
            "output_tokens_total": tally.tokens_out,
            "processed_total": tally.processed,
            "processing_ms_total": round(tally.processing_ms),
            "avg_processing_ms": round(tally.average_ms, 3),
            "inflight": in_flight,
            "failures_total": tally.failures,
            "left_total": tally.left,
            "queue_len": 0,
            "last_error": tally.last_error,
        }

    # --- ours ----------------------------------------------------------------------------------------------------

    def _server(self, member: Member) -> dict[str, Any]:
        """A configured server, in the words for workers."""
        backend, state = member.backend, member.state
        usable = state.online and backend.enabled and not backend.draining
        return {
            "id": str(backend.id),
            "name": backend.name,
            "kind": backend.kind,
            "version": state.version or "",
            "status": _status("draining" if backend.draining else "idle", int(usable), member.in_flight),
            "online": state.online,
            "last_poll": _instant(state.polled_at_s) if state.polled_at_s else None,
            "max_concurrency": backend.max_concurrent,
            "embedding_batch_size": backend.embedding_batch_size or 0,
            "vram_total_bytes": backend.vram_bytes,
            "vram_used_bytes": state.vram_used_bytes,
            **self._numbers(backend.name, member.in_flight),
            "queue_len": member.waiting,
        }

    def _ours(self, members: Sequence[Member], visitors: Sequence[Visitor]) -> dict[str, Any]:
        return {
            "version": __version__,
            "servers": {"total": len(members), "online": sum(member.state.online for member in members)},
            "workers": len(visitors),
            "inflight": sum(member.in_flight for member in members)
            + sum(self._board.load(visitor.worker.column) for visitor in visitors),
            "waiting": int(self._gauge("queue_waiting")),
            "processes": sorted(self._processes()),
        }

    def _gauge(self, name: str) -> float:
        return sum(gauges.get(name, 0.0) for gauges in self._gauges.values())

    # --- mcp -----------------------------------------------------------------------------------------------------

    def _mcp(self, visitors: Iterable[Visitor]) -> dict[str, Any]:
        relays = self._visitors.relays
        here = {visitor.worker.id: visitor.worker for visitor in visitors if visitor.worker.family == "mcp"}
        clients: list[dict[str, Any]] = []
        for relay_id, worker in here.items():
            functions = relays.functions.get(relay_id, {})
            running = sum(functions.values())
            clients.append(
                {
                    "id": relay_id,
                    "name": worker.name,
                    "status": "active" if running else "idle",
                    "inflight": running,
                    "functions": functions,
                }
            )
        now_s = self._wall()
        sessions = [
            {
                "id": call.id,
                "client_id": call.relay,
                "method": call.method,
                "started_at": _instant(call.started_at_s),
                "duration_ms": max(0, round((now_s - call.started_at_s) * 1000)),
            }
            for call in relays.calls
            if call.relay in here
        ]
        return {"clients": clients, "sessions": sessions}


_STATUSES = ("connected", "working", "idle", "not_ready", "draining", "gone")


def _counted(workers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many are how. `connected` is all of them."""
    counts = dict.fromkeys(_STATUSES, 0)
    for worker in workers:
        counts[worker["status"]] += 1
    return counts | {"connected": len(workers)}


def _status(said: str, slots: int, in_flight: int) -> str:
    if said == "draining":
        return "draining"
    if said == "not_ready" or not slots:
        return "not_ready"
    return "working" if in_flight else "idle"


def _models(guests: Sequence[Visitor], members: Sequence[Member]) -> list[dict[str, Any]]:
    """Every model with those who have it, by name."""
    workers: dict[str, list[str]] = {}
    servers: dict[str, list[str]] = {}
    for visitor in guests:
        for model in _listed(state_of(visitor.worker)):
            workers.setdefault(model, []).append(visitor.worker.name)
    for member in members:
        for model in _listed(member.state):
            servers.setdefault(model, []).append(member.backend.name)
    return [
        {"id": model, "workers": sorted(workers.get(model, ())), "servers": sorted(servers.get(model, ()))}
        for model in sorted(workers.keys() | servers.keys())
    ]


def _listed(state: BackendState) -> set[str]:
    return {model.name for model in state.resident} | {model.name for model in state.on_disk}


def _build(worker: Worker) -> tuple[tuple[str, str], ...]:
    return (("build_sha", worker.build_sha), ("build_date", worker.build_date))


def _host(worker: Worker) -> dict[str, str]:
    host = worker.offer.host
    said = {field: getattr(host, field) for field in host.__struct_fields__} | {"worker_version": worker.version}
    return {name: value for name, value in said.items() if value}


def _instant(at_s: float) -> str:
    """RFC 3339, with microseconds."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
