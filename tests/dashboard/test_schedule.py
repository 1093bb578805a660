"""The schedule: jobs made, changed, run and deleted, what is in the way of what, and what containers tell of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fleetproxy.testing.service import Service
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits

MINUTE_MS = 60_000


@pytest.fixture
def jobs(service: Service) -> Iterator[dict[str, int]]:
    """Two jobs that want one model at the same time, and one that is in nobody's way."""

    def add(name: str, cron: str, model: str, minutes: int, action: str = "none") -> int:
        body: dict[str, Any] = {
            "name": name,
            "sourceIdentifier": "tests",
            "cronExpression": cron,
            "targetModel": model,
            "action": action,
            "expectedDurationMs": minutes * MINUTE_MS,
        }
        number: int = service.admin("POST", "/api/scheduled-jobs", body)["id"]
        return number

    yield {
        "digest": add("digest", "0 3 * * *", "qwen3:8b", 45),
        "index": add("index", "20 3 * * *", "qwen3:8b", 30),
        "warm": add("warm", "30 7 * * *", "phi", 1, "preload"),
    }
    for job in service.admin("GET", "/api/scheduled-jobs"):
        service.admin("DELETE", f"/api/scheduled-jobs/{job['id']}")


def test_without_jobs_the_page_says_what_a_job_is(visit: Visit) -> None:
    page = visit("/schedule")
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    accessible(page)
    page.get_by_role("button", name="Discover in containers").click()
    dialog = page.get_by_role("dialog", name="Jobs of containers")
    expect(dialog).to_contain_text("discovery.docker_socket")
    expect(dialog.get_by_role("button", name="Nothing to import")).to_be_disabled()
    accessible(page)


@pytest.mark.parametrize("theme", THEMES)
def test_conflicts_are_in_the_table_on_the_timeline_and_in_words(
    jobs: dict[str, int], visit: Visit, theme: Theme
) -> None:
    page = visit("/schedule", theme=theme)
    table = page.get_by_role("table", name="Jobs")
    expect(table.get_by_role("row", name="digest")).to_contain_text("Same model")
    expect(table.get_by_role("row", name="warm")).to_contain_text("none")
    names = page.get_by_role("list", name="Jobs on the timeline")
    expect(names.get_by_role("button", name="index")).to_contain_text("1 in conflict")
    told = page.get_by_role("region", name="1 conflict")
    expect(told).to_contain_text("digest and index")
    expect(told).to_contain_text("Same model at the same time: qwen3:8b")
    accessible(page)
    page.get_by_title("As a list", exact=True).click()
    expect(page.get_by_role("table", name="Planned runs")).to_contain_text("In conflict")
    page.get_by_text("7 d", exact=True).click()
    expect(page.get_by_role("heading", name="The next 7 days")).to_be_visible()
    assert "ahead=7d" in page.url
    assert "plan=listed" in page.url
    page.get_by_role("region", name="7 conflicts").get_by_role("button", name="digest").click()
    expect(page.get_by_role("dialog", name="digest", exact=True)).to_contain_text("In the way of others")
    accessible(page)


def test_an_expression_is_explained_while_it_is_written_and_the_new_job_tells_of_its_conflict(
    jobs: dict[str, int], visit: Visit, service: Service
) -> None:
    page = visit("/schedule")
    page.get_by_role("button", name="New job").click()
    dialog = page.get_by_role("dialog", name="New job")
    dialog.get_by_label("Name").fill("third")
    dialog.get_by_label("Time zone").fill("Europe/Berlin")
    when = dialog.get_by_label("When", exact=False).first
    when.fill("61 3 * * *")
    expect(dialog.get_by_role("alert")).to_be_visible()
    expect(dialog.get_by_role("button", name="Add job")).to_be_disabled()
    when.fill("10 4 * * *")
    expect(dialog).to_contain_text("Daily at 04:10")
    expect(dialog.get_by_role("list", name="Next runs").get_by_role("listitem")).to_have_count(5)
    expect(dialog.get_by_role("list", name="Next runs")).to_contain_text("04:10")
    dialog.get_by_label("What it does").select_option(label="Only planned")
    dialog.get_by_label("Model").fill("qwen3:8b")
    accessible(page)
    dialog.get_by_role("button", name="Add job").click()
    expect(page.get_by_text("third was added, and is in the way of digest")).to_be_visible()
    made = next(one for one in service.admin("GET", "/api/scheduled-jobs") if one["name"] == "third")
    assert (made["timezone"], made["action"], made["targetModel"]) == ("Europe/Berlin", "none", "qwen3:8b")


def test_a_job_is_run_now_switched_off_changed_and_deleted(
    jobs: dict[str, int], visit: Visit, service: Service
) -> None:
    page = visit("/schedule")
    page.get_by_role("row", name="warm").get_by_role("button", name="Actions for warm").click()
    page.get_by_role("menuitem", name="Run now").click()
    drawer = page.get_by_role("dialog", name="warm", exact=True)
    expect(drawer).to_contain_text("loaded phi on small")
    expect(drawer).to_contain_text("Done")
    expect(drawer).to_contain_text("by root")
    drawer.get_by_role("button", name="Change").click()
    form = page.get_by_role("dialog", name="Change warm")
    form.get_by_label("Takes about, minutes").fill("2.5")
    form.get_by_role("button", name="Save").click()
    expect(drawer).to_contain_text("2 min 30 s")
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    switch = page.get_by_role("switch", name="warm is enabled")
    expect(switch).to_be_checked()
    switch.press(" ")
    expect(switch).not_to_be_checked()
    expect(page.get_by_text("warm is off.")).to_be_visible()
    assert service.admin("GET", f"/api/scheduled-jobs/{jobs['warm']}")["isEnabled"] is False
    page.get_by_role("row", name="warm").get_by_role("button", name="Actions for warm").click()
    page.get_by_role("menuitem", name="Delete").click()
    asks = page.get_by_role("dialog", name="Delete warm?")
    expect(asks.get_by_role("button", name="Delete")).to_be_disabled()
    asks.get_by_label("Type warm to go on").fill("warm")
    accessible(page)
    asks.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("row", name="warm")).to_have_count(0)
    assert "warm" not in [one["name"] for one in service.admin("GET", "/api/scheduled-jobs")]


def test_an_open_slot_becomes_a_job(jobs: dict[str, int], visit: Visit) -> None:
    page = visit("/schedule")
    page.get_by_role("button", name="Open slots").click()
    slots = page.get_by_role("dialog", name="Open slots")
    slots.get_by_label("Model").fill("qwen3:8b")
    slots.get_by_role("button", name="Find").click()
    slots.get_by_role("list", name="Open slots").get_by_role("button").first.click()
    form = page.get_by_role("dialog", name="New job")
    expect(form.get_by_label("Model")).to_have_value("qwen3:8b")
    expect(form).to_contain_text("Daily at")


def test_on_a_phone_a_job_can_be_run_and_nothing_scrolls_sideways(jobs: dict[str, int], visit: Visit) -> None:
    page = visit("/schedule", width=PHONE, height=740)
    expect(page.get_by_role("list", name="Jobs on the timeline")).to_be_visible()
    fits(page)
    page.get_by_role("row", name="warm").click()
    drawer = page.get_by_role("dialog", name="warm", exact=True)
    drawer.get_by_role("button", name="Run now").click()
    expect(drawer).to_contain_text("Done")
    fits(page)
    accessible(page)
