"""Metrics agents: asked, told of, never in the way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fleetproxy.control.agents import LEFT_ALONE, SHOWN_S, Agents
from fleetproxy.control.analytics.rows import Row, ServerEvent, SystemMetrics
from fleetproxy.control.fleet import Member
from fleetproxy.core.backend import BackendState
from fleetproxy.errors import ConnectFailed
from tests.control.scripted import Answer, Servers, backend


def said(**changes: Any) -> Answer:
    usual = {"uptime_seconds": 100, "memory": {"total_mb": 64000.4}, "recent_boots": ["one"], "load_avg": [1, 2, 3]}
    return Answer(200, json.dumps(usual | changes).encode())


class Site:
    """Machines, their agents, and what was written down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 1_800_000_000.0
        self.servers = Servers()
        self.members: list[Member] = []
        self.rows: list[Row] = []
        self.agents = self.begin()

    def begin(self) -> Agents:
        return Agents(
            self.servers, lambda: self.members, self, self.path, interval_s=lambda: 0.001, wall=lambda: self.now_s
        )

    def put(self, *rows: Row) -> None:
        self.rows.extend(rows)

    def add(self, name: str, answer: Any, port: int | None = 9200, number: int = 1) -> None:
        self.members.append(
            Member(
                backend=backend(name, id=number, host="10.0.0.1", port=11434, api_key="secret", scheme="https"),
                state=BackendState(),
                origin="file",
                metrics_port=port,
                loaded_at_s={},
                in_flight=0,
                waiting=0,
                leaving=False,
            )
        )
        self.servers.servers[f"{name} (agent)"] = {"/metrics": answer}

    def say(self, name: str, answer: Any) -> None:
        self.servers.servers[f"{name} (agent)"] = {"/metrics": answer}

    def asked(self, name: str) -> int:
        return len(self.servers.paths(f"{name} (agent)"))

    def reboots(self) -> list[ServerEvent]:
        return [row for row in self.rows if isinstance(row, ServerEvent)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "boots.json")


async def test_what_an_agent_says_is_written_down_and_shown(site: Site) -> None:
    site.add("gpu", said())
    await site.agents.round()
    (row,) = site.rows
    assert isinstance(row, SystemMetrics)
    assert (row.server, row.server_id, row.mem_total_mb, row.polled_at_us) == ("gpu", 1, 64000.4, 1_800_000_000_000_000)
    shown = site.agents.shown()["gpu"]
    assert (shown["memTotalMb"], shown["loadAvg"], shown["cpuTempC"]) == (64000, [1.0, 2.0, 3.0], None)
    assert set(shown) == {
        "cpuTempC", "gpuTempC", "cpuPercent", "gpuPercent", "memTotalMb", "memUsedMb", "memAvailableMb", "swapTotalMb",
        "swapUsedMb", "loadAvg", "uptimeSeconds", "diskTotalGb", "diskUsedGb", "recentBoots", "gpuMemTotalMb",
        "gpuMemUsedMb",
    }  # fmt: skip


async def test_words_that_are_old_are_not_shown(site: Site) -> None:
    site.add("gpu", said())
    await site.agents.round()
    site.now_s += SHOWN_S + 1
    assert site.agents.shown() == {}


async def test_a_reboot_is_told_once_also_over_restarts_of_ours(site: Site) -> None:
    site.add("gpu", said())
    await site.agents.round()
    site.agents = site.begin()
    await site.agents.round()
    assert site.reboots() == []
    causes = {"two": {"cause": "power_button", "detail": "Power key pressed"}}
    site.say("gpu", said(recent_boots=["two", "one"], reboot_causes=causes, uptime_seconds=40))
    site.agents = site.begin()
    for _ in range(3):
        await site.agents.round()
    (reboot,) = site.reboots()
    assert (reboot.event, reboot.detail) == ("reboot", "Power key pressed")
    assert reboot.occurred_at_us == int((site.now_s - 40) * 1e6)


async def test_the_agent_is_asked_without_our_key_on_its_own_port(site: Site) -> None:
    seen = []

    class Listening(Servers):
        async def get(self, backend: Any, path: str, timeout_s: float) -> Answer:
            seen.append(backend)
            return await super().get(backend, path, timeout_s)

    site.servers = Listening()
    site.agents = site.begin()
    site.add("gpu", said())
    site.add("usual", said(), port=None)
    await site.agents.round()
    assert [(agent.host, agent.port, agent.scheme, agent.api_key) for agent in seen] == [
        ("10.0.0.1", 9200, "http", None),
        ("10.0.0.1", 9100, "http", None),
    ]


@pytest.mark.parametrize("answer", [ConnectFailed("refused"), Answer(200, b"node_load1 0.5"), Answer(404)])
async def test_a_machine_without_an_agent_is_tried_now_and_then_unless_it_should_have_one(
    site: Site, answer: Any
) -> None:
    site.add("maybe", answer, port=None)
    site.add("should", answer, port=9200)
    site.add("off", answer, port=0)
    for _ in range(LEFT_ALONE + 2):
        await site.agents.round()
    assert (site.asked("maybe"), site.asked("should"), site.asked("off")) == (2, LEFT_ALONE + 2, 0)
    assert site.rows == []


async def test_a_machine_that_left_is_forgotten(site: Site) -> None:
    site.add("gpu", said())
    await site.agents.round()
    site.members.clear()
    await site.agents.round()
    assert site.servers.forgotten == ["gpu (agent)"]
    assert site.agents.shown() == {}


async def test_a_fault_with_one_agent_leaves_the_others(site: Site) -> None:
    site.add("odd", said())
    site.add("gpu", said(), number=2)
    del site.servers.servers["odd (agent)"]
    await site.agents.round()
    assert [row.server for row in site.rows] == ["gpu"]


async def test_boots_that_cannot_be_kept_cost_nothing_else() -> None:
    site = Site(Path("/proc/none/boots.json"))
    site.add("gpu", said())
    await site.agents.round()
    assert len(site.rows) == 1


async def test_rounds_go_on(site: Site) -> None:
    site.add("gpu", said())
    running = asyncio.create_task(site.agents.run())
    async with asyncio.timeout(5):
        while site.asked("gpu") < 3:
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
