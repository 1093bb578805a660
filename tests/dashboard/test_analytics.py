"""Analytics: charts that are zoomed, told apart and taken along; what is beside them."""

from __future__ import annotations

import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import until
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits

#: A function: an expression would be evaluated anew for each look, which the pages' policy forbids.
EVENTS_ARE_IN = (
    "() => performance.getEntriesByType('resource').some(one => one.name.includes('server-events') && one.responseEnd)"
)


@pytest.fixture(scope="module")
def traffic(service: Service) -> Service:
    """A little of everything."""
    for model, times in (("llama3.2:3b", 4), ("qwen3:8b", 2), ("nobody-has-this", 1)):
        for _ in range(times):
            body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
            service.fetch("POST", "/api/chat", body)
    service.rows("select count(*) from requests")
    return service


def query(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def drag(page: Page, chart: str) -> None:
    """Draw a stretch in the middle of a chart, when everything has come that moves it or is drawn on it."""
    for part in ("Most requests", "Errors by status", "How they ended", "Models in memory"):
        expect(page.get_by_role("list", name=part)).to_be_visible()
    page.wait_for_function(EVENTS_ARE_IN)
    page.get_by_role("figure", name=chart, exact=True).scroll_into_view_if_needed()
    box = page.get_by_role("figure", name=chart, exact=True).locator(".u-over").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.4, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, y, steps=4)
    page.mouse.up()


@pytest.mark.parametrize("theme", THEMES)
def test_every_part_has_numbers_and_words(traffic: Service, visit: Visit, theme: Theme) -> None:
    page = visit("/analytics?range=15m", theme=theme)
    for chart in ("Requests", "Errors", "Time to first token", "Time between tokens", "Duration", "Retries"):
        expect(page.get_by_role("figure", name=chart, exact=True)).to_be_visible()
    expect(page.get_by_text("Met in memory")).to_be_visible()
    expect(page.get_by_role("list", name="Most requests")).to_contain_text("llama3.2:3b")
    expect(page.get_by_role("list", name="Errors by status")).to_contain_text("404 No such model or path")
    expect(page.get_by_role("list", name="How they ended")).to_contain_text("Answered")
    expect(page.get_by_role("list", name="Routing")).to_contain_text("Loaded from disk")
    expect(page.get_by_role("list", name="Models in memory")).to_contain_text("qwen3:8b")
    accessible(page)


def test_a_stretch_drawn_in_a_chart_is_the_new_period_and_a_double_click_leads_back(
    traffic: Service, visit: Visit
) -> None:
    page = visit("/analytics?range=1h")
    expect(page.get_by_role("figure", name="Requests", exact=True).locator(".u-over")).to_be_visible()
    with page.expect_request(lambda request: "/api/analytics/series" in request.url) as asked:
        drag(page, "Requests")
    begin, end = query(page)["range"].split("..")
    assert begin < end
    asked_for = {name: values[0] for name, values in parse_qs(urlsplit(asked.value.url).query).items()}
    assert asked_for["from"][:16] == begin[:16]
    expect(page.get_by_role("button", name="Leave the zoom")).to_be_visible()
    page.reload()
    expect(page.get_by_role("figure", name="Requests", exact=True)).to_be_visible()
    assert query(page)["range"] == f"{begin}..{end}"
    page.go_back()
    expect(page.get_by_role("radio", name="1 h")).to_be_checked()
    drag(page, "Duration")
    expect(page.get_by_role("button", name="Leave the zoom")).to_be_visible()
    page.get_by_role("figure", name="Duration", exact=True).locator(".u-over").dblclick()
    expect(page.get_by_role("radio", name="1 h")).to_be_checked()


def test_a_charts_numbers_are_a_table_and_a_file(traffic: Service, visit: Visit, tmp_path: Path) -> None:
    page = visit("/analytics?range=15m&by=model")
    chart = page.get_by_role("figure", name="Requests", exact=True)
    expect(chart.get_by_role("list", name="Series")).to_contain_text("llama3.2:3b")
    with page.expect_download() as download:
        chart.get_by_role("button", name="Download as CSV: Requests").click()
    download.value.save_as(tmp_path / "requests.csv")
    rows = list(csv.DictReader((tmp_path / "requests.csv").read_text().splitlines()))
    assert len(rows) >= 15
    assert sum(float(row["llama3.2:3b (count)"] or 0) for row in rows) == 4
    chart.get_by_role("button", name="Show as a table").click()
    expect(chart.get_by_role("table").get_by_role("columnheader", name="qwen3:8b")).to_be_visible()
    accessible(page)


