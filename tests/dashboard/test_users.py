"""Users and their keys: made, used, limited, revoked, deleted; and what somebody who is no administrator sees."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import fetch
from tests.dashboard.kit import PHONE, THEMES, Theme, Visit, accessible, expect, fits, live, log_in

PASSWORD = "a password for ben"


def add(service: Service, name: str) -> int:
    """A user without any rights."""
    number: int = service.admin("POST", "/api/users", {"username": name, "password": PASSWORD})["id"]
    return number


def session_of(service: Service, name: str) -> str:
    """The cookie of a session of theirs."""
    body = json.dumps({"username": name, "password": PASSWORD}).encode()
    origin = {"Origin": service.admin_url, "Host": urlsplit(service.admin_url).netloc}
    status, headers, answer = fetch(service.admin_url, "POST", "/api/auth/login", body, origin)
    assert status == 200, answer
    return headers["set-cookie"].partition(";")[0].partition("=")[2]


def usable(service: Service, key: str) -> bool:
    """The fleet may be read with this key."""
    return service.fetch("GET", "/api/servers", headers={"Authorization": f"Bearer {key}"})[0] == 200


def make_key(page: Page, label: str) -> str:
    """By the form; the key that is shown."""
    form = page.get_by_role("dialog", name="New API key for")
    form.get_by_label("Label").fill(label)
    form.get_by_role("checkbox", name="Read").check()
    form.get_by_role("button", name="Make key").click()
    return page.get_by_role("group", name="The key", exact=True).inner_text()


@pytest.mark.parametrize("theme", THEMES)
def test_a_user_is_made_promoted_and_deleted(visit: Visit, service: Service, theme: Theme) -> None:
    page = visit("/users", theme=theme)
    expect(page.get_by_role("row", name="root")).to_contain_text("Administrator")
    accessible(page)
    page.get_by_role("button", name="New user").click()
    form = page.get_by_role("dialog", name="New user")
    form.get_by_label("Username").fill("carla")
    form.get_by_label("Password").fill("password123")
    accessible(page)
    visit.expect("status of 400")
    form.get_by_role("button", name="Add user").click()
    expect(form.get_by_role("alert")).to_contain_text("guessed first")
    form.get_by_label("Password").fill(PASSWORD)
    form.get_by_role("button", name="Add user").click()
    drawer = page.get_by_role("dialog", name="carla", exact=True)
    expect(drawer).to_contain_text("No key yet")
    drawer.get_by_role("switch", name="Administrator").press(" ")
    expect(page.get_by_text("carla is an administrator.")).to_be_visible()
    expect(page.get_by_role("row", name="carla")).to_contain_text("Administrator")
    accessible(page)
    assert next(one["isAdmin"] for one in service.admin("GET", "/api/users") if one["username"] == "carla")
    drawer.get_by_role("button", name="Delete user").click()
    asks = page.get_by_role("dialog", name="Delete carla?")
    expect(asks.get_by_role("button", name="Delete")).to_be_disabled()
    asks.get_by_label("Type carla to go on").fill("carla")
    asks.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("row", name="carla")).to_have_count(0)
    assert "carla" not in [one["username"] for one in service.admin("GET", "/api/users")]


def test_a_key_is_shown_once_works_as_it_says_and_is_revoked(visit: Visit, service: Service) -> None:
    number = add(service, "dora")
    page = visit(f"/users?open={number}")
    page.get_by_role("dialog", name="dora").get_by_role("button", name="New key").click()
    form = page.get_by_role("dialog", name="New API key for dora")
    form.get_by_role("combobox", name="Models").fill("phi, qwen3:8b")
    form.get_by_label("Requests a minute").fill("90")
    form.get_by_label("Expires").select_option(label="In 30 days")
    accessible(page)
    key = make_key(page, "laptop")
    assert usable(service, key)
    shown = page.get_by_role("dialog", name="The key “laptop”")
    for client, word in (("OpenAI", "from openai"), ("Ollama", "from ollama"), ("Anthropic", "from anthropic")):
        shown.get_by_role("tab", name=client).click()
        lines = shown.get_by_role("group", name=f"Lines for {client.lower()}")
        expect(lines).to_contain_text(word)
        expect(lines).to_contain_text(key)
        expect(lines).to_contain_text("phi")
    accessible(page)
    page.keyboard.press("Escape")
    expect(shown).to_contain_text("Have you kept it?")
    shown.get_by_role("button", name="I have kept it").click()
    expect(shown).to_have_count(0)
    entry = page.get_by_role("list", name="API keys").get_by_role("listitem")
    expect(entry).to_contain_text(key[:8])
    expect(entry).not_to_contain_text(key)
    expect(entry).to_contain_text("only phi:latest, qwen3:8b · 90 a minute")
    entry.get_by_role("button", name="Revoke laptop").click()
    page.get_by_role("dialog", name="Revoke laptop?").get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("The key laptop opens nothing any more.")).to_be_visible()
    assert not usable(service, key)
    service.admin("DELETE", f"/api/users/{number}")


def test_who_is_no_administrator_has_their_own_keys_and_password_and_nothing_that_fails(
    visit: Visit, browser: Browser, service: Service
) -> None:
    number = add(service, "ben")
    own = Visit(browser, service, session_of(service, "ben"))
    page = own("/users", width=PHONE, height=740)
    expect(page.get_by_role("region", name="Your account")).to_contain_text("ben")
    expect(page.get_by_role("table")).to_have_count(0)
    page.get_by_role("button", name="New key").click()
    fits(page)
    key = make_key(page, "phone")
    fits(page)
    accessible(page)
    page.get_by_role("button", name="I have kept it").click()
    expect(page.get_by_role("list", name="API keys")).to_contain_text("phone")
    assert usable(service, key)
    page.get_by_role("button", name="Change password").click()
    form = page.get_by_role("dialog", name="Change your password")
    form.get_by_label("Present password").fill("it is not this one")
    form.get_by_label("New password").fill("another password 9")
    form.get_by_label("The same again").fill("another password 8")
    expect(form.get_by_role("alert")).to_contain_text("different")
    form.get_by_label("The same again").fill("another password 9")
    own.expect("status of 403")
    form.get_by_role("button", name="Change password").click()
    expect(form.get_by_role("alert")).to_contain_text("current password is not right")
    form.get_by_label("Present password").fill(PASSWORD)
    form.get_by_role("button", name="Change password").click()
    expect(form).to_have_count(0)
    for key, title in (("s", "Schedule"), ("m", "Models"), ("w", "Workers"), ("t", "Settings"), ("f", "Fleet")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(page.get_by_role("heading", name=title, level=1)).to_be_visible()
        expect(page.get_by_role("main").locator(".page")).to_be_visible()
        expect(page.get_by_role("status", name=re.compile("Loading"))).to_have_count(0)
    fits(page)
    own.close()
    fresh = visit("/", stranger=True)
    log_in(fresh, "ben", "another password 9")
    live(fresh)
    fresh.close()
    service.admin("DELETE", f"/api/users/{number}")
