"""Asks the metrics agents on the servers' machines, and tells of reboots.

One round at a time; within a round every machine is asked at once, a few dozen together. A machine whose agent was not
configured is tried at the usual port now and then only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fleetproxy import log
from fleetproxy.control.analytics.rows import ServerEvent, SystemMetrics
from fleetproxy.control.fleet import Member, Pen
from fleetproxy.control.poller import Client
from fleetproxy.core.backend import Backend
from fleetproxy.core.exporter import Ticks, read_node_exporter
from fleetproxy.core.machine import Machine, Report, cause, new_boots, read
from fleetproxy.errors import BackendError

_log = log.get("control.agents")

#: Where an agent listens when nobody says otherwise.
USUAL_PORT = 9100
TIMEOUT_S = 3.0
#: Agents asked at once.
AT_ONCE = 32
#: Rounds in which a machine is left alone after nothing useful answered at the usual port.
LEFT_ALONE = 30
#: What the store keeps of a machine.
_KEPT = frozenset(SystemMetrics.__struct_fields__)
#: What an agent said is shown this long.
SHOWN_S = 300.0


class Agents:
    """The agents of a fleet. `path` keeps the boots known, so that a restart of ours is not mistaken for one of theirs,
    and one of theirs meanwhile is not missed."""

    def __init__(
        self,
        client: Client,
        members: Callable[[], Sequence[Member]],
        journal: Pen,
        path: Path,
        *,
        interval_s: Callable[[], float],
        key: Callable[[], str | None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._members = members
        self._journal = journal
        self._path = path
        self._interval_s = interval_s
        self._key = key
        self._wall = wall
        self._boots: dict[int, tuple[str, ...]] = _known_boots(path)
        self._latest: dict[str, tuple[float, Machine]] = {}
        self._alone: dict[str, int] = {}
        self._ticks: dict[str, Ticks | None] = {}
        self._asked: set[str] = set()

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            await self.round()
            await asyncio.sleep(self._interval_s())

    async def round(self) -> None:
        """Ask every machine once."""
        members = [member for member in self._members() if not member.leaving and member.metrics_port != 0]
        turn = asyncio.Semaphore(AT_ONCE)

        async def ask(member: Member) -> None:
            async with turn:
                try:
                    await self._ask(member)
                except Exception:
                    _log.exception("the metrics agent of %s could not be asked", member.backend.name)

        await asyncio.gather(*(ask(member) for member in members))
        here = {member.backend.name for member in members}
        for name in self._asked - here:
            await self._client.forget(_agent_name(name))
            self._latest.pop(name, None)
            self._alone.pop(name, None)
            self._ticks.pop(name, None)
        self._asked = here

    def shown(self) -> Mapping[str, Mapping[str, Any]]:
        """The latest answers, as the dashboard API shows them, by server."""
        oldest = self._wall() - SHOWN_S
        return {name: shown(machine) for name, (at_s, machine) in self._latest.items() if at_s >= oldest}

    async def _ask(self, member: Member) -> None:
        name = member.backend.name
        if member.metrics_port is None and self._alone.get(name, 0) > 0:
            self._alone[name] -= 1
            return
        report = await self._report(member)
        if report is None:
            self._alone[name] = LEFT_ALONE
            return
        self._take_in(member.backend, report)

    async def _report(self, member: Member) -> Report | None:
        try:
            reply = await self._client.get(_agent(member, self._key()), "/metrics", TIMEOUT_S)
        except BackendError:
            return None
        if not 200 <= reply.status < 300:
            return None
        return read(reply.body) or self._of_exporter(member.backend.name, reply.body)

    def _of_exporter(self, name: str, body: bytes) -> Report | None:
        """Prometheus' node_exporter is found at that port; it counts processor time: two answers tell a share."""
        found = read_node_exporter(body)
        if found is None:
            return None
        report, ticks = found
        before, self._ticks[name] = self._ticks.get(name), ticks
        percent = ticks.percent_since(before) if ticks is not None else None
        return Report(msgspec.structs.replace(report.machine, cpu_percent=percent), report.causes)

    def _take_in(self, backend: Backend, report: Report) -> None:
        now_s, machine = self._wall(), report.machine
        now_us = int(now_s * 1_000_000)
        self._latest[backend.name] = (now_s, machine)
        facts = {name: value for name, value in msgspec.structs.asdict(machine).items() if name in _KEPT}
        self._journal.put(SystemMetrics(polled_at_us=now_us, server_id=backend.id, server=backend.name, **facts))
        fresh = new_boots(self._boots.get(backend.id), machine.recent_boots)
        if fresh:
            booted_s = now_s - (machine.uptime_s or 0.0)
            self._journal.put(
                ServerEvent(
                    occurred_at_us=int(booted_s * 1_000_000),
                    server_id=backend.id,
                    server=backend.name,
                    event="reboot",
                    detail=cause(report, fresh[0]),
                )
            )
        if machine.recent_boots and self._boots.get(backend.id) != machine.recent_boots:
            self._boots[backend.id] = machine.recent_boots
            _keep_boots(self._path, self._boots)


def shown(machine: Machine) -> dict[str, Any]:
    """A machine in the fleet manager's words."""
    return {
        "cpuTempC": _whole(machine.cpu_temp_c),
        "gpuTempC": _whole(machine.gpu_temp_c),
        "cpuPercent": _whole(machine.cpu_percent),
        "gpuPercent": _whole(machine.gpu_percent),
        "memTotalMb": _whole(machine.mem_total_mb),
        "memUsedMb": _whole(machine.mem_used_mb),
        "memAvailableMb": _whole(machine.mem_available_mb),
        "swapTotalMb": _whole(machine.swap_total_mb),
        "swapUsedMb": _whole(machine.swap_used_mb),
        "loadAvg": [machine.load_avg_1, machine.load_avg_5, machine.load_avg_15],
        "uptimeSeconds": _whole(machine.uptime_s),
        "diskTotalGb": _whole(machine.disk_total_gb),
        "diskUsedGb": _whole(machine.disk_used_gb),
        "recentBoots": list(machine.recent_boots),
        # Ours.
        "gpuMemTotalMb": _whole(machine.gpu_mem_total_mb),
        "gpuMemUsedMb": _whole(machine.gpu_mem_used_mb),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _agent_name(name: str) -> str:
    return f"{name} (agent)"


def _agent(member: Member, key: str | None) -> Backend:
    """The agent as a server to be asked: same machine, its own port, plain; with its own key, never the server's."""
    backend = member.backend
    port = USUAL_PORT if member.metrics_port is None else member.metrics_port
    return Backend(
        name=_agent_name(backend.name),
        id=backend.id,
        column=backend.column,
        host=backend.host,
        port=port,
        api_key=key,
    )


def _known_boots(path: Path) -> dict[int, tuple[str, ...]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[int, tuple[str, ...]])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _keep_boots(path: Path, boots: dict[int, tuple[str, ...]]) -> None:
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(msgspec.json.encode(boots))
        temporary.replace(path)
    except OSError as error:
        _log.warning("the boots of the machines could not be kept: %s", error.strerror)
