"""The control process as a whole: what it publishes, answers, remembers, and how it leaves."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleetproxy import __version__
from fleetproxy.control.main import main
from fleetproxy.core.worker import Offer, Worker
from fleetproxy.link.board import WORKER_COLUMNS, Board
from fleetproxy.link.messages import Count, Observe, Pulse, WorkersPulse, WorkersSeen
from fleetproxy.process import Process
from fleetproxy.settings import Auth, Dashboard, Metrics, Poll, Server, Settings
from fleetproxy.testing.fakes import Fake, Fault, Profile
from tests.control.running import ADMIN, Neighbour, control, prepare, short_folder, until


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def fleet() -> AsyncIterator[dict[str, Fake]]:
    profiles = {
        "gpu": Profile(models=("llama3.2:3b",)),
        "cpu": Profile(models=("nomic-embed-text", "llama3.2:3b"), seed=1),
        "vllm": Profile(kind="openai", models=("qwen2.5:7b",)),
    }
    fakes = {name: Fake(profile) for name, profile in profiles.items()}
    for fake in fakes.values():
        await fake.listen()
    yield fakes
    for fake in fakes.values():
        await fake.close()
        assert list(fake.crashes) == []


def settings_for(fleet: dict[str, Fake], *names: str, **sections: Any) -> Settings:
    servers = tuple(
        Server(name=name, url=fleet[name].url, kind="openai" if name == "vllm" else "ollama", vram_gb=24)
        for name in (names or fleet)
    )
    usual = {"auth": Auth(admin_key="admin-key-of-the-tests"), "poll": Poll(interval_s=1000.0, timeout_s=2.0)}
    return Settings(servers=servers, **{**usual, **sections})


async def test_the_first_snapshot_knows_the_servers_and_reaches_every_process(
    folder: Path, fleet: dict[str, Fake]
) -> None:
    async with control(folder, settings_for(fleet)) as running:
        assert running.usable() == ["gpu", "cpu", "vllm"]
        proxy, hub = Neighbour(folder, "proxy-0"), Neighbour(folder, "hub")
        await until(lambda: proxy.version and hub.version)
        assert proxy.snapshots[0] == running.snapshot()
        names = {entry["name"] for entry in json.loads(proxy.snapshots[0].bodies["/api/tags"])["models"]}
        assert "llama3.2:3b" in names
        await proxy.leave()
        await hub.leave()
    assert not (folder / "link.sock").exists()


async def test_fleetproxy_tells_once_that_it_runs_another_version(folder: Path, fleet: dict[str, Fake]) -> None:
    (folder / "data").mkdir()
    (folder / "data/fleetproxy.version").write_text("0.0.1")
    for _ in range(2):
        async with control(folder, settings_for(fleet, "gpu")) as running, running.browser(**ADMIN) as browser:
            told = await listed(browser, "/api/server-events", 1)
            assert [(one["serverId"], one["serverName"], one["eventType"]) for one in told] == [
                (0, "fleetproxy", "deploy")
            ]
            assert told[0]["detail"] == f"0.0.1 -> {__version__}"


async def test_the_dashboard_api_shows_the_fleet(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet)) as running, running.browser(**ADMIN) as browser:
        answer = await browser.get("/api/servers")
        assert answer.status_code == 200
        shown = {server["name"]: server for server in answer.json()}
        assert list(shown) == ["gpu", "cpu", "vllm"]
        gpu, vllm = shown["gpu"], shown["vllm"]
        assert {
            "id", "name", "host", "totalRamGb", "isOnline", "ollamaVersion", "loadedModels", "availableModels",
            "totalVramUsed", "polledAt", "modelLoadTimes", "systemMetrics", "backendType", "isDisabled",
        } <= gpu.keys()  # fmt: skip
        assert (gpu["isOnline"], gpu["totalRamGb"], gpu["backendType"], gpu["isDisabled"]) == (
            True,
            24,
            "ollama",
            False,
        )
        assert gpu["host"] == fleet["gpu"].url.removeprefix("http://")
        assert gpu["availableModels"][0]["details"]["quantization_level"]
        assert gpu["polledAt"].endswith("Z")
        assert (vllm["backendType"], vllm["ollamaVersion"]) == ("vllm", None)
        assert vllm["loadedModels"][0]["details"]["format"] == "vllm"
        assert "admin-key" not in answer.text


async def test_polling_on_demand_sees_what_changed(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")) as running, running.browser(**ADMIN) as browser:
        before = running.snapshot()
        await _load(fleet["gpu"], "llama3.2:3b")
        answer = await browser.post("/api/poll")
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        server = (await browser.get("/api/servers")).json()[0]
        assert [model["name"] for model in server["loadedModels"]] == ["llama3.2:3b"]
        assert list(server["modelLoadTimes"]) == ["llama3.2:3b"]
        await until(lambda: running.snapshot().version > before.version)
        assert await events(browser, 1) == [("llama3.2:3b", "loaded")]


async def test_polling_on_demand_is_for_every_user_a_few_times_a_minute(
    folder: Path, fleet: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetproxy.control.api.fleet.POLLS_PER_MINUTE", 2)
    async with control(folder, settings_for(fleet, "gpu")) as running, running.browser(**ADMIN) as admin:
        for name in ("ann", "bob"):
            person = {"username": name, "password": "correct horse 7"}
            assert (await admin.post("/api/users", json=person)).status_code == 201
            async with running.browser() as browser:
                assert (await browser.post("/api/auth/login", json=person)).status_code == 200
                answers = [await browser.post("/api/poll") for _ in range(3)]
                assert [answer.status_code for answer in answers] == [200, 200, 429]
                assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert {(await admin.post("/api/poll")).status_code for _ in range(4)} == {200}


async def test_strangers_learn_nothing_but_health(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")) as running, running.browser() as stranger:
        assert (await stranger.get("/api/servers")).status_code == 401
        assert (await stranger.post("/api/poll")).status_code == 401
        for path in ("/healthz", "/livez", "/health"):
            answer = await stranger.get(path)
            assert (answer.status_code, answer.content) == (200, b'{"status":"ok"}')
        wrong = await stranger.get("/api/servers", headers={"authorization": "Bearer wrong"})
        assert (wrong.status_code, set(wrong.json())) == (401, {"error"})


async def test_every_answer_has_one_shape_and_safe_headers(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")) as running, running.browser(**ADMIN) as browser:
        missing = await browser.get("/api/no-such-thing")
        refused = await browser.put("/api/poll")
        broken = await browser.post("/api/auth/login", content=b"{", headers={"content-type": "application/json"})
        assert (missing.status_code, refused.status_code, broken.status_code) == (404, 405, 400)
        assert "POST" in refused.headers["allow"]
        for answer in (missing, refused, broken, await browser.get("/api/servers"), await browser.get("/metrics")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["referrer-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        for answer in (missing, refused, broken):
            assert set(answer.json()) == {"error"}


async def test_readiness_says_what_is_missing(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")) as running, running.browser() as browser:
        assert (await browser.get("/readyz")).json() == {"status": "not_ready", "failed": ["hub"]}
        hub = Neighbour(folder, "hub")
        await until(lambda: hub.version)
        assert (await browser.get("/readyz")).status_code == 200
        running.reload(Settings())
        await until(lambda: running.usable() == [])
        answer = await browser.get("/readyz")
        assert (answer.status_code, answer.json()["failed"]) == (503, ["backends"])
        await hub.leave()


async def test_a_server_seen_failing_is_looked_at_at_once(folder: Path, fleet: dict[str, Fake]) -> None:
    settings = settings_for(fleet, "gpu", poll=Poll(interval_s=1000.0, offline_threshold=1, timeout_s=2.0))
    async with control(folder, settings) as running:
        proxy = Neighbour(folder, "proxy-0")
        await until(lambda: proxy.version)
        await fleet["gpu"].close()
        proxy.link.send(Observe("gpu", "connect_failed"))
        await until(lambda: running.usable() == [])
        await fleet["gpu"].listen(port=int(fleet["gpu"].url.rpartition(":")[2]))
        await proxy.leave()


async def test_a_reload_adds_changes_and_removes_servers(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu", "cpu")) as running, running.browser(**ADMIN) as browser:
        ids = {server["name"]: server["id"] for server in (await browser.get("/api/servers")).json()}
        polls = len(fleet["cpu"].journal.rows)
        running.reload(settings_for(fleet, "cpu", "vllm"))
        await until(lambda: running.usable() == ["cpu", "vllm"])
        after = {server["name"]: server["id"] for server in (await browser.get("/api/servers")).json()}
        assert after["cpu"] == ids["cpu"]
        assert after["vllm"] not in ids.values()
        assert len(fleet["cpu"].journal.rows) == polls, "an unchanged server is not asked again"


async def test_a_dead_slow_or_lying_server_delays_nobody(folder: Path, fleet: dict[str, Fake]) -> None:
    fleet["cpu"].faults.add(Fault(name="hang", next=100))
    fleet["vllm"].faults.add(Fault(name="garbage", next=100))
    async with control(folder, settings_for(fleet)) as running, running.browser(**ADMIN) as browser:
        assert running.usable() == ["gpu"]
        shown = {server["name"]: server for server in (await browser.get("/api/servers")).json()}
        assert "not HTTP" in shown["vllm"]["lastError"]
        assert shown["cpu"]["polledAt"] is None, "its first poll still hangs"


async def test_control_that_was_killed_goes_on_where_it_was(folder: Path, fleet: dict[str, Fake]) -> None:
    await _load(fleet["gpu"], "llama3.2:3b")
    proxy = Neighbour(folder, "proxy-0")
    async with control(folder, settings_for(fleet)) as running:
        await until(lambda: proxy.version)
        first = running.snapshot()
    fleet["cpu"].faults.add(Fault(name="hang", next=100))
    async with control(folder, settings_for(fleet)) as running, running.browser(**ADMIN) as browser:
        await until(lambda: proxy.version > first.version)
        fresh = proxy.snapshots[-1]
        assert fresh.table == first.table, "nothing is forgotten, not even of a server that hangs now"
        assert fresh.bodies == first.bodies
        assert sorted(await events(browser, 2)) == [("llama3.2:3b", "loaded"), ("qwen2.5:7b", "loaded")]
    await proxy.leave()


async def test_rows_on_disk_are_loaded_before_control_leaves(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "vllm")):
        pass
    assert list((folder / "data" / "spool").iterdir()) == []


async def test_workers_are_part_of_the_snapshot_until_their_hub_is_gone(
    folder: Path, fleet: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetproxy.control.main.HUB_GRACE_S", 0.05)
    worker = Worker(
        id="w1", name="laptop", column=WORKER_COLUMNS.start, offer=Offer(models=("tiny:1b",), max_concurrency=2)
    )
    async with control(folder, settings_for(fleet, "gpu")) as running:
        hub = Neighbour(folder, "hub")
        hub.link.send(WorkersSeen((worker,), whole=True))
        await until(lambda: running.usable() == ["gpu", "laptop"])
        await hub.leave()
        await until(lambda: running.usable() == ["gpu"])


async def test_a_restarted_control_keeps_the_workers_of_the_last_snapshot(folder: Path, fleet: dict[str, Fake]) -> None:
    worker = Worker(
        id="w1", name="laptop", column=WORKER_COLUMNS.start, offer=Offer(models=("tiny:1b",), max_concurrency=2)
    )
    hub = Neighbour(folder, "hub")
    hub.link.send(WorkersSeen((worker,), whole=True))
    async with control(folder, settings_for(fleet, "gpu")) as running:
        await until(lambda: running.usable() == ["gpu", "laptop"])
        seen = len(hub.snapshots)
    hub.link.send(WorkersSeen((worker,), whole=True))
    async with control(folder, settings_for(fleet, "gpu")):
        await until(lambda: len(hub.snapshots) > seen)
        assert all("tiny:1b" in snapshot.table.models for snapshot in hub.snapshots[seen:])
    await hub.leave()


async def test_a_removed_server_with_a_running_request_drains(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu", "cpu")) as running, running.browser(**ADMIN) as browser:
        column = running.snapshot().table.backends[0].backend.column
        board = Board(folder / "board", row=1)
        board.add(column, 1)
        running.reload(settings_for(fleet, "cpu"))
        await until(lambda: running.usable() == ["cpu"])
        shown = {server["name"]: server for server in (await browser.get("/api/servers")).json()}
        assert (shown["gpu"]["isLeaving"], shown["gpu"]["inFlight"]) == (True, 1)
        board.add(column, -1)
        await until(lambda: len(running.snapshot().table.backends) == 1)
        board.close()


async def test_its_sockets_and_files_are_for_their_owner_alone(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")):
        for name in ("link.sock", "snapshot"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_addresses_of_its_own_serve_dashboard_and_metrics(folder: Path, fleet: dict[str, Fake]) -> None:
    dashboard, metrics = free_port(), free_port()
    settings = settings_for(
        fleet,
        "gpu",
        dashboard=Dashboard(listen=f"127.0.0.1:{dashboard}"),
        metrics=Metrics(listen=f"127.0.0.1:{metrics}"),
    )
    async with control(folder, settings), httpx.AsyncClient(trust_env=False, timeout=20) as client:
        own = f"http://127.0.0.1:{dashboard}"
        await answering(client, f"{own}/healthz")
        assert (await client.get(f"{own}/api/servers", headers=ADMIN)).status_code == 200
        assert (await client.get(f"{own}/api/servers")).status_code == 401
        alone = f"http://127.0.0.1:{metrics}"
        await answering(client, f"{alone}/metrics")
        assert "fleetproxy_backend_up" in (await client.get(f"{alone}/metrics")).text
        assert (await client.get(f"{alone}/api/servers", headers=ADMIN)).status_code == 404


async def test_an_address_that_is_taken_does_not_stop_the_rest_and_is_tried_again(
    folder: Path, fleet: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetproxy.control.web.LISTEN_AGAIN_S", 0.02)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = settings_for(fleet, "gpu", metrics=Metrics(listen=f"127.0.0.1:{port}"))
        async with control(folder, settings) as running, httpx.AsyncClient(trust_env=False) as client:
            assert running.usable() == ["gpu"]
            taken.close()
            await answering(client, f"http://127.0.0.1:{port}/metrics")


async def test_what_processes_and_workers_report_reaches_metrics(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")) as running, running.browser() as browser:
        hub = Neighbour(folder, "hub")
        hub.link.send(Count({"retries:connect_failed": 3}, {"hub_workers": 2.0}))
        hub.link.send(WorkersPulse((Pulse("llm", "w1", 1.0),)))
        async with asyncio.timeout(10):
            while "fleetproxy_workers_connected 2.0" not in (await browser.get("/metrics")).text:
                await asyncio.sleep(0.1)
        await hub.leave()


async def test_keys_made_in_the_dashboard_reach_the_data_plane(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")) as running, running.browser(**ADMIN) as browser:
        known = len(running.snapshot().principals)
        made = await browser.post("/api/users", json={"username": "ann", "password": "correct horse 7 battery"})
        assert made.status_code == 201, made.text
        key = await browser.post(f"/api/users/{made.json()['id']}/api-key")
        assert key.status_code == 200, key.text
        await until(lambda: len(running.snapshot().principals) == known + 1)


async def test_told_to_leave_at_once_it_leaves_at_once(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")) as running:
        running.process.leave()


async def test_a_part_that_cannot_run_ends_control_for_the_supervisor_to_start_a_new_one(
    folder: Path, fleet: dict[str, Fake]
) -> None:
    (folder / "link.sock").mkdir()
    prepare(folder, settings_for(fleet, "gpu"))
    with pytest.raises(OSError, match=r"link\.sock"):
        await main(Process("control", 0, folder))


async def test_a_damaged_state_folder_costs_memory_of_the_past_alone(folder: Path, fleet: dict[str, Fake]) -> None:
    async with control(folder, settings_for(fleet, "gpu")):
        pass
    for path in (folder / "data" / "servers").iterdir():
        path.write_bytes(b"{")
    for name in ("columns", "snapshot"):
        (folder / name).write_bytes(b"\xc1")
    (folder / "data" / "snapshot.version").write_text("?")
    async with control(folder, settings_for(fleet, "gpu")) as running:
        assert running.usable() == ["gpu"]


async def answering(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                assert (await client.get(url)).status_code == 200
                return
            except httpx.TransportError:
                await asyncio.sleep(0.02)


async def listed(browser: httpx.AsyncClient, path: str, count: int) -> list[dict[str, Any]]:
    """A list of the API, once the store is open and there is so much in it."""
    async with asyncio.timeout(10):
        while (answer := await browser.get(path)).status_code != 200 or len(answer.json()) < count:
            await asyncio.sleep(0.05)
    told: list[dict[str, Any]] = answer.json()
    return told


async def events(browser: httpx.AsyncClient, count: int) -> list[tuple[str, str]]:
    """What the dashboard tells of models, once there is so much to tell."""
    told = await listed(browser, "/api/events", count)
    return [(event["modelName"], event["eventType"]) for event in told]


async def _load(fake: Fake, model: str) -> None:
    """Ask a server to hold a model in memory."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", int(fake.url.rpartition(":")[2]))
    body = json.dumps({"model": model, "keep_alive": -1, "stream": False}).encode()
    writer.write(b"POST /api/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await _reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
