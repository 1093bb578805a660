"""SQL: written, run, kept, drawn and refused."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from playwright.sync_api import Locator, Page

from fleetproxy.testing.service import Service
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits, log_in

COUNT = "SELECT model, count(*) AS n FROM requests GROUP BY ALL ORDER BY n DESC"
OVER_TIME = (
    "SELECT range AS at, random() AS one, 2 AS other "
    "FROM range(TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-03', INTERVAL 1 HOUR)"
)


@pytest.fixture(scope="module")
def traffic(service: Service) -> Service:
    for model in ("phi", "phi", "llama3.2:3b"):
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
        service.fetch("POST", "/api/chat", body)
    return service


def editor(page: Page) -> Locator:
    return page.get_by_label("SQL", exact=True)


def query(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


@pytest.mark.parametrize("theme", THEMES)
def test_a_query_is_run_by_a_key_and_the_address_brings_its_result_back(
    traffic: Service, visit: Visit, theme: Theme
) -> None:
    page = visit("/sql", theme=theme)
    expect(page.get_by_role("heading", name="Ask anything")).to_be_visible()
    expect(page.get_by_text("At most 10,000 rows and 10 s; read only.")).to_be_visible()
    accessible(page)
    editor(page).fill(COUNT)
    editor(page).press("Control+Enter")
    result = page.get_by_role("table", name="Result")
    expect(result.get_by_role("row").nth(1)).to_contain_text("phi")
    accessible(page)
    assert query(page) == {"q": COUNT, "run": "1"}
    page.reload()
    expect(result.get_by_role("row").nth(1)).to_contain_text("phi")
    result.get_by_role("button", name="n", exact=True).click()
    expect(result.get_by_role("row").nth(1)).to_contain_text("llama3.2:3b")


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_wrong_is_said_with_its_line(visit: Visit, theme: Theme) -> None:
    visit.expect("status of 400")
    page = visit("/sql", theme=theme)
    editor(page).fill("SELECT model,\n  colour\nFROM requests")
    page.get_by_role("button", name="Run", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("This query cannot be answered.")
    expect(alert).to_contain_text('column "colour" not found')
    accessible(page)
    alert.get_by_role("button", name="Line 2").click()
    expect(editor(page)).to_be_focused()
    assert editor(page).evaluate("area => area.value.slice(area.selectionStart)").startswith("colour")
    editor(page).fill("DELETE FROM requests")
    editor(page).press("Control+Enter")
    expect(alert).to_contain_text("Only SELECT and EXPLAIN")


def test_a_query_is_kept_found_again_changed_and_deleted(traffic: Service, visit: Visit) -> None:
    page = visit(f"/sql?q={quote(COUNT)}")
    page.get_by_role("button", name="Keep", exact=True).click()
    dialog = page.get_by_role("dialog", name="Keep this query")
    dialog.get_by_label("Name").fill("By model")
    dialog.get_by_text("Shared with the other administrators").click()
    accessible(page)
    dialog.get_by_role("button", name="Keep").click()
    kept = page.get_by_role("list", name="Kept queries")
    expect(kept).to_contain_text("shared")
    editor(page).fill("SELECT 1 AS one")
    kept.get_by_role("button", name="By model", exact=True).click()
    expect(editor(page)).to_have_value(COUNT)
    expect(page.get_by_role("table", name="Result")).to_contain_text("phi")
    editor(page).fill("SELECT 1 AS one")
    page.get_by_role("button", name="Actions for By model").click()
    page.get_by_role("menuitem", name="Replace it").click()
    page.get_by_role("dialog").get_by_role("button", name="Change", exact=True).click()
    kept.get_by_role("button", name="By model", exact=True).click()
    expect(editor(page)).to_have_value("SELECT 1 AS one")
    page.get_by_role("button", name="Actions for By model").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(kept).to_contain_text("None yet")


def test_tables_and_columns_are_explained_and_written_by_a_click(visit: Visit) -> None:
    page = visit("/sql")
    editor(page).fill("SELECT")
    tables = page.get_by_role("list", name="Tables and views")
    page.get_by_label("Search tables and columns").fill("ttft")
    tables.get_by_role("button", name="ttft_ms").first.click()
    expect(editor(page)).to_have_value("SELECT ttft_ms")
    page.get_by_label("Search tables and columns").fill("v_errors")
    expect(tables).to_contain_text("What went wrong, by hour")
    accessible(page)


def test_tab_leaves_the_editor_unless_it_was_asked_to_write(visit: Visit) -> None:
    page = visit("/sql")
    editor(page).fill("SELECT")
    editor(page).press("Tab")
    expect(editor(page)).not_to_be_focused()
    editor(page).focus()
    editor(page).press("Control+m")
    editor(page).press("Tab")
    expect(editor(page)).to_have_value("SELECT  ")
    editor(page).press("Escape")
    editor(page).press("Tab")
    expect(editor(page)).not_to_be_focused()


def test_numbers_over_time_are_drawn_and_taken_along(visit: Visit, tmp_path: Path) -> None:
    page = visit(f"/sql?run=1&q={quote(OVER_TIME)}")
    page.get_by_text("Chart", exact=True).click()
    chart = page.get_by_role("figure", name="Result")
    expect(chart.get_by_role("list", name="Series")).to_contain_text("other")
    assert query(page)["as"] == "chart"
    accessible(page)
    for kind, begins in (("CSV", "at,one,other\r\n2026-01-01T00:00:00"), ("JSON", '[{"at":"2026-01-01T00:00:00')):
        page.get_by_role("button", name="Take it along").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=f"Download as {kind}").click()
        download.value.save_as(tmp_path / "file")
        assert (tmp_path / "file").read_bytes().decode().startswith(begins)


def test_more_rows_than_may_be_are_said_to_be_more(visit: Visit) -> None:
    page = visit(f"/sql?run=1&q={quote('FROM range(20000)')}")
    expect(page.get_by_text("There is more: only the first 10,000 rows are here")).to_be_visible()
    expect(page.get_by_role("table", name="Result")).to_have_attribute("aria-rowcount", "10001")
    assert page.get_by_role("table", name="Result").get_by_role("row").count() < 100


def test_only_administrators_are_let_in(service: Service, visit: Visit) -> None:
    service.admin("POST", "/api/users", {"username": "reader", "password": "correct horse 8"})
    page = visit("/sql?run=1&q=SELECT%201", stranger=True)
    log_in(page, "reader", "correct horse 8")
    expect(page.get_by_role("heading", name="This page is for administrators")).to_be_visible()
    expect(page.get_by_role("link", name="SQL")).to_have_count(0)
    accessible(page)


def test_sql_on_a_phone(traffic: Service, visit: Visit) -> None:
    page = visit(f"/sql?run=1&q={quote(COUNT)}", width=PHONE, height=740)
    expect(page.get_by_role("table", name="Result")).to_contain_text("phi")
    fits(page)
    accessible(page)
