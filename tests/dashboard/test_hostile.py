"""Names that are markup, or endless; addresses that lead nowhere; control gone while a page is open."""

from __future__ import annotations

import os
import re
import signal

import pytest
from playwright.sync_api import Dialog, Page

from fleetproxy.testing.processes import children
from fleetproxy.testing.service import Service
from tests.dashboard.kit import ADMIN, DESK, PHONE, ROOT, Visit, expect, fits, live

MARKUP = "<img src=x onerror=alert(1)>"
ENDLESS = "endless-" * 24
#: Written from right to left; the first letter turns what follows it, too.
TURNED = "\u202e\u05d0\u05d1\u05d2 \u0645\u0632\u0631\u0639\u0629"
NAMES = (MARKUP, ENDLESS, TURNED)
PAGES = re.findall(
    r"^ +path: '([^']+)'", (ROOT / "dashboard/src/shell/pages.ts").read_text().split("ELSEWHERE")[0], re.MULTILINE
)


def _there(page: Page) -> None:
    live(page)
    page.wait_for_function("() => !document.querySelector('.skeleton')")


@pytest.fixture(scope="module")
def hostile(service: Service, cookie: str) -> None:
    """Jobs, servers, users, keys, kept queries and requests named so, each as long as its name may be."""
    job = {"sourceIdentifier": MARKUP, "cronExpression": "0 * * * *", "targetModel": MARKUP}
    me = next(one["id"] for one in service.admin("GET", "/api/users") if one["username"] == ADMIN)
    for at, name in enumerate(NAMES):
        service.admin("POST", "/api/scheduled-jobs", {**job, "name": name, "description": name * 2})
        service.admin("POST", f"/api/users/{me}/api-key", {"label": name[:64], "scopes": ["read"]})
        # The turning letter itself is refused in the names of servers, users and queries.
        plain = name.removeprefix("\u202e")
        service.admin("POST", "/api/servers", {"name": plain[:128], "url": f"http://127.0.0.1:9/{at}"})
        query = {"name": plain[:80], "sql": "SELECT 1", "description": name[:500], "shared": True}
        service.admin("POST", "/api/query/saved", query)
        service.admin("POST", "/api/users", {"username": plain[:64], "password": "correct horse 9"})
    for model in (MARKUP, ENDLESS):
        body = f'{{"model": "{model}", "messages": []}}'.encode()
        headers = {"X-Ollama-Source": MARKUP, "Content-Type": "application/json", "User-Agent": MARKUP}
        service.fetch("POST", "/api/chat", body, headers)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_names_are_text_on_every_page_and_break_no_layout(
    visit: Visit, service: Service, hostile: None, width: int
) -> None:
    page = visit("/", width=width)
    alerts: list[str] = []

    def refuse(dialog: Dialog) -> None:
        alerts.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    for path in PAGES:
        page.goto(f"{visit.service.admin_url}/dashboard{path}")
        _there(page)
        assert page.locator("img[src=x]").count() == 0, path
        fits(page)
    servers = {one["name"]: one["id"] for one in service.admin("GET", "/api/servers")}
    users = {one["username"]: one["id"] for one in service.admin("GET", "/api/users")}
    drawers = [f"/models/{MARKUP}", "/sql?side=queries", "/settings?tab=notifications", "/models?tab=log", "/?as=rows"]
    drawers += [f"/?open={servers[name.removeprefix(chr(0x202E))[:128]]}" for name in NAMES]
    drawers += [f"/users?open={users[name]}" for name in ("root", MARKUP, ENDLESS[:64])]
    drawers += [f"/schedule?open={job['id']}" for job in service.admin("GET", "/api/scheduled-jobs")]
    for path in drawers:
        page.goto(f"{visit.service.admin_url}/dashboard{path}")
        _there(page)
        assert page.locator("img[src=x]").count() == 0, path
        fits(page)
    page.goto(f"{visit.service.admin_url}/dashboard/")
    _there(page)
    page.keyboard.press("Control+k")
    page.keyboard.type("img")
    expect(page.get_by_role("option").first).to_contain_text(MARKUP)
    page.keyboard.press("Escape")
    assert not alerts


def test_every_page_can_be_reloaded_and_left_by_back_and_forward(visit: Visit) -> None:
    page = visit("/")
    titles = []
    for path in PAGES:
        page.goto(f"{visit.service.admin_url}/dashboard{path}")
        _there(page)
        page.reload()
        _there(page)
        titles.append(page.title())
    assert len(set(titles)) == len(PAGES)
    page.go_back()
    expect(page).to_have_title(titles[-2])
    page.go_forward()
    expect(page).to_have_title(titles[-1])


def test_an_address_that_leads_nowhere_says_so_and_leads_back(visit: Visit) -> None:
    page = visit("/no-such-page/at/all?x=%E0%A4%A")
    expect(page.locator("main")).to_contain_text(re.compile("no such page"))
    page.locator("main").get_by_role("link").first.click()
    _there(page)
    expect(page).to_have_title(re.compile("Fleet"))


def test_control_killed_while_a_page_is_open_comes_back_by_itself(visit: Visit) -> None:
    visit.expect(r"Failed to load resource|ERR_")
    page = visit("/")
    assert visit.service.process is not None
    control = next(pid for pid, what in children(visit.service.process.pid) if "control" in what)
    os.kill(control, signal.SIGKILL)
    expect(page.get_by_role("status", name="Connection: Live")).to_be_hidden()
    expect(page.get_by_role("status", name="Connection: Live")).to_be_visible(timeout=30_000)
    expect(page.get_by_text("big", exact=True).first).to_be_visible()
