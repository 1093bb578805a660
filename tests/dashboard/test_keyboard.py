"""Without a pointer: every control of every page is reached, seen and named; what opens holds the focus and gives it
back.
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page

from fleetproxy.testing.service import Service
from tests.dashboard.kit import PHONE, ROOT, Visit, expect, live

PAGES = re.findall(
    r"^ +path: '([^']+)'", (ROOT / "dashboard/src/shell/pages.ts").read_text().split("ELSEWHERE")[0], re.MULTILINE
)
#: More stops than any page has.
MOST_STOPS = 150

#: Remembers every stop of the focus: what it is called, whether it is in sight, and whether it shows its focus.
_WATCH = """() => {
    const shows = (element) => {
        // A control may be drawn by what is around it or beside it: a switch's track, a segment's label.
        const drawn = [element, element.parentElement, element.nextElementSibling, element.closest('label')]
        return drawn.some((one) => {
            if (!one) return false
            const style = getComputedStyle(one)
            return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0
        })
    }
    window.stops = []
    addEventListener('focusin', ({ target }) => {
        const box = (target.closest('label') ?? target).getBoundingClientRect()
        const name = target.getAttribute('aria-label') ?? target.labels?.[0]?.innerText ?? target.innerText
        window.stops.push({
            target,
            what: `${target.tagName.toLowerCase()} ${(name ?? '').trim().slice(0, 40)}`,
            named: Boolean((name ?? '').trim() || target.getAttribute('aria-labelledby') || target.title),
            inSight: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
            shown: shows(target),
        })
    })
}"""
#: What could be used and was never reached. Of tabs, radio buttons and rows one is a stop, and arrows lead to the rest.
_MISSED = """() => {
    const reached = new Set(window.stops.map((one) => one.target))
    const all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
    return all
        .filter((one) => one.tabIndex >= 0 && !one.disabled && one.checkVisibility({ visibilityProperty: true }))
        .filter((one) => !(one.type === 'radio' && !one.checked))
        .filter((one) => !reached.has(one))
        .map((one) => one.outerHTML.slice(0, 160))
}"""
_WANTED = {"named": "name", "shown": "ring", "inSight": "place in sight"}
_STOPS = "() => window.stops.map(({ target, ...told }) => told)"


@pytest.fixture(scope="module")
def furnished(service: Service, cookie: str) -> None:
    """A job, a kept query and a key: rows of every kind."""
    job = {"name": "nightly", "cronExpression": "0 3 * * *", "targetModel": "phi", "sourceIdentifier": "test"}
    service.admin("POST", "/api/scheduled-jobs", job)
    service.admin("POST", "/api/query/saved", {"name": "one", "sql": "SELECT 1", "shared": False})
    service.fetch("POST", "/api/chat", b'{"model": "phi", "messages": []}', {"Content-Type": "application/json"})


def walk(page: Page) -> list[str]:
    """Tab from the top to the end; what is wrong with the stops on the way."""
    page.evaluate(_WATCH)
    page.evaluate("() => document.activeElement?.blur()")
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        if page.evaluate("() => window.stops.length > 1 && window.stops.at(-1).target === window.stops[0].target"):
            break
    else:
        return [f"no way out after {MOST_STOPS} stops"]
    wrong = []
    for stop in page.evaluate(_STOPS):
        lacks = [word for key, word in _WANTED.items() if not stop[key]]
        if lacks:
            wrong.append(f"{stop['what']}: no {', no '.join(lacks)}")
    return wrong + [f"never reached: {one}" for one in page.evaluate(_MISSED)]


@pytest.mark.parametrize("path", [*PAGES, "/?as=rows", "/settings?tab=notifications", "/requests?as=history"])
def test_every_control_is_reached_in_turn_named_and_seen(visit: Visit, furnished: None, path: str) -> None:
    page = visit(path)
    page.wait_for_function("() => !document.querySelector('.skeleton')")
    assert walk(page) == []


def _inside(page: Page, dialog: Locator, presses: int = 12) -> None:
    """The focus is in a dialog, and stays there; the browser's own bar, which tells of nothing, may be on the way."""
    inside = "(one) => one.contains(document.activeElement)"
    assert dialog.evaluate(inside)
    for _ in range(presses):
        page.keyboard.press("Tab")
        assert dialog.evaluate(f"(one) => ({inside})(one) || document.activeElement === document.body")


