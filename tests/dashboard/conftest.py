"""One service with a small fleet, and one browser, for each file of tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess
from tests.dashboard.kit import CHROMIUM, MakeFake, MakeService, Visit, build_if_stale, chromium, set_up

SAME = {"seed": 7, "epoch": 1_760_000_000, "speed": 0}
FLEET: dict[str, dict[str, Any]] = {
    "big": {"kind": "ollama", "vram_gb": 48, "models": "llama3.2:3b,qwen3:8b,nomic-embed-text"},
    "small": {"kind": "ollama", "vram_gb": 12, "models": "llama3.2:3b,phi"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(120))
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="needs Chromium"))


@pytest.fixture(scope="session")
def built() -> None:
    """The dashboard is built from its present source."""
    build_if_stale()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("ui")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[dict[str, FakeProcess]]:
    """Two Ollama servers. A test that ends one starts it again."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(FakeProcess(folder, name, **{**SAME, **own})) for name, own in FLEET.items()}


@pytest.fixture(scope="module")
def service(built: None, fleet: dict[str, FakeProcess], folder: Path) -> Iterator[Service]:
    """The service in front of them. No user yet: `visit` makes the administrator."""
    servers = {
        name: {"url": fake.url, "vram_gb": FLEET[name]["vram_gb"], "max_concurrent": 4} for name, fake in fleet.items()
    }
    with Service(folder / "service", servers) as made:
        yield made


@pytest.fixture(scope="module")
def cookie(service: Service) -> str:
    """A session of the administrator, made by the API."""
    return set_up(service)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture
def visit(browser: Browser, service: Service, cookie: str) -> Iterator[Visit]:
    """Opens pages of the service as the administrator; when the test ends, nothing may have been complained of."""
    made = Visit(browser, service, cookie)
    yield made
    made.close()
    assert not service.bad_lines(), service.bad_lines()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[MakeFake]:
    """Start fakes of one's own."""
    with ExitStack() as stack:

        def make(name: str, **options: Any) -> FakeProcess:
            return stack.enter_context(FakeProcess(tmp_path, name, **{**SAME, **options}))

        yield make


@pytest.fixture
def start(built: None, tmp_path: Path) -> Iterator[MakeService]:
    """Start services of one's own; one without servers is empty, not unready."""
    with ExitStack() as stack:

        def make(servers: dict[str, Any], **options: Any) -> Service:
            made = Service(tmp_path / f"own-{len(list(tmp_path.iterdir()))}", servers, **options)
            stack.push(made.__exit__)
            made.start(ready=bool(servers))
            return made

        yield make
