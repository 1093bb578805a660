"""Pages on paper, enlarged, far away, beside things that leave and sessions that end."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess
from tests.dashboard.kit import DESK, THEMES, Theme, Visit, expect, fits, live, log_in

#: Where a tick of the schedule is, as minutes past a full hour there.
_TICKS = """() => {
    const head = document.querySelector('.timeline .head')
    const begin = Math.floor(Date.now() / 60000) * 60000
    return [...head.children].map((one) => {
        const at = new Date(begin + parseFloat(one.style.left) / head.clientWidth * 86400000)
        return at.getMinutes()
    })
}"""


@pytest.mark.parametrize("theme", THEMES)
def test_on_paper_a_page_is_light_and_without_what_steers_it(visit: Visit, theme: Theme) -> None:
    page = visit("/", theme=theme)
    expect(page.get_by_role("article", name="big, Online")).to_be_visible()
    page.emulate_media(media="print")
    expect(page.get_by_role("navigation", name="Pages")).to_be_hidden()
    expect(page.get_by_role("heading", name="Fleet", level=1)).to_be_visible()
    expect(page.get_by_role("article", name="big, Online")).to_be_visible()
    shades = page.evaluate("() => getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    assert max(shades) < 80, "dark letters"


def test_twice_as_large_nothing_is_cut_off(visit: Visit) -> None:
    page = visit("/", width=DESK // 2, height=450)
    for path in ("/", "/requests", "/analytics", "/schedule", "/models", "/users", "/settings"):
        page.goto(f"{visit.service.admin_url}/dashboard{path}")
        live(page)
        fits(page)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Pacific/Kiritimati", "America/St_Johns"])
def test_full_hours_of_the_schedule_are_those_of_the_readers_clock(visit: Visit, service: Service, zone: str) -> None:
    job = {"name": f"of {zone}", "cronExpression": "15 * * * *", "targetModel": "phi", "sourceIdentifier": "test"}
    service.admin("POST", "/api/scheduled-jobs", job)
    page = visit("/schedule", timezone_id=zone)
    expect(page.get_by_text(zone).first).to_be_visible()
    found = page.evaluate(_TICKS)
    assert found
    assert all(min(minute, 60 - minute) <= 2 for minute in found), found


def test_a_server_that_dies_under_an_open_drawer_is_told_there(visit: Visit, fleet: dict[str, FakeProcess]) -> None:
    page = visit("/")
    page.get_by_role("button", name="small", exact=True).click()
    drawer = page.get_by_role("dialog", name="small")
    expect(drawer).to_contain_text("Online")
    fleet["small"].kill()
    expect(drawer).to_contain_text("Offline")
    expect(drawer.get_by_role("alert")).to_be_visible()
    fleet["small"].start()
    expect(drawer).to_contain_text("Online")


def test_what_is_open_and_goes_away_is_said_to_be_gone(visit: Visit, service: Service) -> None:
    made = service.admin("POST", "/api/servers", {"name": "brief", "url": "http://127.0.0.1:9"})
    page = visit(f"/?open={made['id']}")
    expect(page.get_by_role("dialog", name="brief")).to_be_visible()
    service.admin("DELETE", f"/api/servers/{made['id']}")
    expect(page.get_by_text("brief is gone.")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert "open=" not in page.url
    page.goto(f"{service.admin_url}/dashboard/users?open=4711")
    expect(page.get_by_text("What this address opens is gone.")).to_be_visible()


@pytest.mark.parametrize(("path", "row"), [("/?as=rows", "big"), ("/models", "qwen3:8b"), ("/users", "root")])
def test_back_closes_what_is_open_and_forward_opens_it_again(visit: Visit, path: str, row: str) -> None:
    page = visit(path)
    drawer = page.get_by_role("dialog", name=row)
    page.get_by_role("row", name=row).first.click()
    expect(drawer).to_be_visible()
    page.go_back()
    expect(drawer).to_have_count(0)
    assert page.url.endswith(path)
    page.go_forward()
    expect(drawer).to_be_visible()
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    page.wait_for_url(f"**{path}")
    page.go_forward()
    expect(drawer).to_be_visible()


def test_a_session_that_ends_under_an_open_form_leads_to_the_login_and_back(visit: Visit, service: Service) -> None:
    visit.expect(r"status of 401|ERR_|Failed to load")
    page = visit("/schedule?ahead=7d", stranger=True)
    log_in(page)
    live(page)
    page.get_by_role("button", name="Discover").first.click()
    expect(page.get_by_role("dialog", name="Jobs of containers")).to_be_visible()
    page.context.clear_cookies()
    page.get_by_role("button", name="Look again").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    expect(page.get_by_text("Your session has ended.")).to_be_visible()
    log_in(page)
    live(page)
    expect(page).to_have_title(re.compile("Schedule"))
    assert "ahead=7d" in page.url


def test_a_second_tab_of_a_machine_whose_clock_is_wrong_tells_the_time_too(visit: Visit) -> None:
    first = visit("/", timezone_id="UTC")
    first.context.add_init_script("const real = Date.now; Date.now = () => real() + 3_600_000")
    first.reload()
    live(first)
    second = visit.tab(first.context, "/settings?tab=about")
    clock = second.get_by_role("region", name="About").get_by_role("definition").nth(1)
    expect(clock).to_have_text(re.compile(r"\d\d:\d\d:\d\d"))
    shown = clock.inner_text().split(", ")[1]
    now = datetime.now(UTC)
    assert min(abs(_of_day(shown) - (now.hour * 3600 + now.minute * 60 + now.second)), 86_400) < 30, shown


def _of_day(clock: str) -> int:
    """Seconds since midnight."""
    hours, minutes, seconds = map(int, clock.split(":"))
    return hours * 3600 + minutes * 60 + seconds


def test_who_moves_little_is_shown_no_movement(visit: Visit) -> None:
    page = visit("/")
    moving = page.evaluate("() => document.getAnimations().filter((one) => one.playState === 'running').length")
    assert moving == 0
