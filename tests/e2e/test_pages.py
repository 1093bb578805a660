"""The pages we serve, in a real browser: they work under their own policy, and names stay text."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess
from tests.e2e.stock_agent import StockAgent

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: As harmful as a name can try to be; it shows itself by a word that is nowhere else.
HOSTILE = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>&lt;b&gt;"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


SHOWN = ("Language models", "box &lt;i&gt;", "llama3.2:3b", "&lt;img src=x onerror", ">live<", ">ready<")


def look(folder: Path, url: str) -> tuple[str, list[str]]:
    """The page as the browser has it after its scripts ran, and what it complained about."""
    words = [
        BROWSER or "",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'browser'}",
        "--virtual-time-budget=6000",
        "--enable-logging=stderr",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
    complaints = [
        line for line in done.stderr.splitlines() if "CONSOLE" in line and re.search("Refused|Error|violat", line)
    ]
    return done.stdout, complaints


def test_the_state_page_shows_everything_as_text(
    tmp_path: Path, fake: Callable[..., FakeProcess], start: Callable[..., Service]
) -> None:
    one = fake("one", models="llama3.2:3b", speed=0)
    service = start({"box <i>": one.url})
    with StockAgent(service.url, one.url, "w1", [HOSTILE], worker_name=HOSTILE, agent_config={"hostname": HOSTILE}):
        for _ in range(3):  # what the page shows first may be older than the worker
            page, complaints = look(tmp_path, f"{service.url}/state")
            if all(text in page for text in SHOWN):
                break
    assert complaints == []
    tables = [
        re.sub(r"(?s)<template.*?</template>", "", table) for table in re.findall(r"<table.*?</table>", page, re.DOTALL)
    ]
    assert {("hidden" in table.partition(">")[0], "<td" in table) for table in tables} == {(True, False), (False, True)}
    assert "pwned" not in page.partition("<title>")[2].partition("</title>")[0]
    assert page.count("<img") == page.count('<img src="/state/mark.svg"') == 1
    assert page.count("<script") == 2  # look.js and state.js
    for shown in SHOWN:
        assert shown in page, shown


def test_the_state_page_asks_for_the_key(
    tmp_path: Path, fake: Callable[..., FakeProcess], start: Callable[..., Service]
) -> None:
    one = fake("one", models="llama3.2:3b", speed=0)
    service = start({"box": one.url}, settings={"auth": {"api_key": "a-long-secret-key"}})
    page, complaints = look(tmp_path, f"{service.url}/state")
    assert [line for line in complaints if "401" not in line] == []
    form = re.search(r"<form[^>]*>", page)
    assert form is not None
    assert "hidden" not in form[0]
    assert "llama3.2:3b" not in page


def test_swagger_ui_reads_the_document_with_nothing_from_elsewhere(
    tmp_path: Path, fake: Callable[..., FakeProcess], start: Callable[..., Service]
) -> None:
    one = fake("one", models="llama3.2:3b", speed=0)
    service = start({"box": one.url})
    page, complaints = look(tmp_path, f"{service.url}/api/client/")
    assert complaints == []
    for shown in ("fleetproxy", "OAS", "dashboard: servers", "/api/llm"):
        assert shown in page, shown
    assert "Failed to load" not in page
