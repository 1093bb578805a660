"""The models page: where each is, what would happen to a request, and pulling, loading and deleting them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, until
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits


@pytest.fixture(scope="module")
def service(built: None, fleet: dict[str, FakeProcess], folder: Path) -> Iterator[Service]:
    """Its registry is one of the fakes: it has no model of this name, so that each counts as one's own."""
    servers = {name: {"url": fake.url, "max_concurrent": 4, "vram_gb": 48} for name, fake in fleet.items()}
    settings = {"discovery": {"ollama_registry_url": fleet["big"].url}}
    with Service(folder / "service", servers, settings=settings) as made:
        yield made


@pytest.mark.parametrize("theme", THEMES)
def test_the_list_the_matrix_and_the_drawer_tell_where_each_model_is(visit: Visit, theme: Theme) -> None:
    page = visit("/models", theme=theme)
    table = page.get_by_role("table", name="Models")
    expect(table.get_by_role("row", name="llama3.2:3b")).to_contain_text("big, small")
    accessible(page)
    page.get_by_title("By server", exact=True).click()
    expect(table.get_by_role("columnheader", name="small")).to_be_visible()
    expect(table.get_by_role("row", name="qwen3:8b").get_by_text("disk")).to_have_count(1)
    accessible(page)
    table.get_by_role("row", name="qwen3:8b").click()
    drawer = page.get_by_role("dialog", name="qwen3:8b")
    considered = drawer.get_by_role("list", name="Servers considered")
    expect(considered.get_by_role("listitem").filter(has_text="big")).to_contain_text("First")
    expect(considered.get_by_role("listitem").filter(has_text="small")).to_contain_text("It does not have the model")
    accessible(page)
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    assert page.url.endswith("/models?as=matrix")


def test_the_explanation_follows_the_path_and_the_fleet(visit: Visit, service: Service) -> None:
    page = visit("/models/no-such-model")
    drawer = page.get_by_role("dialog", name="no-such-model")
    expect(drawer).to_contain_text("Nowhere")
    expect(drawer).to_contain_text("No server lists the model")
    with page.expect_response(lambda answer: "path=%2Fv1%2Frerank" in answer.url):
        drawer.get_by_label("Path of the request").select_option("/v1/rerank")
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    big = next(one["id"] for one in service.admin("GET", "/api/servers") if one["name"] == "big")
    service.admin("PATCH", f"/api/servers/{big}", {"isDraining": True})
    try:
        page.get_by_role("row", name="qwen3:8b").click()
        drawer = page.get_by_role("dialog", name="qwen3:8b")
        expect(drawer).to_contain_text("Every server that has the model 'qwen3:8b' is offline or in maintenance.")
        expect(drawer).to_contain_text("It is disabled or draining: it gets nothing new.")
    finally:
        service.admin("PATCH", f"/api/servers/{big}", {"isDraining": False})


def test_who_uses_a_model_and_what_loading_it_costs_is_told(visit: Visit, service: Service) -> None:
    headers = {"Content-Type": "application/json", "X-Ollama-Source": "night-shift"}
    assert service.fetch("POST", "/api/chat", b'{"model": "llama3.2:3b", "messages": []}', headers)[0] == 200
    page = visit("/models/llama3.2:3b")
    drawer = page.get_by_role("dialog", name="llama3.2:3b")
    users = drawer.get_by_role("list", name="Who uses it")
    expect(users).to_contain_text("night-shift")
    costs = drawer.get_by_role("list", name="What loading it costs")
    expect(costs).to_contain_text(re.compile("fits beside what is there: takes .* of .* free"))
    accessible(page)
    users.get_by_role("link", name="night-shift").click()
    expect(page).to_have_title(re.compile("Requests"))
    assert "source=night-shift" in page.url


def test_a_model_is_kept_in_memory_and_let_go(visit: Visit, service: Service) -> None:
    page = visit("/models/qwen3:8b")
    drawer = page.get_by_role("dialog", name="qwen3:8b")
    home = drawer.get_by_role("list", name="Where it is").get_by_role("listitem").filter(has_text="big")
    big = next(one["id"] for one in service.admin("GET", "/api/servers") if one["name"] == "big")
    drawer.get_by_role("button", name="Actions for big").click()
    page.get_by_role("menuitem", name="Keep in memory").click()
    expect(page.get_by_text("qwen3:8b stays in the memory of big.")).to_be_visible()
    expect(home).to_contain_text("stays")
    drawer.get_by_role("button", name="Actions for big").click()
    page.get_by_role("menuitem", name="Let it leave when unused").click()
    expect(home).to_contain_text("leaves in")
    service.admin("POST", "/api/models/unload", {"modelName": "qwen3:8b", "serverId": big})
    expect(home).to_contain_text("On disk")


