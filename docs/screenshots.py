"""Takes pictures of every page of the dashboard, of the demo's fleet, and looks that none of them complains.

    python docs/screenshots.py [--into FOLDER] [--looks dark,light,phone] [--only ID,...]     (`just screenshots`)

Needs Chromium and Playwright, and no network. Writes `<page>-<look>.webp` into docs/screenshots; exit code 1 with what
the pages complained of: errors on the console, policies broken, anything asked of another host, no live stream.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "screenshots"
QUALITY = 80
PATIENCE_MS = 20_000
#: The demo's traffic comes in waves: by now there is some on every server.
WARM_UP_S = 25.0
#: Until what fades in has done so, and numbers have come twice.
SETTLE_MS = 900
#: Errors that are part of it: the login page asks who is there, and is answered so.
_WHO = "status of 401"


class Look(NamedTuple):
    """One way to look at a page."""

    theme: str
    width: int
    height: int


LOOKS = {
    "dark": Look("dark", 1280, 800),
    "light": Look("light", 1280, 800),
    "phone": Look("dark", 360, 740),
}
#: What is pictured beside the pages of the dashboard: id -> path at the service.
BESIDE = {"state": "/state", "api": "/api/client/"}


def pages() -> dict[str, str]:
    """The dashboard's pages, from its own table: id -> path at the service."""
    table = (DOCS.parent / "dashboard/src/shell/pages.ts").read_text().split("ELSEWHERE")[0]
    found = re.findall(r"^ +id: '([^']+)',\n +path: '([^']+)'", table, re.MULTILINE)
    return {name: f"/dashboard{path}" for name, path in found}


@contextmanager
def demo(*words: str) -> Iterator[tuple[str, str]]:
    """The demo while it runs: its address, and the password of its administrator `demo`."""
    command = [sys.executable, "-m", "fleetproxy", "demo", "--port", "0", *words]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            deadline_s = time.monotonic() + 60
            while not (found := _card(said)):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    said.seek(0)
                    raise SystemExit(f"the demo does not start:\n{said.read()}")
                time.sleep(0.1)
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def _card(said: Any) -> tuple[str, str] | None:
    said.seek(0)
    found = re.search(r"dashboard +(http://[^/\s]+)/\S* .*password: (\S+)\)", said.read())
    return (found[1], found[2]) if found else None


class Camera:
    """A browser at the demo, logged in by the form."""

    def __init__(self, browser: Any, url: str, password: str, settle_ms: int = SETTLE_MS) -> None:
        self._browser = browser
        self._url = url
        self._settle_ms = settle_ms
        #: None yet: what is pictured before the login is the login.
        self._cookies: list[Any] = []
        self.complaints: list[str] = []
        context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark")
        page = self._page(context)
        page.goto(f"{url}/dashboard/")
        page.get_by_label("Username").fill("demo")
        page.get_by_label("Password", exact=True).fill(password)
        self._entry = page
        self._context = context

    def log_in(self) -> None:
        self._entry.get_by_role("button", name="Log in").click()
        self._entry.get_by_role("status", name="Connection: Live").wait_for()
        self._cookies = self._context.cookies()
        self._context.close()

    def take(self, name: str, path: str, look: Look, target: Path) -> None:
        """One picture, when everything on it has come."""
        context = self._browser.new_context(
            viewport={"width": look.width, "height": look.height}, color_scheme=look.theme, reduced_motion="reduce"
        )
        context.add_cookies(self._cookies)
        try:
            page = self._page(context)
            page.goto(f"{self._url}{path}")
            if not self._cookies:
                page.get_by_role("button", name="Log in").wait_for()
            elif path.startswith("/dashboard"):
                page.get_by_role("status", name="Connection: Live").wait_for()
            page.wait_for_function("() => !document.querySelector('.skeleton, [aria-busy=true]')")
            page.wait_for_timeout(self._settle_ms)
            save(context, page, target)
            wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                self.complaints.append(f"{target.stem}: {wide} px wider than its window")
        except Exception as error:
            self.complaints.append(f"{target.stem}: {error}")
        finally:
            context.close()

    def _page(self, context: Any) -> Any:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", lambda message: self._complain(page, message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._complain(page, str(error)))
        page.on("request", lambda request: self._watch(page, request.url))
        return page

    def _complain(self, page: Any, text: str) -> None:
        if _WHO not in text:
            self.complaints.append(f"{page.url}: {text}")

    def _watch(self, page: Any, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != urlsplit(self._url).netloc:
            self._complain(page, f"asked elsewhere: {url}")


def save(context: Any, page: Any, target: Path) -> None:
    """As WebP, which Playwright itself does not write."""
    session = context.new_cdp_session(page)
    taken = session.send("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})
    target.write_bytes(base64.b64decode(taken["data"]))


def take_all(into: Path, looks: list[str], only: set[str], *, warm_up_s: float, settle_ms: int) -> list[str]:
    """Every picture asked for; what was complained of."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - the list of pages needs no browser

    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit("no chromium here: apt-get install chromium")
    into.mkdir(parents=True, exist_ok=True)
    with demo("--seed", "3") as (url, password), sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        camera = Camera(browser, url, password, settle_ms)

        def take(name: str, path: str) -> None:
            for look in looks if not only or name in only else ():
                camera.take(name, path, LOOKS[look], into / f"{name}-{look}.webp")

        take("login", "/dashboard/")
        camera.log_in()
        time.sleep(warm_up_s)
        for name, path in {**pages(), **BESIDE}.items():
            take(name, path)
        browser.close()
    return camera.complaints


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--into", type=Path, default=FOLDER)
    options.add_argument("--looks", default=",".join(LOOKS))
    options.add_argument("--only", default="")
    options.add_argument("--warm-up", type=float, default=WARM_UP_S, metavar="S")
    options.add_argument("--settle", type=int, default=SETTLE_MS, metavar="MS")
    asked = options.parse_args()
    complaints = take_all(
        asked.into,
        asked.looks.split(","),
        set(filter(None, asked.only.split(","))),
        warm_up_s=asked.warm_up,
        settle_ms=asked.settle,
    )
    for complaint in complaints:
        sys.stderr.write(f"{complaint}\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
