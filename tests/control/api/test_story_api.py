"""GET /api/requests/{request_id}: the story of one exchange, out of a whole control process."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetproxy.core.record import Attempt
from fleetproxy.settings import Auth, Poll, Server, Settings
from tests.control.analytics.analytics_kit import line, put, record
from tests.control.running import ADMIN, Running, control, short_folder

SETTINGS = Settings(
    auth=Auth(admin_key="admin-key-of-the-tests"),
    poll=Poll(interval_s=1000.0),
    servers=(Server(name="a", url="http://127.0.0.1:9"), Server(name="b", url="http://127.0.0.1:10")),
)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    folder = short_folder()
    async with control(folder, SETTINGS) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_request_is_told_whole(running: Running) -> None:
    now_us = time.time_ns() // 1000
    told = record(
        1,
        request_id="rid:1.x~é",
        started_at_us=now_us - 2_000_000,
        backend="b",
        endpoint="/api/chat",
        path="/api/chat",
        model="phi",
        route_reason="model_loaded",
        outcome="truncated",
        error="backend_lost",
        retries=1,
        queue_ms=50.0,
        total_ms=1000.0,
        user_agent="curl/8",
        eval_ms=12.5,
        attempts=(
            Attempt(backend="a", error="connect_failed", started_ms=52.0, total_ms=3.0),
            Attempt(backend="b", status=200, error="backend_lost", started_ms=56.0, first_byte_ms=41.0, total_ms=940.0),
        ),
    )
    older = record(2, request_id="rid:1.x~é", started_at_us=now_us - 9_000_000, attempts=())
    put(Path(running.runtime) / "data" / "spool", map(line, [older, told]), boot="b1")
    async with running.browser(**ADMIN) as admin:
        answer = await admin.get("/api/requests/rid:1.x~%C3%A9")
        assert answer.status_code == 200, answer.text
        story = answer.json()
        listed = (await admin.get("/api/requests?request_id=rid:1.x~é")).json()["requests"][0]
        assert listed.items() <= story["request"].items()
        assert (story["request"]["userAgent"], story["request"]["evalMs"]) == ("curl/8", 12.5)
        assert "in this server's memory" in story["why"]["words"]
        assert "broke off" in story["why"]["error"]
        assert [(one["n"], one["serverName"], one["error"]) for one in story["attempts"]] == [
            (1, "a", "connect_failed"),
            (2, "b", "backend_lost"),
        ]
        assert "could not be reached" in story["attempts"][0]["words"]
        assert [one["phase"] for one in story["timeline"]] == [
            "overhead", "queue", "failed", "overhead", "wait", "stream", "overhead",
        ]  # fmt: skip
        assert story["now"]["outcome"] == "refuse"
        assert [(one["serverName"], one["verdict"]) for one in story["now"]["considered"]] == [
            ("a", "offline"),
            ("b", "offline"),
        ]
        missing = await admin.get("/api/requests/nobody")
        assert (missing.status_code, missing.json()) == (404, {"error": "There is no such request (any more)"})
    async with running.browser() as nobody:
        assert (await nobody.get("/api/requests/x")).status_code == 401


async def test_explain_says_what_is_wrong_with_the_question(running: Running) -> None:
    async with running.browser(**ADMIN) as admin:
        for query in ("", "?model=", "?model=x&path=/api/tags", "?model=x&path=/nowhere", f"?model={'x' * 300}"):
            answer = await admin.get(f"/api/models/explain{query}")
            assert answer.status_code == 400, query
        found = (await admin.get("/api/models/explain?model=phi&path=/v1/embeddings&pin=a")).json()
        assert (found["path"], found["outcome"], found["reason"]) == ("/v1/embeddings", "refuse", "server_unavailable")
        speech = (await admin.get("/api/models/explain?model=whisper&path=/v1/audio/transcriptions")).json()
        assert speech["outcome"] == "refuse"
