"""The settings: servers administered, notifications saved, masked and tried, switches, and how fleetproxy itself is."""

from __future__ import annotations

import json
import select
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Response

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits

TOKEN = "123456:AAbbCCddEEffGGhhIIjjKKllMMnnOOppQQ"


class Receiver(ThreadingHTTPServer):
    """Telegram and a webhook in one: takes everything, keeps what it was posted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.heard.append((self.path, json.loads(body)))
        self._answer()

    def _answer(self) -> None:
        answer = b'{"ok":true,"result":{}}'
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def service(built: None, fleet: dict[str, FakeProcess], folder: Path, receiver: Receiver) -> Iterator[Service]:
    """Its Telegram is the receiver."""
    servers = {name: {"url": fake.url, "max_concurrent": 4} for name, fake in fleet.items()}
    with Service(folder / "service", servers, settings={"telegram": {"api_url": receiver.url}}) as made:
        yield made


@pytest.mark.parametrize("theme", THEMES)
def test_a_server_is_added_tried_changed_and_removed(
    visit: Visit, service: Service, fleet: dict[str, FakeProcess], theme: Theme
) -> None:
    page = visit("/settings", theme=theme)
    row = page.get_by_role("row", name="twin")
    expect(page.get_by_role("row", name="big")).to_contain_text("the file")
    page.get_by_role("button", name="Add server").click()
    form = page.get_by_role("dialog", name="Add a server")
    form.get_by_label("Name").fill("twin")
    form.get_by_label("Address").fill(fleet["small"].url)
    form.get_by_role("button", name="Add", exact=True).click()
    expect(row).to_contain_text("Online")
    accessible(page)
    row.get_by_role("button", name="Actions for twin").click()
    page.get_by_role("menuitem", name="Test").click()
    trial = page.get_by_role("dialog", name="Test twin")
    trial.get_by_label("Ask a model").select_option(label="phi:latest")
    trial.get_by_role("button", name="Test").click()
    expect(trial.get_by_role("list", name="Test")).to_contain_text("phi:latest answered")
    expect(trial.get_by_role("blockquote")).not_to_be_empty()
    expect(trial.get_by_role("status", name="Pace")).to_contain_text("first token after")
    accessible(page)
    trial.get_by_role("button", name="Close").last.click()
    row.get_by_role("button", name="Actions for twin").click()
    page.get_by_role("menuitem", name="Change").click()
    change = page.get_by_role("dialog", name="Change twin")
    expect(change.get_by_role("button", name="Save")).to_be_disabled()
    change.get_by_label("Slots").fill("7")
    change.get_by_role("button", name="Save").click()
    expect(row).to_contain_text("7")
    row.get_by_role("button", name="Actions for twin").click()
    page.get_by_role("menuitem", name="Maintenance").click()
    expect(row).to_contain_text("Maintenance")
    row.get_by_role("button", name="Actions for twin").click()
    page.get_by_role("menuitem", name="Remove").click()
    asks = page.get_by_role("dialog", name="Remove twin?")
    asks.get_by_label("Type twin to go on").fill("twin")
    asks.get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
    assert [one["name"] for one in service.admin("GET", "/api/servers")] == ["big", "small"]


class Slow(ThreadingHTTPServer):
    """An Ollama server that says a word, and the rest when it is let."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SlowHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.go_on = threading.Event()
        #: Who asked has gone before the end.
        self.left = threading.Event()


class _SlowHandler(BaseHTTPRequestHandler):
    server: Slow

    def do_GET(self) -> None:
        answer = b'{"version":"0.14.3","models":[{"name":"phi:latest"}],"data":[{"id":"phi:latest"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"response":"Good "}\n')
        while not self.server.go_on.wait(0.02):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1):
                self.server.left.set()
                return
        end = b'{"response":"morning","done":true,"eval_count":20,"eval_duration":1000000000}\n'
        self.wfile.write(end)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def slow() -> Iterator[Slow]:
    with Slow() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.go_on.set()
        made.shutdown()
        thread.join()


def test_a_model_is_read_while_it_still_speaks(visit: Visit, slow: Slow) -> None:
    page = visit("/settings")
    page.get_by_role("button", name="Add server").click()
    form = page.get_by_role("dialog", name="Add a server")
    form.get_by_label("Address").fill(slow.url)
    test = form.get_by_role("button", name="Test")
    test.click()
    form.get_by_label("Ask a model").select_option(label="phi:latest")
    test.click()
    # It is on the page, and the server has not said the rest.
    expect(form.get_by_role("blockquote")).to_have_text("Good")
    expect(form.get_by_role("status", name="Pace")).to_have_count(0)
    slow.go_on.set()
    expect(form.get_by_role("blockquote")).to_have_text("Good morning")
    expect(form.get_by_role("status", name="Pace")).to_contain_text("20 tokens, 20 tok/s")
    accessible(page)
    slow.go_on.clear()
    test.click()
    expect(form.get_by_role("blockquote")).to_have_text("Good")
    form.get_by_role("button", name="Close").first.click()
    assert slow.left.wait(10), "the server still speaks to nobody"


