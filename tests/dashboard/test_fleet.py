"""The fleet page: what it shows, how soon, and what may be done there."""

from __future__ import annotations

import json

import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits, live


@pytest.mark.parametrize("theme", THEMES)
def test_cards_rows_and_drawer_are_accessible(visit: Visit, theme: Theme) -> None:
    page = visit("/", theme=theme)
    expect(page.get_by_role("article", name="big, Online")).to_be_visible()
    accessible(page)
    page.get_by_role("button", name="big", exact=True).click()
    drawer = page.get_by_role("dialog", name="big")
    expect(drawer).to_contain_text("closed: requests pass")
    accessible(page)
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    page.get_by_title("Rows", exact=True).click()
    expect(page.get_by_role("table", name="Servers and workers")).to_contain_text("small")
    accessible(page)


def test_on_a_phone_everything_is_there_and_nothing_scrolls_sideways(visit: Visit) -> None:
    page = visit("/", width=PHONE, height=740)
    expect(page.get_by_role("article", name="big, Online")).to_be_visible()
    fits(page)
    accessible(page)
    page.get_by_role("button", name="More").click()
    expect(page.get_by_role("dialog", name="Pages").get_by_role("link", name="API")).to_be_visible()
    accessible(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Actions for big").click()
    page.get_by_role("menuitem", name="Drain").click()
    expect(page.get_by_role("article", name="big, Draining")).to_be_visible()
    page.get_by_role("button", name="Actions for big").click()
    page.get_by_role("menuitem", name="Undrain").click()
    expect(page.get_by_role("article", name="big, Online")).to_be_visible()
    fits(page)


def test_a_server_that_dies_is_shown_without_reload_and_so_is_its_return(
    visit: Visit, fleet: dict[str, FakeProcess]
) -> None:
    page = visit("/")
    expect(page.get_by_role("article", name="small, Online")).to_be_visible()
    fleet["small"].kill()
    expect(page.get_by_role("article", name="small, Offline")).to_be_visible()
    expect(page.get_by_text("1 of 2 online")).to_be_visible()
    expect(page.get_by_role("region", name="What just changed")).to_contain_text("small is offline")
    page.get_by_text("Trouble 1").click()
    expect(page.get_by_role("article")).to_have_count(1)
    fleet["small"].start()
    expect(page.get_by_text("None is like that")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_role("article", name="small, Online")).to_be_visible()


def test_a_model_in_memory_is_shown_with_its_share_of_the_vram(visit: Visit, service: Service) -> None:
    page = visit("/")
    body = json.dumps({"model": "phi", "messages": [{"role": "user", "content": "hello"}], "stream": False}).encode()
    assert service.fetch("POST", "/api/chat", body)[0] == 200
    small = page.get_by_role("article", name="small")
    expect(small.get_by_text("phi")).to_be_visible()
    expect(small.get_by_role("img", name="VRAM of small")).to_be_visible()
    expect(small).to_contain_text("of 12 GiB")


def test_one_connection_serves_all_tabs_of_a_browser(visit: Visit) -> None:
    first = visit("/")
    streams: list[str] = []
    first.context.on("request", lambda request: "/api/state/live" in request.url and streams.append(request.url))
    others = [visit.tab(first.context) for _ in range(3)]
    for page in others:
        expect(page.get_by_role("article", name="big, Online")).to_be_visible()
    assert streams == []
    first.close()
    live(others[0])
    others[0].get_by_role("button", name="Poll every server now").click()
    expect(others[0].get_by_text("Every server was asked anew.")).to_be_visible()
    expect(others[1].get_by_role("status", name="Connection: Live")).to_be_visible()


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit("/")
    expect(page.get_by_role("article", name="big, Online")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("small")
    expect(page.get_by_role("article")).to_have_count(1)
    assert "q=small" in page.url
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    sheet = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(sheet).to_contain_text("Go to Fleet")
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)
    page.keyboard.press("Control+k")
    page.keyboard.type("big")
    expect(page.get_by_role("option").first).to_contain_text("big")
    accessible(page)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="big")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="big")).to_have_count(0)
    page.goto(f"{page.url.split('?')[0]}?as=rows")
    live(page)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="big")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("f")
    expect(page.get_by_role("article", name="big, Online")).to_be_visible()


def test_a_server_is_tried_and_added(visit: Visit, service: Service, fleet: dict[str, FakeProcess]) -> None:
    page = visit("/")
    page.get_by_role("button", name="Add server").click()
    dialog = page.get_by_role("dialog", name="Add a server")
    dialog.get_by_label("Name").fill("twin")
    dialog.get_by_label("Address").fill("http://127.0.0.1:9")
    dialog.get_by_role("button", name="Test").click()
    expect(dialog.get_by_role("list", name="Test")).to_contain_text("Connection")
    dialog.get_by_label("Address").fill(fleet["big"].url)
    dialog.get_by_role("button", name="Test").click()
    expect(dialog.get_by_role("list", name="Test")).to_contain_text("Models")
    accessible(page)
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("article", name="twin, Online")).to_be_visible()
    added = next(one for one in service.admin("GET", "/api/servers") if one["name"] == "twin")
    service.admin("DELETE", f"/api/servers/{added['id']}")
    expect(page.get_by_role("article", name="twin")).to_have_count(0)
