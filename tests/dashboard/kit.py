"""What the dashboard's tests are written with: a browser that talks to nobody else, and everything it complains of.

    def test_x(visit: Visit) -> None:
        page = visit("/", theme="light", width=360)       # logged in as the administrator
        page.get_by_role("button", name="Drain").click()
        accessible(page)                                    # axe: nothing serious

Every console error, page error, refused policy and request to elsewhere fails the test that provoked it, unless it is
`visit.expect(...)`ed. Playwright's locators wait by themselves; no test sleeps.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, fetch

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ADMIN, PASSWORD = "root", "correct horse 7"
#: Widths the layout is made for: a phone, a desk.
PHONE, DESK = 360, 1280
THEMES: tuple[Theme, ...] = ("dark", "light")
Theme = Literal["dark", "light"]
#: How long a locator waits. The fleet is polled every 0.5 s, frames come twice a second.
PATIENCE_MS = 10_000
#: Asked by the login page, and answered so by the fleet manager's document.
_WHO = re.compile(r"status of 401")
_HARMFUL = frozenset({"serious", "critical"})

expect.set_options(timeout=PATIENCE_MS)


def build_if_stale() -> None:
    """Build the dashboard when its source is newer than what is built; once, however many test processes there are."""
    with (ROOT / "dashboard/.build-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([sys.executable, str(ROOT / "hatch_build.py"), "--if-stale"], check=True)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for some tests. Not for a whole test process: Playwright's loop would be in asyncio tests' way."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """Opens pages of one service; knows what each of them complained of."""

    def __init__(self, browser: Browser, service: Service, cookie: str | None) -> None:
        self._browser = browser
        self.service = service
        self._cookie = cookie
        self._expected: list[re.Pattern[str]] = []
        self.contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    def __call__(
        self,
        path: str = "/",
        *,
        theme: Theme = "dark",
        width: int = DESK,
        height: int = 900,
        stranger: bool = False,
        wait: bool = True,
        **options: Any,
    ) -> Page:
        """A page at this path inside the dashboard, in a browser of its own; as the administrator, or as nobody.

        `wait` until the page is there and the stream is live.
        """
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce", **options
        )
        context.set_default_timeout(PATIENCE_MS)
        self.contexts.append(context)
        if self._cookie and not stranger:
            context.add_cookies([{"name": "fleet_session", "value": self._cookie, "url": self.service.url}])
        return self.tab(context, path, wait=wait and not stranger)

    def tab(self, context: BrowserContext, path: str = "/", *, wait: bool = True) -> Page:
        """One more tab of a browser."""
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"{error}"))
        page.on("request", self._watch)
        page.goto(f"{self.service.admin_url}/dashboard{path}")
        if wait:
            live(page)
        return page

    def expect(self, pattern: str) -> None:
        """This test provokes such a complaint on purpose."""
        self._expected.append(re.compile(pattern))

    def close(self) -> None:
        """Close every browser; AssertionError with what was complained of."""
        for context in self.contexts:
            context.close()
        known = [_WHO, *self._expected]
        unexpected = [text for text in self.complaints if not any(pattern.search(text) for pattern in known)]
        assert not unexpected, unexpected

    def _watch(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != urlsplit(self.service.admin_url).netloc:
            self.complaints.append(f"asked elsewhere: {request.url}")


def live(page: Page) -> None:
    """Wait until the stream is connected."""
    expect(page.get_by_role("status", name="Connection: Live")).to_be_visible()


def log_in(page: Page, username: str = ADMIN, password: str = PASSWORD) -> None:
    """By the form, as a person does."""
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Log in").click()


def set_up(service: Service) -> str:
    """Make the first administrator by the API; the cookie of a session."""
    body = f'{{"username": "{ADMIN}", "password": "{PASSWORD}"}}'.encode()
    origin = {"Origin": service.admin_url, "Host": urlsplit(service.admin_url).netloc}
    status, headers, answer = fetch(service.admin_url, "POST", "/api/auth/setup", body, origin)
    assert status == 200, answer
    found = re.search(r"fleet_session=([^;]+)", headers["set-cookie"])
    assert found is not None
    return found[1]


def accessible(page: Page) -> None:
    """axe finds nothing serious or critical on the page as it is now."""
    script = ROOT / "dashboard/node_modules/axe-core/axe.min.js"
    assert script.is_file(), "axe is not there: run `npm ci` in dashboard/"
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(script.read_text())
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    serious = [
        f"{one['id']} ({one['impact']}): {one['help']}: "
        + "; ".join(f"{node['html'][:200]} {_why(node)}" for node in one["nodes"][:4])
        for one in found
        if one["impact"] in _HARMFUL
    ]
    assert not serious, "\n".join(serious)


def _why(node: dict[str, Any]) -> str:
    return " ".join(str(node.get("failureSummary", "")).split())[:240]


def repaint(page: Page, theme: Theme) -> None:
    """The system's theme changes while the page is open."""
    page.emulate_media(color_scheme=theme)
    expect(page.locator("html")).to_have_attribute("data-theme", theme)


def fits(page: Page) -> None:
    """The page does not scroll sideways."""
    inside, window = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert inside <= window, f"{inside} px wide in a window of {window}"


MakeFake = Callable[..., FakeProcess]
MakeService = Callable[..., Service]

__all__ = [
    "ADMIN",
    "CHROMIUM",
    "DESK",
    "PASSWORD",
    "PHONE",
    "THEMES",
    "MakeFake",
    "MakeService",
    "Theme",
    "Visit",
    "accessible",
    "build_if_stale",
    "chromium",
    "expect",
    "fits",
    "live",
    "log_in",
    "repaint",
    "set_up",
]