def test_what_the_file_defines_is_changed_in_the_file(visit: Visit) -> None:
    page = visit("/settings")
    page.get_by_role("row", name="big").get_by_role("button", name="Actions for big").click()
    expect(page.get_by_role("menuitem", name="Change (in the file)")).to_be_disabled()
    expect(page.get_by_role("menuitem", name="Remove (in the file)")).to_be_disabled()


def test_a_chat_is_saved_masked_tried_and_forgotten(visit: Visit, receiver: Receiver) -> None:
    receiver.heard.clear()
    page = visit("/settings?tab=notifications")
    box = page.get_by_role("region", name="Your Telegram chat")
    box.get_by_label("Bot token").fill(TOKEN)
    box.get_by_label("Chat id").fill("42")
    box.get_by_role("button", name="Save").click()
    expect(box.get_by_label("Bot token")).to_have_value("****" + TOKEN[-8:])
    box.get_by_role("button", name="Send a test").click()
    expect(page.get_by_text("Telegram has taken the test message.")).to_be_visible()
    assert any("tries whether notices come through" in body["text"] for _, body in receiver.heard)
    box.get_by_label("Chat id").fill("43")
    box.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The chat was saved, and greeted.").first).to_be_visible()
    page.reload()
    expect(box.get_by_label("Chat id")).to_have_value("43")
    expect(box.get_by_label("Bot token")).to_have_value("****" + TOKEN[-8:])
    box.get_by_role("button", name="Forget").click()
    page.get_by_role("dialog", name="Forget the chat?").get_by_role("button", name="Forget").click()
    expect(box.get_by_label("Bot token")).to_have_value("")


def test_what_one_hears_of_is_saved_with_each_tick(visit: Visit) -> None:
    page = visit("/settings?tab=notifications")
    box = page.get_by_role("region", name="What you hear of")
    box.get_by_label("Offline: every server").check()
    box.get_by_label("Reboot: big").check()
    expect(box.get_by_label("Offline: small")).to_be_checked()

    def last(answer: Response) -> bool:
        """Ticks are saved one after the other: this one is the last."""
        asked = answer.request.post_data_json if answer.request.method == "PUT" else []
        return any(not one["notifyOffline"] for one in asked) and answer.ok

    with page.expect_response(last):
        box.get_by_label("Offline: big").uncheck()
    page.reload()
    expect(box.get_by_label("Offline: small")).to_be_checked()
    expect(box.get_by_label("Offline: big")).not_to_be_checked()
    expect(box.get_by_label("Reboot: big")).to_be_checked()
    expect(box.get_by_label("Offline: every server")).not_to_be_checked()


@pytest.mark.parametrize("theme", THEMES)
def test_the_webhook_is_saved_its_secret_never_shown_and_tried(
    visit: Visit, receiver: Receiver, service: Service, theme: Theme
) -> None:
    receiver.heard.clear()
    page = visit("/settings?tab=notifications", theme=theme)
    box = page.get_by_role("region", name="Webhook of the fleet")
    box.get_by_label("URL").fill(f"{receiver.url}/hook")
    box.get_by_label("Secret").fill("hush hush")
    box.get_by_label("A job failed").check()
    accessible(page)
    box.get_by_role("button", name="Save").click()
    expect(box.get_by_label("Secret")).to_have_value("****")
    box.get_by_role("button", name="Post a test").click()
    expect(page.get_by_text("The webhook has taken the test.")).to_be_visible()
    assert [(path, body["notices"][0]["kind"]) for path, body in receiver.heard] == [("/hook", "test")]
    assert service.admin("GET", "/api/settings/webhook")["events"] == ["job"]
    box.get_by_label("URL").fill("http://127.0.0.1:9/gone")
    box.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The webhook was saved.").last).to_be_visible()
    box.get_by_role("button", name="Post a test").click()
    expect(page.get_by_text("The test did not arrive")).to_be_visible()
    box.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog", name="Remove the webhook?").get_by_role("button", name="Remove").click()
    expect(box.get_by_role("button", name="Post a test")).to_have_count(0)
    assert service.admin("GET", "/api/settings/webhook") is None


def test_switches_plugins_and_health(visit: Visit, service: Service) -> None:
    page = visit("/settings?tab=plugins", width=PHONE, height=740)
    switch = page.get_by_role("switch", name="Model management in other clients")
    switch.press(" ")
    expect(switch).to_be_checked()
    expect(page.get_by_role("region", name="Plugins")).to_contain_text("fleet-metrics")
    fits(page)
    accessible(page)
    page.get_by_role("tab", name="About").click()
    health = page.get_by_role("region", name="Health")
    expect(health).to_contain_text("Served")
    expect(health).to_contain_text("proxy-0")
    expect(page.get_by_role("link", name="API, to read and try")).to_have_attribute("href", "/api/client/")
    fits(page)
    accessible(page)
    page.get_by_role("tab", name="Notifications").click()
    expect(page.get_by_role("region", name="What you hear of")).to_be_visible()
    fits(page)
    page.get_by_role("tab", name="Servers").click()
    expect(page.get_by_role("row", name="big")).to_be_visible()
    fits(page)
    assert service.admin("GET", "/api/settings/fleet") == {"intelligent_management_enabled": True}
