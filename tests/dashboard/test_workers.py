"""The workers page: who dials in, how busy they are, and letting one of them rest."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleetproxy.testing.relay import FakeRelay
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, Spawned, until
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits


@pytest.fixture
def worker(service: Service, fleet: dict[str, FakeProcess], folder: Path) -> Iterator[Spawned]:
    """`fleetproxy worker llm` beside one of the fakes."""
    environment = {
        "SERVER_URL": service.url,
        "COMPLETION_BASE_URL": f"{fleet['small'].url}/v1",
        "CLIENT_NAME": "attic",
        "CLIENT_ID": "gpu-attic",
        "MODEL_POLL_INTERVAL": "0.3",
        "FLEETPROXY_DATA_DIR": str(folder),
    }
    made = Spawned([sys.executable, "-m", "fleetproxy", "worker", "llm"], folder / "worker.log", environment)
    made.spawn()
    yield made
    made.kill()
    until(lambda: service.admin("GET", "/api/workers")["workers"] == [], 10, "the worker is gone")


@contextmanager
def relay(service: Service) -> Iterator[None]:
    """An MCP relay named `tools` that takes calls and never answers them."""
    there, leave = threading.Event(), threading.Event()

    async def stay() -> None:
        url = service.url.replace("http", "ws", 1) + "/api/mcp/connect"
        async with await FakeRelay.dial(url, relay_id="tools", name="tools"):
            there.set()
            await asyncio.to_thread(leave.wait, 60)

    thread = threading.Thread(target=asyncio.run, args=(stay(),))
    thread.start()
    try:
        assert there.wait(10)
        yield
    finally:
        leave.set()
        thread.join(10)


def test_when_nobody_dials_in_the_page_says_how(visit: Visit) -> None:
    page = visit("/workers")
    expect(page.get_by_role("heading", name="No worker has dialled in")).to_be_visible()
    expect(page.get_by_role("group", name="Lines for llm")).to_contain_text("fleetproxy worker llm --server-url ws://")
    accessible(page)
    page.get_by_role("tab", name="MCP relays").click()
    expect(page.get_by_role("group", name="Lines for mcp")).to_contain_text("fleetproxy worker mcp")
    page.get_by_role("tab", name="Transfers").click()
    expect(page.get_by_role("region", name="Transfers")).to_contain_text("Open now")
    accessible(page)


@pytest.mark.parametrize("theme", THEMES)
def test_a_worker_is_drained_and_undrained(worker: Spawned, visit: Visit, service: Service, theme: Theme) -> None:
    page = visit("/workers", theme=theme)
    row = page.get_by_role("row", name="attic")
    expect(row).to_contain_text("Ready")
    accessible(page)
    row.click()
    drawer = page.get_by_role("dialog", name="attic")
    expect(drawer).to_contain_text("gpu-attic")
    expect(drawer.get_by_role("link", name="phi")).to_be_visible()
    drawer.get_by_role("button", name="Drain").click()
    expect(page.get_by_text("attic is draining")).to_be_visible()
    expect(row).to_contain_text("Draining")
    assert service.admin("GET", "/api/workers")["workers"][0]["drainedHere"] is True
    accessible(page)
    drawer.get_by_role("button", name="Undrain").click()
    expect(page.get_by_text("attic gets work again.")).to_be_visible()
    expect(row).to_contain_text("Ready")
    assert service.admin("GET", "/api/workers")["workers"][0]["isDraining"] is False


def test_calls_under_way_at_a_relay_are_shown_while_they_last(visit: Visit, service: Service) -> None:
    with relay(service):
        page = visit("/workers?tab=relays")
        page.get_by_role("row", name="tools").click()
        drawer = page.get_by_role("dialog", name="tools")
        expect(drawer).to_contain_text("None.")
        expect(drawer).to_contain_text("/api/mcp/id/tools")
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        call = threading.Thread(target=service.fetch, args=("POST", "/api/mcp/id/tools", body, headers), daemon=True)
        call.start()
        expect(drawer.get_by_role("list", name="Calls under way")).to_contain_text("tools/list")
        accessible(page)
    expect(page.get_by_role("heading", name="No MCP relay has dialled in")).to_be_visible()
    call.join(10)


def test_on_a_phone_a_worker_can_be_drained(worker: Spawned, visit: Visit) -> None:
    page = visit("/workers", width=PHONE, height=740)
    row = page.get_by_role("row", name="attic")
    row.get_by_role("button", name="Actions for attic").click()
    page.get_by_role("menuitem", name="Drain").click()
    expect(row).to_contain_text("Draining")
    fits(page)
    accessible(page)
    row.get_by_role("button", name="Actions for attic").click()
    page.get_by_role("menuitem", name="Undrain").click()
    expect(row).to_contain_text("Ready")
