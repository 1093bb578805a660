"""The dashboard's live stream over the public port of a whole service with two proxy processes, under real traffic."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleetproxy.testing.service import ADMIN_KEY, Service
from fleetproxy.testing.spawned import FakeProcess, Spawned

ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
CHAT = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "hello"}], "stream": False}


class Place:
    """A service, a server, a worker that dials in, and a server that will go away."""

    def __init__(self, folder: Path) -> None:
        options: dict[str, Any] = {"models": "llama3.2:3b", "speed": 0, "seed": 7}
        self.stays, self.goes = (FakeProcess(folder, name, **options) for name in ("stays", "goes"))
        self.folder = folder

    def start(self) -> None:
        settings = {"auth": {"client_key": "worker-key"}, "poll": {"interval_s": 0.3, "offline_threshold": 1}}
        servers = {"stays": self.stays.url, "goes": self.goes.url}
        self.service = Service(self.folder / "s", servers, processes=2, settings=settings)
        self.service.start()
        self.worker = Spawned(
            [sys.executable, "-m", "fleetproxy", "worker", "llm"],
            self.folder / "worker.log",
            {
                "SERVER_URL": self.service.url,
                "COMPLETION_BASE_URL": f"{self.stays.url}/v1",
                "CLIENT_NAME": "guest",
                "CLIENT_KEY": "worker-key",
                "MAX_CONCURRENCY": "8",
                "FLEETPROXY_DATA_DIR": str(self.folder),
            },
        )
        self.worker.spawn()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("live"))
    with made.stays, made.goes:
        made.start()
        yield made
        made.worker.kill()
        assert made.service.stop() == 0
        assert not made.service.bad_lines()


class Stream:
    """A browser's EventSource."""

    def __init__(self, answer: httpx.Response) -> None:
        self.lines = answer.aiter_lines()

    async def until(self, wanted: str, test: Callable[[Any], bool] = lambda value: True) -> Any:
        name = ""
        async with asyncio.timeout(15):
            async for line in self.lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name == wanted and test(found := json.loads(value)):
                    return found
        raise AssertionError("the stream ended")

    async def all(self, **tests: Callable[[Any], bool]) -> dict[str, Any]:
        """The first frame of each kind that passes its test, in whatever order they come."""
        found: dict[str, Any] = {}
        name = ""
        async with asyncio.timeout(15):
            async for line in self.lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name in tests and name not in found and tests[name](json.loads(value)):
                    found[name] = json.loads(value)
                    if len(found) == len(tests):
                        return found
        raise AssertionError("the stream ended")


@asynccontextmanager
async def watching(place: Place) -> AsyncIterator[tuple[httpx.AsyncClient, Stream]]:
    async with (
        httpx.AsyncClient(base_url=place.service.url, headers=ADMIN, timeout=20) as client,
        client.stream("GET", "/api/state/live") as answer,
    ):
        assert answer.status_code == 200
        yield client, Stream(answer)


def of(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["name"] == name]


async def test_a_request_is_in_the_tail_and_its_story_can_be_read(place: Place) -> None:
    async with watching(place) as (client, stream):
        fleet = await stream.until("fleet")
        assert fleet["whole"]
        answer = await client.post("/api/chat", json=CHAT)
        assert answer.status_code == 200
        number = answer.headers["x-request-id"]
        told = await stream.until("requests", lambda value: any(row["requestId"] == number for row in value["rows"]))
        row = next(row for row in told["rows"] if row["requestId"] == number)
        assert (row["model"], row["statusCode"], row["outcome"]) == ("llama3.2:3b", 200, "ok")
        busy = await stream.until("fleet", lambda value: value["totals"]["requestsPerSecond"] > 0)
        assert busy["totals"]["serversOnline"] >= 1
        story = (await client.get(f"/api/requests/{number}")).json()
        assert {**story["request"], "id": None}.items() >= row.items()
        assert [one["serverName"] for one in story["attempts"]] == [row["serverName"]]
        assert sum(part["durationMs"] for part in story["timeline"]) == pytest.approx(row["durationMs"], abs=2)
        assert story["now"]["outcome"] == "candidates"


async def test_a_drained_worker_gets_nothing_new_and_works_again(place: Place) -> None:
    async with watching(place) as (client, stream):
        fleet = await stream.until("fleet", lambda value: bool(of("guest", value["workers"])))
        guest = of("guest", fleet["workers"])[0]

        async def pinned() -> int:
            headers = {"x-ollama-pin-server": "guest"}
            return (await client.post("/api/chat", json=CHAT, headers=headers)).status_code

        async def becomes(status: int) -> None:
            async with asyncio.timeout(10):
                while await pinned() != status:
                    await asyncio.sleep(0.02)

        await becomes(200)
        assert (await client.post(f"/api/workers/{guest['id']}/drain")).status_code == 200
        drained = await stream.until("fleet", lambda value: any(one["isDraining"] for one in value["workers"]))
        assert of("guest", drained["workers"])[0]["drainedHere"]
        await becomes(503)
        explained = (await client.get("/api/models/explain?model=llama3.2:3b")).json()
        assert {one["serverName"]: one["verdict"] for one in explained["considered"]}["guest"] in (
            "maintenance",
            "offline",
        )
        assert (await client.post(f"/api/workers/{guest['id']}/undrain")).status_code == 200
        await becomes(200)


async def test_a_disabled_server_gets_nothing_from_the_moment_of_the_answer(place: Place) -> None:
    async with httpx.AsyncClient(base_url=place.service.url, headers=ADMIN, timeout=20) as client:
        pinned = {"x-ollama-pin-server": "stays"}
        for disabled in (True, False, True, False):
            assert (await client.patch("/api/servers/1", json={"isDisabled": disabled})).status_code == 200
            answers = await asyncio.gather(*(client.post("/api/chat", json=CHAT, headers=pinned) for _ in range(8)))
            assert {answer.status_code for answer in answers} == {503 if disabled else 200}


async def test_a_server_that_dies_is_seen_to(place: Place) -> None:
    async with watching(place) as (_, stream):
        await stream.until("fleet")
        place.goes.kill()
        found = await stream.all(
            fleet=lambda value: any(not one["isOnline"] for one in value["servers"]),
            events=lambda value: any(one["kind"] == "server_offline" for one in value["events"]),
        )
        assert of("goes", found["fleet"]["servers"])[0]["state"] == "offline"
        assert "goes" in [one["subject"] for one in found["events"]["events"] if one["kind"] == "server_offline"]
