"""The metrics agent: what it reads of a machine, how it tells it, and the fleet that reads it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fleetproxy.cli import BAD_CONFIG, worker
from fleetproxy.core.machine import cause, read
from fleetproxy.settings import Auth, Poll, Server, Settings
from fleetproxy.worker.metrics import cards
from fleetproxy.worker.metrics.cards import AGAIN_S, Cards
from fleetproxy.worker.metrics.machine import Machine
from fleetproxy.worker.metrics.page import Page
from fleetproxy.worker.metrics.reading import GIB, MIB, Card, Reading, as_json, as_prometheus
from tests.control.running import ADMIN, control, short_folder

BOOTED_S = 1_799_900_000.0
NOW_S = BOOTED_S + 1000.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's /proc, /sys and log of boots."""

    def put(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put("proc/stat", f"cpu 10 0 10 70 10 0 0 0 0 0\ncpu0 1\nbtime {int(BOOTED_S)}\n")
    put("proc/meminfo", "MemTotal: 1024000 kB\nMemAvailable: 512000 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\nX\n")
    put("sys/class/thermal/thermal_zone0/temp", "45000\n")
    put("sys/class/thermal/thermal_zone0/type", "acpitz\n")
    put("sys/class/hwmon/hwmon0/name", "k10temp\n")
    put("sys/class/hwmon/hwmon0/temp1_input", "61500\n")
    put("sys/class/hwmon/hwmon0/temp1_label", "Tctl\n")
    put("sys/class/hwmon/hwmon1/name", "nvme\n")
    put("sys/class/hwmon/hwmon1/temp1_input", "999000\n")
    put("sys/class/drm/card0/device/mem_info_vram_total", f"{16 * GIB}\n")
    put("sys/class/drm/card0/device/mem_info_vram_used", f"{4 * GIB}\n")
    put("sys/class/drm/card0/device/gpu_busy_percent", "37\n")
    put("sys/class/drm/card0/device/hwmon/hwmon2/temp1_input", "71000\n")
    put("sys/class/drm/card0/device/hwmon/hwmon2/power1_average", "120500000\n")
    put("sys/class/drm/card1/device/vendor", "0x8086\n")
    log = tmp_path / "var" / "log"
    log.mkdir(parents=True)
    entry = struct.Struct("<hxxi32s4s32s256shhiii16s20s")
    records = [(2, b"reboot", 50), (1, b"shutdown", 90), (2, b"reboot", 100), (2, b"reboot", int(BOOTED_S) - 20)]
    (log / "wtmp").write_bytes(
        b"".join(
            entry.pack(kind, 0, b"~", b"~~", user, b"", 0, 0, 0, at_s, 0, b"", b"") for kind, user, at_s in records
        )
    )
    return tmp_path


def test_a_machine_is_read_whole(root: Path) -> None:
    machine = Machine(Cards(root), root, lambda: NOW_S)
    (root / "proc/stat").write_text(f"cpu 40 0 20 80 10 0 0 0 0 0\nbtime {int(BOOTED_S) + 1}\n")
    seen = machine.look()
    assert seen.cpu_percent == pytest.approx(80.0)
    assert (seen.memory_total_bytes, seen.memory_available_bytes) == (1_048_576_000, 524_288_000)
    assert (seen.swap_total_bytes, seen.swap_free_bytes) == (2 * MIB, MIB)
    assert seen.sensors == {"thermal_zone0": 45.0, "k10temp_tctl": 61.5}
    assert seen.cpu_temp_c == 61.5
    assert seen.cards == (
        Card(
            index=0,
            name="AMD",
            percent=37.0,
            temp_c=71.0,
            memory_total_bytes=16 * GIB,
            memory_used_bytes=4 * GIB,
            power_w=120.5,
        ),
    )
    # The log's word for the present boot; the one before it nobody had asked for.
    assert seen.boots == (BOOTED_S - 20, 100.0, 50.0)
    assert seen.unexpected == {BOOTED_S - 20}
    assert seen.uptime_s == 999.0
    assert seen.disk_total_bytes
    assert machine.look().boots == seen.boots


def test_a_machine_that_tells_nothing_is_no_trouble(tmp_path: Path) -> None:
    seen = Machine(Cards(tmp_path), tmp_path / "nowhere", lambda: NOW_S).look()
    assert (seen.cpu_percent, seen.booted_s, seen.boots, seen.sensors, seen.disk_total_bytes) == (
        None,
        None,
        (),
        {},
        None,
    )
    assert read(as_json(seen)) is not None
    list(text_string_to_metric_families(as_prometheus(seen)))


def test_the_fleet_reads_what_the_agent_tells(root: Path) -> None:
    report = read(as_json(Machine(Cards(root), root, lambda: NOW_S).look()))
    assert report is not None
    machine = report.machine
    assert (machine.mem_total_mb, machine.mem_used_mb, machine.swap_used_mb) == (1000.0, 500.0, 1.0)
    assert (machine.cpu_temp_c, machine.gpu_temp_c, machine.gpu_percent) == (61.5, 71.0, 37.0)
    assert (machine.gpu_mem_total_mb, machine.gpu_mem_used_mb) == (16384.0, 4096.0)
    assert machine.uptime_s == 1000.0
    assert machine.recent_boots[0] == "2027-01-14T04:13:00Z"
    assert cause(report, machine.recent_boots[0]) is None


numbers = st.none() | st.floats(0, 1e12, allow_nan=False)
sizes = st.none() | st.integers(0, 10**15)
readings = st.builds(
    Reading,
    hostname=st.text(max_size=10),
    at_s=st.floats(0, 4e9),
    booted_s=st.none() | st.floats(0, 4e9),
    cpu_percent=numbers,
    load=st.none() | st.tuples(*[st.floats(0, 100)] * 3),
    memory_total_bytes=sizes,
    memory_available_bytes=sizes,
    sensors=st.dictionaries(st.text(max_size=5), st.floats(-40, 150), max_size=3),
    cards=st.lists(
        st.builds(Card, index=st.integers(0, 9), name=st.text(max_size=9), percent=numbers, memory_used_bytes=sizes),
        max_size=2,
        unique_by=lambda card: card.index,
    ).map(tuple),
)


@given(readings)
def test_both_ways_of_telling_can_be_read_whatever_is_told(reading: Reading) -> None:
    report = read(as_json(reading))
    assert report is not None
    families = {family.name: family for family in text_string_to_metric_families(as_prometheus(reading))}
    assert all(name.startswith("fleetproxy_machine_") for name in families)
    assert families["fleetproxy_machine_info"].samples[0].labels["hostname"] == reading.hostname
    assert ("fleetproxy_machine_boot_time_seconds" in families) == (reading.booted_s is not None)


# --- cards -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A PATH with an nvidia-smi that is this shell script, and no NVML."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def write(script: str) -> None:
        tool = folder / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    return write


def test_nvidia_cards_by_the_drivers_tool(tools: Callable[[str], None], tmp_path: Path) -> None:
    tools(
        "printf '0, NVIDIA RTX 4090, 55, 66, 24564, 12000, 300.5\\n'\n"
        "printf '1, Tesla, [N/A], 40, 100, 50, [N/A]\\nrubbish\\n'"
    )
    found = Cards(tmp_path)()
    assert [(card.index, card.name, card.percent, card.temp_c, card.power_w) for card in found] == [
        (0, "NVIDIA RTX 4090", 55.0, 66.0, 300.5),
        (1, "Tesla", None, 40.0, None),
    ]
    assert found[0].memory_total_bytes == 24564 * MIB


def test_a_tool_that_fails_is_left_alone_for_a_while(tools: Callable[[str], None], tmp_path: Path) -> None:
    tools(f"echo x >> {tmp_path}/asked; exit 9")
    now = [0.0]
    found = Cards(tmp_path, lambda: now[0])
    for now_s in (0.0, 1.0, AGAIN_S, AGAIN_S + 1):
        now[0] = now_s
        assert found() == ()
    assert (tmp_path / "asked").read_text().count("x") == 2


def test_a_tool_that_hangs_is_killed(
    tools: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "TOOL_S", 0.05)
    tools("exec sleep 60")
    assert Cards(tmp_path)() == ()


def test_nvidia_cards_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse(handle: int) -> int:
        raise NVMLError

    nvml: Any = types.ModuleType("pynvml")
    nvml.NVMLError, nvml.NVML_TEMPERATURE_GPU = NVMLError, 0
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetCount = lambda: 1
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetName = lambda handle: b"A100"
    nvml.nvmlDeviceGetUtilizationRates = lambda handle: types.SimpleNamespace(gpu=12, memory=3)
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(total=80 * GIB, used=GIB, free=79 * GIB)
    nvml.nvmlDeviceGetPowerUsage = refuse
    nvml.nvmlDeviceGetTemperature = lambda handle, which: 33
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert Cards(tmp_path)() == (
        Card(
            index=0,
            name="A100",
            percent=12.0,
            temp_c=33.0,
            memory_total_bytes=80 * GIB,
            memory_used_bytes=GIB,
        ),
    )


# --- the page --------------------------------------------------------------------------------------------------------


class Looks:
    def __init__(self) -> None:
        self.count = 0
        self.now_s = 0.0

    def look(self) -> Reading:
        self.count += 1
        return Reading(hostname="gpu1", at_s=NOW_S, booted_s=BOOTED_S)


def caller(page: Page, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=page), base_url="http://agent", headers=headers)


