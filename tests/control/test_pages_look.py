"""The pages beside the dashboard look like it."""

from __future__ import annotations

import re
from pathlib import Path

from fleetproxy.control import pages

TOKENS = Path(__file__).resolve().parents[2] / "dashboard/src/style/tokens.css"


def _names(sheet: str, theme: str) -> dict[str, str]:
    """Colours by name, of one theme."""
    dark = sheet.index("theme='dark'") if "theme='dark'" in sheet else sheet.index('theme="dark"')
    part = sheet[dark:] if theme == "dark" else sheet[:dark]
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", part.partition("\n}")[0] if theme == "dark" else part))


def test_colours_are_those_of_the_dashboard() -> None:
    look = pages.folder("state")["look.css"].content.decode()
    for theme in ("light", "dark"):
        own, known = _names(look, theme), _names(TOKENS.read_text(), theme)
        assert len(own) >= 20
        assert own.items() <= known.items()


def test_each_page_has_the_look_and_a_way_back() -> None:
    for folder, name in (("state", "state.html"), ("client", "client.html")):
        page = pages.folder(folder)[name].content.decode()
        assert '<a class="home" href="/dashboard/">' in page
        for asset in re.findall(r'<(?:link|script|img)\b[^>]*(?:href|src)="(/[^"]+)"', page):
            where, _, file = asset.rpartition("/")
            assert file in pages.folder({"/state": "state", "/api/client": "client"}[where]), asset
        assert page.index("look.js") < page.index("look.css")
        assert page.count("aria-current") == 1


def test_sheets_say_no_colour_of_their_own() -> None:
    for folder, name in (("state", "state.css"), ("client", "client.css")):
        assert not re.search(r"#[0-9a-f]{3,8}\b", pages.folder(folder)[name].content.decode())
