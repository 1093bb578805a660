"""Trying a server out: nothing is kept, nobody else's connections are touched, and what failed is said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from control_plane import Control

from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.testing.fakes import Fake, Profile


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with Fake(Profile(models=("phi:latest",), api_key="server-key")) as fake:
        yield fake


def outcomes(trial: dict[str, Any]) -> dict[str, bool]:
    return {step["name"]: step["ok"] for step in trial["steps"]}


async def test_a_server_that_is_not_in_the_fleet_is_tried_and_says_hello(control: Control, fake: Fake) -> None:
    admin = await control.admin()
    asked = {"url": fake.url, "apiKey": "server-key", "model": "phi:latest"}
    trial = (await admin.post("/api/servers/test", json=asked)).json()
    assert trial["ok"], trial
    assert outcomes(trial) == {"address": True, "connect": True, "models": True, "answer": True}
    assert (trial["kind"], trial["models"]) == ("ollama", ["phi:latest"])
    assert trial["version"]
    assert trial["answer"]
    assert await control.services.server_entries() == []
    assert control.caller._clients == {}
    as_openai = (await admin.post("/api/servers/test", json={**asked, "kind": "openai"})).json()
    assert (as_openai["ok"], as_openai["kind"]) == (True, "openai")


async def test_what_failed_is_said_and_the_rest_is_not_tried(control: Control, fake: Fake) -> None:
    admin = await control.admin()

    async def tried(**asked: Any) -> dict[str, Any]:
        answer = await admin.post("/api/servers/test", json=asked)
        assert answer.status_code == 200, answer.text
        trial: dict[str, Any] = answer.json()
        assert not trial["ok"]
        return trial

    wrong_key = await tried(url=fake.url, apiKey="wrong", model="phi:latest")
    assert outcomes(wrong_key) == {"address": True, "connect": False}
    assert "key" in wrong_key["steps"][-1]["detail"]
    unknown = await tried(url=fake.url, apiKey="server-key", model="nobody-has-this")
    assert outcomes(unknown)["answer"] is False
    assert "not found" in unknown["steps"][-1]["detail"]
    assert outcomes(await tried(url="http://127.0.0.1:9")) == {"address": True, "connect": False}
    for url in ("http://169.254.169.254", "ftp://x", "http://localhost:11434"):
        assert outcomes(await tried(url=url)) == {"address": False}, url


async def test_a_server_of_the_fleet_is_tried_as_it_is(control: Control, fake: Fake) -> None:
    admin = await control.admin()
    port = httpx.URL(fake.url).port
    assert port
    known = Backend(name="box", id=7, column=0, port=port, api_key="server-key", enabled=False)
    control.fleet.seen = [(known, BackendState())]
    assert (await admin.post("/api/servers/7/test")).json()["ok"]
    assert (await admin.post("/api/servers/7/test", json={"model": "phi:latest"})).json()["answer"]
    assert (await admin.post("/api/servers/8/test")).status_code == 404
    assert (await admin.post("/api/servers/7/test", json={"model": 5})).status_code == 400
    assert (await admin.post("/api/servers/test", json={"model": "phi"})).status_code == 400


async def test_trying_is_for_administrators_and_bounded(control: Control) -> None:
    """A-23: who may not add a server may not try one either."""
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    for path in ("/api/servers/test", "/api/servers/1/test"):
        assert (await bob.post(path, json={"url": "http://127.0.0.1:9"})).status_code == 403
    control.services.trials = 8
    assert (await admin.post("/api/servers/test", json={"url": "http://127.0.0.1:9"})).status_code == 429