@pytest.mark.usefixtures("furnished")
@pytest.mark.parametrize(
    ("path", "opener", "title", "first"),
    [
        ("/", "Connect", "Connect a client", ""),
        ("/", "Add server", "Add a server", "Name"),
        ("/requests?as=history", "Custom", "Period", ""),
        ("/sql", "Keep", "Keep this query", "Name"),
        ("/schedule", "Open slots", "Open slots", "Model"),
        ("/schedule", "Discover", "Jobs of containers", ""),
        ("/schedule", "New job", "New job", "Name"),
        ("/models", "Pull", "Pull a model", "Model"),
        ("/users", "New user", "New user", "Username"),
        ("/settings", "Add server", "Add a server", "Name"),
    ],
)
def test_a_dialog_holds_the_focus_and_gives_it_back(
    visit: Visit, path: str, opener: str, title: str, first: str
) -> None:
    page = visit(path)
    button = page.get_by_role("main").get_by_role("button", name=opener, exact=True)
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name=title)
    expect(dialog).to_be_visible()
    if first:
        expect(dialog.get_by_label(first)).to_be_focused()
    _inside(page, dialog)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()


def test_palette_and_sheet_are_opened_from_anywhere_and_lead_back(visit: Visit, furnished: None) -> None:
    page = visit("/models")
    search = page.get_by_role("searchbox")
    search.focus()
    page.keyboard.press("Control+k")
    palette = page.get_by_role("dialog", name="Command palette")
    expect(palette).to_be_visible()
    _inside(page, palette, 4)
    page.keyboard.press("Escape")
    expect(search).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    sheet = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(sheet).to_be_visible()
    _inside(page, sheet, 4)
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)


@pytest.mark.parametrize(
    ("words", "group", "path"), [("nightly", "Jobs", "/schedule"), ("root", "Users", "/users"), ("big", "Servers", "/")]
)
def test_the_palette_leads_to_what_other_pages_have(
    visit: Visit, furnished: None, words: str, group: str, path: str
) -> None:
    page = visit("/workers")
    page.keyboard.press("Control+k")
    page.keyboard.type(words)
    expect(page.get_by_role("option").first).to_contain_text(group)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name=words)).to_be_visible()
    assert page.url.split("?")[0].endswith(f"/dashboard{path}")


def test_a_row_opens_beside_its_table_and_the_next_follows(visit: Visit, furnished: None) -> None:
    page = visit("/models")
    rows = page.get_by_role("table", name="Models").get_by_role("row")
    page.keyboard.press("j")
    expect(rows.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    first = page.get_by_role("dialog")
    name = first.get_attribute("aria-labelledby")
    expect(first).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_role("dialog")).not_to_have_attribute("aria-labelledby", name or "")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(rows.nth(2)).to_be_focused()


def test_a_card_opens_its_drawer_and_gets_the_focus_back(visit: Visit) -> None:
    page = visit("/")
    card = page.get_by_role("button", name="big", exact=True)
    card.focus()
    page.keyboard.press("Enter")
    drawer = page.get_by_role("dialog", name="big")
    expect(drawer).to_be_visible()
    assert drawer.evaluate("(one) => one.contains(document.activeElement)")
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    expect(card).to_be_focused()


def test_on_a_phone_a_drawer_is_a_dialog_over_everything(visit: Visit) -> None:
    page = visit("/", width=PHONE, height=740)
    more = page.get_by_role("button", name="More")
    more.focus()
    page.keyboard.press("Enter")
    pages = page.get_by_role("dialog", name="Pages")
    expect(pages).to_be_visible()
    _inside(page, pages, 16)
    pages.get_by_role("link", name="Settings").focus()
    page.keyboard.press("Enter")
    expect(pages).to_have_count(0)
    expect(page).to_have_title(re.compile("Settings"))


def test_on_a_phone_a_form_is_on_top_of_the_drawer_it_belongs_to(visit: Visit) -> None:
    page = visit("/users", width=PHONE, height=740)
    page.get_by_role("button", name="Key for yourself").click()
    form = page.get_by_role("dialog", name="New API key for")
    expect(form.get_by_label("Label")).to_be_focused()
    form.get_by_label("Label").fill("pocket")
    form.get_by_role("button", name="Cancel").click()
    expect(form).to_have_count(0)


def test_a_menu_is_walked_by_arrows_and_left_by_escape_and_tab(visit: Visit) -> None:
    page = visit("/")
    button = page.get_by_role("button", name="Actions for big")
    for leave in ("Escape", "Tab"):
        button.focus()
        page.keyboard.press("Enter")
        items = page.get_by_role("menuitem")
        expect(items.first).to_be_focused()
        page.keyboard.press("ArrowDown")
        expect(items.nth(1)).to_be_focused()
        page.keyboard.press("End")
        expect(items.last).to_be_focused()
        page.keyboard.press(leave)
        expect(page.get_by_role("menu")).to_have_count(0)
        assert page.evaluate("() => document.activeElement !== document.body")


def test_tabs_and_segments_are_chosen_by_arrows(visit: Visit) -> None:
    page = visit("/settings")
    page.get_by_role("tab", name="Servers").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Notifications")).to_be_focused()
    expect(page.get_by_role("region", name="Your Telegram chat")).to_be_visible()
    page.goto(page.url.split("/dashboard")[0] + "/dashboard/requests")
    live(page)
    page.get_by_role("radio", name="Live").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="History")).to_be_checked()
    assert "as=history" in page.url
