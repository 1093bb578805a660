"""Control killed with SIGKILL at any moment: the processes go on, numbers grow, nothing is told wrongly."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetproxy.settings import Auth, Poll, Server, Settings
from fleetproxy.testing.fakes import Fake, Profile
from tests.control.running import ADMIN, Neighbour, browser, prepare, short_folder, until

ROUNDS = 4


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def start(folder: Path) -> asyncio.subprocess.Process:
    (folder / "control.sock").unlink(missing_ok=True)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fleetproxy.process", "control", "0", str(folder), stdin=subprocess.PIPE
    )


async def ended(child: asyncio.subprocess.Process) -> int:
    code = await child.wait()
    child._transport.close()  # type: ignore[attr-defined]
    return code


@pytest.mark.timeout(120)
async def test_control_killed_again_and_again_loses_nothing(folder: Path) -> None:
    rng = random.Random(7)
    async with Fake(Profile(kind="openai", models=("qwen:7b", "tiny:1b"))) as vllm, Fake() as ollama:
        settings = Settings(
            servers=(Server(name="vllm", url=vllm.url, kind="openai"), Server(name="ollama", url=ollama.url)),
            auth=Auth(admin_key="admin-key-of-the-tests"),
            poll=Poll(interval_s=0.05),
        )
        prepare(folder, settings)
        proxy = Neighbour(folder, "proxy-0")
        for _ in range(ROUNDS):
            seen = len(proxy.snapshots)
            child = await start(folder)
            await until(lambda seen=seen: len(proxy.snapshots) > seen or rng.random() < 0.002, 60)
            await asyncio.sleep(rng.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            assert await ended(child) == -signal.SIGKILL
        child = await start(folder)
        try:
            await until((folder / "control.sock").exists, 60)
            events = await told(folder, 2)
        finally:
            child.send_signal(signal.SIGTERM)
            assert await ended(child) == 0
        await proxy.leave()
    versions = [snapshot.version for snapshot in proxy.snapshots]
    assert versions == sorted(set(versions)), "versions only grow"
    routable = [{name for name in snapshot.table.models if "qwen" in name} for snapshot in proxy.snapshots]
    assert all(routable), "no snapshot ever sent the servers away"
    loaded = [event["modelName"] for event in events if event["eventType"] == "loaded"]
    assert set(loaded) == {"qwen:7b", "tiny:1b"}
    assert len(loaded) <= 2 + ROUNDS, "killed between row and state, a row may come twice; never more"
    assert not [event for event in events if event["eventType"] == "unloaded"]
    assert list((folder / "data" / "spool").iterdir()) == []


async def told(folder: Path, count: int) -> list[dict[str, Any]]:
    """Events of models, once there are so many."""
    async with browser(folder, **ADMIN) as client, asyncio.timeout(20):
        while True:
            events = json.loads((await client.get("/api/events")).content)
            if len(events) >= count:
                return list(events)
            await asyncio.sleep(0.05)
