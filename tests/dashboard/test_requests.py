"""Requests: as they end, as they were, and the whole story of one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page

from fleetproxy.testing.service import Service
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits


def chat(service: Service, model: str = "llama3.2:3b", text: str = "hello", request_id: str = "") -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
    headers = {"x-request-id": request_id} if request_id else {}
    service.fetch("POST", "/api/chat", body, headers=headers)


def query(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


@pytest.mark.parametrize("theme", THEMES)
def test_a_request_is_in_the_tail_when_it_ends_and_its_drawer_has_its_story(
    service: Service, visit: Visit, theme: Theme
) -> None:
    page = visit("/requests?columns.requests=status,model,request_id", theme=theme)
    table = page.get_by_role("table", name="Requests as they end")
    chat(service, "qwen3:8b", request_id=f"story-{theme}")
    row = table.get_by_role("row", name=f"story-{theme}")
    expect(row).to_contain_text("qwen3:8b")
    expect(row).to_contain_text("Answered")
    expect(table.get_by_role("columnheader")).to_have_count(3)
    accessible(page)
    row.click()
    drawer = page.get_by_role("dialog", name="qwen3:8b")
    for part in ("First byte", "Answer", "fleetproxy"):
        expect(drawer.get_by_role("list", name="Where the time went")).to_contain_text(part)
    expect(drawer.get_by_role("table", name="Attempts")).to_contain_text("big")
    considered = drawer.get_by_role("list", name="Servers considered")
    expect(considered).to_contain_text("small")
    expect(considered).to_contain_text("It does not have the model; others do.")
    expect(drawer).to_contain_text(f"/api/requests/story-{theme}")
    expect(drawer).to_contain_text(f"WHERE request_id = 'story-{theme}'")
    assert query(page)["open"] == f"story-{theme}"
    accessible(page)
    page.reload()
    expect(page.get_by_role("dialog", name="qwen3:8b")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert "open" not in query(page)


def test_the_tail_is_held_by_a_key_and_counts_what_it_holds_back(service: Service, visit: Visit) -> None:
    page = visit("/requests?model=phi")
    chat(service, "phi")
    table = page.get_by_role("table", name="Requests as they end")
    expect(table.get_by_role("row")).to_have_count(2)
    page.keyboard.press("p")
    chat(service, "phi")
    chat(service, "phi")
    chat(service, "llama3.2:3b")
    expect(page.get_by_role("button", name="2 new")).to_be_visible()
    expect(table.get_by_role("row")).to_have_count(2)
    page.get_by_role("button", name="2 new").click()
    expect(table.get_by_role("row")).to_have_count(4)
    expect(page.get_by_role("button", name="Hold")).to_be_visible()


def test_the_history_is_narrowed_and_sorted_and_the_address_holds_it_all(service: Service, visit: Visit) -> None:
    chat(service, "llama3.2:3b")
    chat(service, "nobody-has-this")
    page = visit("/requests")
    page.get_by_text("History", exact=True).click()
    table = page.get_by_role("table", name="Requests")
    expect(table).to_contain_text("llama3.2:3b")
    page.get_by_label("Status").fill("4xx")
    page.get_by_label("Status").press("Enter")
    expect(table).not_to_contain_text("llama3.2:3b")
    expect(table).to_contain_text("nobody-has-this")
    table.get_by_role("button", name="Took").click()
    table.get_by_role("button", name="Took").click()
    page.get_by_text("1 h", exact=True).click()
    expect(table.get_by_role("columnheader", name="Took")).to_have_attribute("aria-sort", "descending")
    assert query(page) == {"as": "history", "status": "4xx", "sort": "-duration", "range": "1h"}
    page.reload()
    expect(page.get_by_label("Status")).to_have_value("4xx")
    expect(table).to_contain_text("nobody-has-this")
    expect(table).not_to_contain_text("llama3.2:3b")
    page.get_by_label("Model").fill("not this one either")
    page.get_by_label("Model").press("Enter")
    expect(page.get_by_role("heading", name="No request is like that")).to_be_visible()
    accessible(page)
    page.get_by_role("button", name="Clear the filters").click()
    expect(table).to_contain_text("llama3.2:3b")


def test_what_the_filter_shows_is_downloaded_and_asked_elsewhere(
    service: Service, visit: Visit, tmp_path: Path
) -> None:
    chat(service, "qwen3:8b")
    chat(service, "llama3.2:3b")
    page = visit("/requests?as=history&model=qwen3:8b")
    expect(page.get_by_role("table", name="Requests")).to_contain_text("qwen3:8b")
    for kind, begins in (("CSV", b"id,"), ("NDJSON", b'{"id":'), ("Parquet", b"PAR1")):
        page.get_by_role("button", name="Take these requests along").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=f"Download as {kind}").click()
        download.value.save_as(tmp_path / "file")
        content = (tmp_path / "file").read_bytes()
        assert content.startswith(begins)
        assert b"qwen3:8b" in content
        assert b"llama3.2:3b" not in content
    page.get_by_role("button", name="Take these requests along").click()
    page.get_by_role("menuitem", name="Open in SQL").click()
    editor = page.get_by_label("SQL", exact=True)
    expect(editor).to_have_value(re.compile(r"WHERE started_at >= TIMESTAMP '.*AND model = 'qwen3:8b'", re.DOTALL))
    expect(page.get_by_role("table", name="Result")).to_contain_text("qwen3:8b")


def test_who_asks_leads_to_their_requests(service: Service, visit: Visit) -> None:
    chat(service)
    page = visit("/requests?as=askers")
    table = page.get_by_role("table", name="Who asks for what")
    expect(table.get_by_role("row", name="llama3.2:3b").first).to_be_visible()
    accessible(page)
    table.get_by_role("row", name="llama3.2:3b").first.click()
    expect(page.get_by_role("table", name="Requests")).to_contain_text("llama3.2:3b")
    assert query(page)["model"] == "llama3.2:3b"


def test_a_request_that_is_not_known_is_said_to_be_so(visit: Visit) -> None:
    visit.expect("status of 404")
    page = visit("/requests?open=never-was")
    expect(page.get_by_role("heading", name="No such request")).to_be_visible()
    accessible(page)


def test_requests_on_a_phone(service: Service, visit: Visit) -> None:
    chat(service)
    page = visit("/requests", width=PHONE, height=740)
    expect(page.get_by_role("table", name="Requests as they end")).to_contain_text("Answered")
    fits(page)
    page.get_by_role("button", name="Filters").click()
    expect(page.get_by_label("Model")).to_be_visible()
    fits(page)
    accessible(page)
    page.get_by_role("table").get_by_role("row").nth(1).click()
    expect(page.get_by_role("list", name="Where the time went")).to_be_visible()
    fits(page)
    accessible(page)
