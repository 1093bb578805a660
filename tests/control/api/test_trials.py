"""Trying a server out: nothing is kept, nobody else's connections are touched, and what failed is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from control_plane import Control

from fleetproxy.control.saying import Said
from fleetproxy.control.trial import Tell, Trial, Trier
from fleetproxy.control.trial import lines as lines_of
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


async def told(admin: httpx.AsyncClient, **asked: Any) -> list[dict[str, Any]]:
    accept = {"accept": "application/x-ndjson"}
    async with admin.stream("POST", "/api/servers/test", json=asked, headers=accept) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
        return [json.loads(line) async for line in answer.aiter_lines()]


@pytest.mark.parametrize("kind", ["ollama", "openai"])
async def test_a_trial_is_told_as_it_goes_to_who_asks_for_lines(control: Control, fake: Fake, kind: str) -> None:
    admin = await control.admin()
    asked = {"url": fake.url, "kind": kind, "apiKey": "server-key", "model": "phi:latest"}
    lines = await told(admin, **asked)
    whole = (await admin.post("/api/servers/test", json=asked)).json()
    kinds = [line["type"] for line in lines]
    pieces = kinds.count("text")
    assert pieces > 1
    assert kinds == ["step", "step", "step", "found", *["text"] * pieces, "step", "end"]
    assert [(line["name"], line["ok"]) for line in lines if line["type"] == "step"] == [
        (step["name"], step["ok"]) for step in whole["steps"]
    ]
    assert lines[3] == {"type": "found", **{name: whole[name] for name in ("kind", "version", "models")}}
    assert "".join(line["text"] for line in lines if line["type"] == "text") == whole["answer"]
    end = lines[-1]
    assert (end["tokens"], end["truncated"]) == (pieces, False)
    assert end["ttftMs"] >= 0
    assert end["tokensPerSecond"] > 0
    assert control.services.trials == 0
    assert control.caller._clients == {}


async def test_a_told_trial_that_fails_ends_with_why(control: Control, fake: Fake) -> None:
    admin = await control.admin()
    known = {"url": fake.url, "apiKey": "server-key"}
    assert (await told(admin, **known))[-1] == {
        "type": "end", "ttftMs": None, "tokens": None, "tokensPerSecond": None, "truncated": False,
    }  # fmt: skip
    for asked, why in (
        ({**known, "model": "nobody-has-this"}, "not found"),
        ({**known, "model": "nobody-has-this", "kind": "openai"}, "not found"),
        ({**known, "apiKey": "wrong"}, "key"),
        ({"url": "http://127.0.0.1:9"}, "refused"),
        ({"url": "http://169.254.169.254"}, "may not be connected to"),
    ):
        lines = await told(admin, **asked)
        assert lines[-1]["type"] == "error"
        assert why in lines[-1]["error"]
        assert [line["ok"] for line in lines if line["type"] == "step"][-1] is False
    control.services.trials = 8
    assert (await told(admin, **known)) == [
        {"type": "error", "error": "Too many servers are being tried at once; try again in a moment"}
    ]


class Holding:
    """A server that says a piece, and then nothing; `left` when who asked has gone."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not head.startswith(b"POST"):
                    body = b'{"version":"1","models":[{"name":"phi"}]}'
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                    continue
                writer.write(b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"response":"Hel"}\n')
                while await reader.read(4096):
                    pass
                self.left.set()
                return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


async def test_who_leaves_ends_the_trial(control: Control) -> None:
    holding = Holding()
    server = await asyncio.start_server(holding, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]

        async def run(tell: Tell) -> tuple[Trial, Said | None]:
            trier = Trier(control.services.trial_client, tell=tell)
            return await trier.run(Backend(name="box", id=1, column=0, port=port), ("ollama",), "phi", "hello"), None

        reading = lines_of(run)
        async for line in reading:
            if b'"text"' in line:
                break
        await reading.aclose()
        async with asyncio.timeout(5):
            await holding.left.wait()
        assert control.caller._clients == {}
    finally:
        server.close()
