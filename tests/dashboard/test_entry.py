"""Coming in and going out: first set-up, login, logout, a session that ends."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from fleetproxy.testing.service import Service
from tests.dashboard.kit import (
    ADMIN,
    PASSWORD,
    PHONE,
    THEMES,
    MakeService,
    Theme,
    Visit,
    accessible,
    expect,
    fits,
    live,
    log_in,
    repaint,
)


def test_the_first_visitor_makes_the_administrator_and_is_shown_how_to_get_a_fleet(
    browser: Browser, start: MakeService
) -> None:
    service = start({})
    visit = Visit(browser, service, None)
    page = visit("/", stranger=True)
    expect(page.get_by_role("heading", name="Set up fleetproxy")).to_be_visible()
    accessible(page)
    make = page.get_by_role("button", name="Make the administrator")
    page.get_by_label("Username").fill(ADMIN)
    page.get_by_label("Password", exact=False).first.fill("short")
    page.get_by_label("Password again").fill("short")
    expect(make).to_be_disabled()
    expect(page.get_by_text("5 more characters")).to_be_visible()
    page.get_by_label("Password", exact=False).first.fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    make.click()
    live(page)
    expect(page.get_by_role("heading", name="1. Give fleetproxy a server")).to_be_visible()
    for way in ("vLLM, llama.cpp …", "Worker that dials in", "Configuration file", "Just looking"):
        page.get_by_role("tab", name=way).click()
        expect(page.get_by_role("tabpanel").first.get_by_role("button").first).to_be_visible()
    expect(page.get_by_text(f"OPENAI_BASE_URL={service.url}/v1")).to_be_visible()
    for theme in THEMES:
        repaint(page, theme)
        accessible(page)
    page.set_viewport_size({"width": PHONE, "height": 740})
    fits(page)
    visit.close()


@pytest.mark.parametrize("theme", THEMES)
def test_login_leads_to_the_page_asked_for_and_logout_away_from_it(visit: Visit, theme: Theme) -> None:
    page = visit("/?show=trouble", theme=theme, stranger=True)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    accessible(page)
    log_in(page, password="not this one")
    expect(page.get_by_role("alert")).to_contain_text("Invalid credentials")
    accessible(page)
    log_in(page)
    live(page)
    expect(page.get_by_role("radio", name="Trouble")).to_be_checked()
    page.get_by_role("button", name=f"You are {ADMIN}").click()
    page.get_by_role("menuitem", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def test_a_session_that_ends_elsewhere_leads_to_the_login_in_every_tab(visit: Visit) -> None:
    one = visit("/", stranger=True)
    log_in(one)
    live(one)
    other = visit.tab(one.context)
    one.get_by_role("button", name=f"You are {ADMIN}").click()
    one.get_by_role("menuitem", name="Log out").click()
    for page in (one, other):
        expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def test_files_are_named_by_their_content_and_kept_the_first_page_is_asked_for_again(service: Service) -> None:
    status, headers, body = service.fetch("GET", "/dashboard/some/page?of=ours", headers={"Accept-Encoding": "gzip"})
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "text/html; charset=utf-8", "no-cache")
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    script = body.decode().split('crossorigin src="')[1].split('"')[0]
    again = service.fetch("GET", "/dashboard/", headers={"If-None-Match": headers["etag"]})
    assert (again[0], again[2]) == (304, b"")
    status, headers, packed = service.fetch("GET", script, headers={"Accept-Encoding": "gzip"})
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert len(packed) < 60_000  # the shell, far below the 150 KB it may have
    assert len(service.fetch("GET", script)[2]) > len(packed)
    assert service.fetch("GET", "/dashboard/assets/index-gone.js")[0] == 404
