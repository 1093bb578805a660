"""Real processes in front of fakes: one proxy process and two, torn down only when the oracle is content."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess
from fleetproxy.testing.stage import Stage
from tests.e2e.fault_cases import rounds
from tests.e2e.go_socket import free_port
from tests.e2e.nfrx_rows import API_KEY, CLIENT_KEY, Rows

#: Every fake of these tests has this seed and this moment, so that equal requests give equal bytes.
SAME = {"seed": 7, "epoch": 1_760_000_000, "speed": 0}

FLEET: dict[str, dict[str, Any]] = {
    "big": {"kind": "ollama", "vram_gb": 48, "models": "llama3.2:3b,qwen3:8b,gemma3:4b,nomic-embed-text"},
    "small": {"kind": "ollama", "vram_gb": 12, "models": "llama3.2:3b,nomic-embed-text,phi"},
    "vllm": {"kind": "openai", "models": "meta-llama/Llama-3.1-8B,bge-embed"},
    "cpp": {"kind": "llamacpp", "models": "tiny-1b"},
}


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def processes(request: pytest.FixtureRequest) -> int:
    """Proxy processes of the service."""
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("e2e")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[dict[str, FakeProcess]]:
    """Four fakes of three kinds."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(FakeProcess(folder, name, **{**SAME, **options}))
            for name, options in FLEET.items()
        }


@pytest.fixture(scope="module")
def service(fleet: dict[str, FakeProcess], processes: int, folder: Path) -> Iterator[Service]:
    """The service in front of the fleet."""
    servers = {
        name: {
            "url": fake.url,
            "kind": "ollama" if FLEET[name]["kind"] == "ollama" else "openai",
            **{key: FLEET[name][key] for key in ("vram_gb",) if key in FLEET[name]},
        }
        for name, fake in fleet.items()
    }
    with Service(folder / f"service-{processes}", servers, processes=processes) as made:
        yield made
        for fake in fleet.values():
            state = fake.ask("GET", "/__fake/state")
            assert state["bad_messages"] == [], fake.name
            assert state["crashes"] == [], fake.name


@pytest.fixture(autouse=True)
def _oracle(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test with a service: well, nothing in flight, nothing leaked, nothing bad in the log."""
    if "service" not in request.fixturenames:
        yield
        return
    running: Service = request.getfixturevalue("service")
    baseline = running.open_files()
    seen = len(running.text())
    yield
    running.check(baseline)
    assert len(running.text()) >= seen


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services of one's own; each is stopped, and its log looked at, when the test ends."""
    with ExitStack() as stack:

        def make(servers: dict[str, Any], **options: Any) -> Service:
            number = len(list(tmp_path.glob("own-*")))
            return stack.enter_context(Service(tmp_path / f"own-{number}", servers, **options))

        yield make


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., FakeProcess]]:
    """Start fakes of one's own as subprocesses."""
    with ExitStack() as stack:

        def make(name: str, **options: Any) -> FakeProcess:
            return stack.enter_context(FakeProcess(tmp_path, name, **{**SAME, **options}))

        yield make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole services take longer than units; a case of the fault catalogue is marked by its number."""
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(rounds(120, 1800)))
        found = re.match(r"test_([ucjspmtw])(\d\d)_", item.name)
        if found:
            item.user_properties.append(("case", f"{found[1].upper()}-{int(found[2])}"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_stage(processes: int, folder: Path) -> AsyncIterator[Stage]:
    made = await Stage.open(folder / f"stage-{processes}", processes=processes)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(running_stage: Stage) -> AsyncIterator[Stage]:
    """Scripted upstreams behind a service; when the test ends, the oracle and one record for each request."""
    await running_stage.reset()
    yield running_stage
    await running_stage.settle()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_rows(folder: Path) -> AsyncIterator[Rows]:
    """A service at two processes for peers of nfrx's protocol."""
    port = free_port()
    auth = {"api_key": API_KEY, "client_key": CLIENT_KEY}
    stage = await Stage.open(folder / "rows", processes=2, auth=auth, hub={"listen": f"127.0.0.1:{port}"})
    yield Rows(stage, port)
    await stage.close()


@pytest_asyncio.fixture(loop_scope="module")
async def rows(running_rows: Rows) -> AsyncIterator[Rows]:
    stage = running_rows.stage
    stage.asked.clear()
    stage.perhaps.clear()
    await stage.recount()
    yield running_rows
    await stage.settle()


@pytest_asyncio.fixture(loop_scope="module")
async def open_stage(folder: Path) -> AsyncIterator[Callable[..., Awaitable[Stage]]]:
    """Stages of one's own, for settings of one's own."""
    made: list[Stage] = []

    async def make(**options: Any) -> Stage:
        made.append(await Stage.open(folder / f"own-{uuid4().hex[:8]}", **options))
        return made[-1]

    yield make
    for stage in made:
        await stage.close()