async def test_it_speaks_the_words_of_whoever_asks() -> None:
    looks = Looks()
    page = Page(looks.look, None, lambda: looks.now_s)
    async with caller(page) as client:
        for accept in ("*/*", "application/json", "text/html,application/xhtml+xml,*/*;q=0.8"):
            answer = await client.get("/metrics", headers={"accept": accept})
            assert answer.json()["hostname"] == "gpu1", accept
        prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        for asked in ({"accept": prometheus}, {"accept": "text/plain"}):
            answer = await client.get("/metrics", headers=asked)
            assert "fleetproxy_machine_info" in answer.text
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "fleetproxy_machine" in (await client.get("/metrics?format=prometheus")).text
        assert looks.count == 1  # one look serves them all
        looks.now_s = 5.0
        await asyncio.gather(*(client.get("/metrics") for _ in range(5)))
        assert looks.count == 2
        assert (await client.head("/metrics")).content == b""
        assert (await client.post("/metrics")).status_code == 405
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_with_a_key_nobody_looks_without_it() -> None:
    page = Page(Looks().look, "k" * 20)
    async with caller(page) as client:
        assert (await client.get("/healthz")).status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"x-api-key": ""},
            {"authorization": "Basic " + "k" * 20},
        ):
            assert (await client.get("/metrics", headers=headers)).status_code == 401, headers
        for headers in ({"authorization": "bearer " + "k" * 20}, {"x-api-key": "k" * 20}):
            assert (await client.get("/metrics", headers=headers)).status_code == 200, headers