def test_a_model_is_pulled_with_progress_loaded_unloaded_and_deleted(
    visit: Visit, service: Service, fleet: dict[str, FakeProcess]
) -> None:
    page = visit("/models")
    page.get_by_role("button", name="Pull", exact=True).click()
    dialog = page.get_by_role("dialog", name="Pull a model")
    dialog.get_by_role("textbox", name="Model").fill("tinyllama:1.1b")
    dialog.get_by_role("checkbox", name="small").check()
    accessible(page)
    dialog.get_by_role("button", name="Pull").click()
    row = page.get_by_role("row", name="tinyllama:1.1b")
    expect(row).to_contain_text("small")
    row.click()
    drawer = page.get_by_role("dialog", name="tinyllama:1.1b", exact=True)
    place = drawer.get_by_role("list", name="Where it is").get_by_role("listitem").filter(has_text="small")
    expect(place).to_contain_text("On disk")
    place.get_by_role("button", name="Actions for small").click()
    page.get_by_role("menuitem", name="Load into memory").click()
    expect(place).to_contain_text("In memory")
    place.get_by_role("button", name="Actions for small").click()
    page.get_by_role("menuitem", name="Unload").click()
    expect(place).to_contain_text("On disk")
    place.get_by_role("button", name="Actions for small").click()
    page.get_by_role("menuitem", name="Delete").click()
    asks = page.get_by_role("dialog", name="Delete tinyllama:1.1b from small?")
    expect(asks.get_by_role("button", name="Delete")).to_be_disabled()
    asks.get_by_label("Type tinyllama:1.1b to go on").fill("tinyllama:1.1b")
    visit.expect("status of 409")
    asks.get_by_role("button", name="Delete").click()
    expect(asks.get_by_role("alert")).to_contain_text("could not be pulled again")
    accessible(page)
    asks.get_by_role("switch", name="Delete it all the same").press(" ")
    asks.get_by_role("button", name="Delete").click()
    expect(asks).to_have_count(0)
    expect(drawer).to_contain_text("Nowhere")
    log = service.admin("GET", "/api/models/actions")
    done = [(one["action"], one["status"]) for one in log if one["modelName"] == "tinyllama:1.1b"]
    assert done == [("delete", "success"), ("unload", "success"), ("load", "success"), ("pull", "success")]
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="What was done").click()
    expect(page.get_by_role("table", name="What was done")).to_contain_text("tinyllama:1.1b")
    accessible(page)


def test_a_pull_shows_how_far_it_is_and_can_be_stopped(
    visit: Visit, service: Service, fleet: dict[str, FakeProcess]
) -> None:
    fleet["big"].ask("POST", "/__fake/stall", {"path": "/api/pull", "after": 5})
    page = visit("/models/huge:70b")
    page.get_by_role("button", name="Pull to a server").click()
    dialog = page.get_by_role("dialog", name="Pull a model")
    dialog.get_by_role("checkbox", name="big").check()
    dialog.get_by_role("button", name="Pull").click()
    under_way = page.get_by_role("dialog", name="huge:70b").get_by_role("list", name="Pulls under way")
    expect(under_way).to_contain_text("%")
    under_way.get_by_role("button", name="Stop the pull of huge:70b").click()
    expect(under_way).to_have_count(0)
    last = service.admin("GET", "/api/models/actions")[0]
    assert (last["action"], last["status"]) == ("pull", "failed")


def test_on_a_phone_the_drawer_is_whole(visit: Visit, service: Service) -> None:
    # Control looks for new names every 15 s.
    until(lambda: service.admin("GET", "/api/discoveries")["discoveries"], 20, "models that were not there before")
    page = visit("/models", width=PHONE, height=740)
    expect(page.get_by_role("row", name="qwen3:8b")).to_be_visible()
    fits(page)
    page.get_by_role("row", name="qwen3:8b").click()
    drawer = page.get_by_role("dialog", name="qwen3:8b")
    expect(drawer.get_by_role("list", name="Servers considered")).to_be_visible()
    fits(page)
    accessible(page)
    drawer.get_by_role("button", name="Close").click()
    page.get_by_role("tab", name="Advice").click()
    expect(page.get_by_role("heading", name="Models are well placed")).to_be_visible()
    expect(page.get_by_role("region", name="New in the fleet")).to_contain_text("first seen on")
    fits(page)
    accessible(page)
