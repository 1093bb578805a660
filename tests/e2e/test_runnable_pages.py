"""Runnable blocks of the README and of every page but the tutorial, beside a fleet as docs/writing.md has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from fleetproxy.testing.service import ADMIN_KEY, Service
from fleetproxy.testing.spawned import FakeProcess, Spawned, until
from tests.runnable import TOP, Block, blocks, documents, script

WITHIN_S = 60
CLIENT_KEY = "what-workers-show"


def pages() -> Iterator[list[Block]]:
    for page in documents():
        found = blocks(page)
        if found and page.parent.name != "tutorial":
            yield found


class World(NamedTuple):
    service: Service
    ports: dict[int, int]


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[World]:
    same = {"seed": 7, "speed": 0}
    with ExitStack() as stack:
        gpu1 = stack.enter_context(FakeProcess(folder, "gpu1", models="llama3.2:3b,nomic-embed-text", **same))
        gpu2 = stack.enter_context(FakeProcess(folder, "gpu2", kind="openai", models="llama-3.1-8b", **same))
        own = stack.enter_context(FakeProcess(folder, "basement-gpu", models="qwen3:8b", **same))
        servers = {
            "gpu1": {"url": gpu1.url, "vram_gb": 24, "embedding_batch_size": 2},
            "gpu2": {"url": gpu2.url, "kind": "openai", "max_concurrent": 32},
        }
        auth = {"client_key": CLIENT_KEY, "admin_key": ADMIN_KEY}
        service = stack.enter_context(Service(folder / "service", servers, settings={"auth": auth}))
        dial = service.url.replace("http:", "ws:")
        words = ["worker", "llm", "--server-url", dial, "--base-url", f"{own.url}/v1", "--client-name", "basement"]
        worker = Spawned(
            [sys.executable, "-m", "fleetproxy", *words], folder / "worker.log", {"CLIENT_KEY": CLIENT_KEY}
        )
        stack.callback(worker.kill)
        worker.spawn()
        until(lambda: "registered as basement" in worker.text(), 20, "the worker")
        yield World(service, {11434: service.port, 11503: own.port})


@pytest.mark.parametrize("found", list(pages()), ids=lambda found: found[0].page)
def test_the_runnable_blocks_of_a_page_run(found: list[Block], world: World, tmp_path: Path) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "FLEETPROXY_CONFIG": str(world.service.config),
        "ADMIN_KEY": ADMIN_KEY,
        "KEY": CLIENT_KEY,
    }
    done = subprocess.run(
        ["bash", "-c", script(found, world.ports)],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WITHIN_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stdout + done.stderr


def test_there_are_runnable_blocks() -> None:
    ran = {found[0].page for found in pages()}
    assert "README.md" in ran
    assert len(ran) >= 10
    assert (TOP / "docs/writing.md").read_text().count("basement") == 1