class _Versioned(BaseHTTPRequestHandler):
    """An Ollama server with a version and a model that is never in memory."""

    version = "0.12.3"

    def do_GET(self) -> None:
        models = [{"name": "hers:latest"}] if self.path == "/api/tags" else []
        self._answer({"version": self.version, "models": models, "data": []})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer({"model": "hers:latest", "message": {"role": "assistant", "content": "Hi"}, "done": True})

    def _answer(self, said: object) -> None:
        answer = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def test_a_servers_new_version_is_a_mark_on_the_charts(service: Service, visit: Visit) -> None:
    class Handler(_Versioned):
        """With a version of its own, which is changed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as ollama:
        thread = threading.Thread(target=ollama.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{ollama.server_port}"
        number = service.admin("POST", "/api/servers", {"name": "gpu1", "url": url})["id"]

        def shown() -> bool:
            return any(one["version"] == Handler.version for one in service.admin("GET", "/api/servers"))

        def told() -> bool:
            return any(one["eventType"] == "deploy" for one in service.admin("GET", "/api/server-events"))

        try:
            until(shown, 10, "gpu1 is polled")
            Handler.version = "0.13.0"
            until(told, 20, "the deploy is written down")
            body = json.dumps({"model": "hers", "messages": [{"role": "user", "content": "hello"}], "stream": False})
            assert service.fetch("POST", "/api/chat", body.encode())[0] == 200
            service.rows("select count(*) from requests")
            page = visit("/analytics?range=15m&server=gpu1")
            chart = page.get_by_role("figure", name="Requests", exact=True)
            plot = chart.get_by_role("img")
            expect(plot).to_be_visible()
            page.wait_for_function(EVENTS_ARE_IN)
            for _ in range(16):
                plot.press("ArrowLeft")
                if chart.locator(".tip em").count():
                    break
            expect(chart.locator(".tip em")).to_have_text("deploy gpu1: Ollama 0.12.3 -> 0.13.0")
        finally:
            service.admin("DELETE", f"/api/servers/{number}")
            ollama.shutdown()
            thread.join()


def test_groups_filters_and_scale_are_in_the_address(traffic: Service, visit: Visit) -> None:
    page = visit("/analytics?range=15m")
    page.get_by_label("Told apart").select_option("By model")
    series = page.get_by_role("figure", name="Time to first token, p95").get_by_role("list", name="Series")
    series.get_by_role("button", name="qwen3:8b").click()
    expect(series.get_by_role("button", name="qwen3:8b")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("figure", name="Time to first token, p95").get_by_role("button", name="Linear").click()
    expect(page.get_by_role("figure", name="Duration, p95").get_by_role("button", name="Log")).to_be_visible()
    page.get_by_role("button", name="Only qwen3:8b").or_(
        page.get_by_role("list", name="Most requests").get_by_role("button", name="qwen3:8b")
    ).first.click()
    expect(page.get_by_label("Model", exact=True)).to_have_value("qwen3:8b")
    expect(page.get_by_role("list", name="Most requests")).not_to_contain_text("llama3.2:3b")
    assert query(page) == {"range": "15m", "by": "model", "log": "1", "model": "qwen3:8b"}
    page.reload()
    expect(page.get_by_role("list", name="Most requests")).to_contain_text("qwen3:8b")
    expect(page.get_by_role("list", name="Most requests")).not_to_contain_text("llama3.2:3b")
    page.get_by_label("User").fill("nobody at all")
    page.get_by_label("User").press("Enter")
    expect(page.get_by_role("heading", name="Nobody asked in this time")).to_be_visible()
    accessible(page)


def test_the_stays_of_models_are_a_table_too(traffic: Service, visit: Visit) -> None:
    page = visit("/analytics?range=15m")
    page.get_by_role("button", name="Show the stays as a table").click()
    table = page.get_by_role("table", name="Stays of models in memory")
    expect(table.get_by_role("row", name="llama3.2:3b").first).to_contain_text("still there")


def test_analytics_on_a_phone(traffic: Service, visit: Visit) -> None:
    page = visit("/analytics?range=15m&by=model", width=PHONE, height=740)
    expect(page.get_by_role("list", name="Models in memory")).to_contain_text("qwen3:8b")
    fits(page)
    accessible(page)


def test_charts_that_cannot_be_had_say_why_and_how_to_go_on(traffic: Service, visit: Visit) -> None:
    visit.expect("status of 503")
    page = visit("/", wait=True)
    page.route(
        "**/api/analytics/series*", lambda route: route.fulfill(status=503, json={"error": "the store is starting"})
    )
    page.get_by_role("link", name="Analytics").click()
    expect(page.get_by_role("heading", name="Could not load the charts")).to_be_visible()
    expect(page.get_by_text("The store is starting.").first).to_be_visible()
    accessible(page)
    page.unroute("**/api/analytics/series*")
    page.get_by_role("button", name="Retry").first.click()
    expect(page.get_by_role("figure", name="Requests", exact=True)).to_be_visible()
