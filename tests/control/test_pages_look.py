"""The pages beside the dashboard look like it."""

from __future__ import annotations

import re
from pathlib import Path

from fleetproxy.control import pages

MAIN = Path(__file__).resolve().parents[2] / "dashboard/src/main.ts"


def test_colours_have_one_place_which_the_dashboard_is_built_with() -> None:
    sheet = pages.folder("state")["tokens.css"].content.decode()
    light, dark = sheet.split("[data-theme='dark']")
    names = [set(re.findall(r"--([a-z0-9-]+): #", part)) for part in (light, dark)]
    assert len(names[0]) >= 20
    assert names[0] == names[1], "a colour of one theme alone"
    assert "import '../../fleetproxy/control/pages/state/tokens.css'" in MAIN.read_text()


def test_each_page_has_the_look_and_a_way_back() -> None:
    for folder, name in (("state", "state.html"), ("client", "client.html")):
        page = pages.folder(folder)[name].content.decode()
        assert '<a class="home" href="/dashboard/">' in page
        for asset in re.findall(r'<(?:link|script|img)\b[^>]*(?:href|src)="(/[^"]+)"', page):
            where, _, file = asset.rpartition("/")
            assert file in pages.folder({"/state": "state", "/api/client": "client"}[where]), asset
        assert page.index("look.js") < page.index("tokens.css") < page.index("look.css")
        assert page.count("aria-current") == 1


def test_sheets_say_no_colour_of_their_own() -> None:
    for folder, name in (("state", "state.css"), ("state", "look.css"), ("client", "client.css")):
        assert not re.search(r"#[0-9a-f]{3,8}\b", pages.folder(folder)[name].content.decode())