# --- the command, and the fleet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (["--listen", "0.0.0.0:9100"], {}, "AGENT_KEY"),
        (["--listen", "[::]:9100"], {}, "AGENT_KEY"),
        (["--listen", "0.0.0.0:9100"], {"AGENT_KEY": "short"}, "16 characters"),
        (["--listen", "nonsense"], {}, "host:port"),
        ([], {"AGENT_LISTEN": "0.0.0.0:1"}, "AGENT_KEY"),
        (["--key-file", "/nowhere"], {}, "No such file"),
        (["--log-level", "loud"], {}, "none of debug"),
    ],
)
def test_what_cannot_be_is_said_before_anything_listens(
    words: list[str],
    environment: dict[str, str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert worker.run(["metrics", *words]) == BAD_CONFIG
    assert says in capsys.readouterr().err


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[int]:
    """A real agent with a key, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    key = tmp_path / "key"
    key.write_text("key-of-all-the-agents\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fleetproxy", "worker", "metrics",
        "--listen", f"127.0.0.1:{port}", "--key-file", str(key),
        env={**os.environ, "PATH": "/usr/bin:/bin"}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(20):
        assert b"/metrics" in await process.stderr.readline()
    yield port
    process.terminate()
    async with asyncio.timeout(20):
        rest, _ = await asyncio.gather(process.stderr.read(), process.wait())
    assert (process.returncode, rest) == (0, b"")


async def test_the_poller_reads_a_real_agent_and_the_dashboard_shows_its_machine(agent: int) -> None:
    settings = Settings(
        auth=Auth(admin_key="admin-key-of-the-tests"),
        poll=Poll(interval_s=0.1, agent_key="key-of-all-the-agents"),
        servers=(Server(name="box", url="http://127.0.0.1:9", metrics_port=agent),),
    )
    async with control(short_folder(), settings) as running, running.browser(**ADMIN) as admin, asyncio.timeout(20):
        machine = None
        while machine is None:
            await asyncio.sleep(0.02)
            machine = (await admin.get("/api/servers")).json()[0]["systemMetrics"]
        assert machine["memTotalMb"] > 100
        assert machine["uptimeSeconds"] > 0
        assert machine["recentBoots"]
        rows = []
        while not rows:
            rows = (await admin.get("/api/system-metrics?serverId=1")).json()
        assert rows[0]["memTotalMb"] == machine["memTotalMb"]
    async with httpx.AsyncClient() as stranger:
        assert (await stranger.get(f"http://127.0.0.1:{agent}/metrics")).status_code == 401
