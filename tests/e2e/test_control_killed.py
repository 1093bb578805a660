"""Control killed with SIGKILL at random moments, while requests, users and jobs keep it busy (D-1, D-15, P-2)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from fleetproxy.testing.service import ADMIN_KEY, Service
from fleetproxy.testing.spawned import FakeProcess, until
from tests.e2e.fault_cases import rounds

MakeFake = Callable[..., FakeProcess]
MakeService = Callable[..., Service]
SECONDS = rounds(8, 60)
CLIENTS = 4
#: What control's own death is answered with; the change may have happened or not.
UNKNOWN = frozenset({500, 502, 503, 504})


class Story:
    """What was asked, and what was said of it."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.refused: list[int] = []
        #: User -> said to be there (True), or perhaps (False).
        self.users: dict[str, bool] = {}
        #: Job -> versions that may be the last: the one confirmed, and those asked for since.
        self.jobs: dict[int, set[int]] = {}
        self.kills = 0
        self.unavailable = 0
        self.reads = 0


@pytest.mark.timeout(rounds(60, 200))
async def test_no_row_no_user_and_no_half_of_a_change_is_lost(fake: MakeFake, start: MakeService) -> None:
    """Every answered request has its row, every confirmed user is there, each job is wholly of one version."""
    one = fake("one", models="a:1b", slots=64)
    service = start({"one": one.url}, allowed=[r"ended: killed", r"link", r"control", r"spool|store|snapshot"])
    story, stop = Story(), asyncio.Event()
    rng = random.Random()
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30, limits=limits) as admin:
        jobs = [await _make_job(admin, number) for number in range(2)]
        story.jobs = {job: {0} for job in jobs}
        actors = [
            *(_ask(service, story, stop) for _ in range(CLIENTS)),
            _make_users(admin, story, stop),
            *(_change_job(admin, story, stop, job) for job in jobs),
            _look(admin, story, stop),
            _kill(service, story, stop, rng),
        ]
        await asyncio.gather(*actors)
        await _back(admin)

        listed = {user["username"] for user in service.admin("GET", "/api/users")}
        confirmed = {name for name, said in story.users.items() if said}
        assert confirmed <= listed <= set(story.users)
        for job, versions in story.jobs.items():
            found = _version(service.admin("GET", f"/api/scheduled-jobs/{job}"))
            assert found in versions
    assert story.kills >= 3
    assert story.reads > 0
    assert not story.refused, "requests go on without control"
    assert len(story.answered) > 20
    until(lambda: service.counted(story.answered).keys() == set(story.answered), 20, "every answered request has a row")
    assert set(service.counted(story.answered).values()) == {1}


async def _ask(service: Service, story: Story, stop: asyncio.Event) -> None:
    body = {"model": "a:1b", "messages": [{"role": "user", "content": "x"}], "stream": False}
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        while not stop.is_set():
            identity = f"killed-{uuid4().hex}"
            answer = await client.post("/api/chat", json=body, headers={"x-request-id": identity})
            if answer.status_code == 200:
                story.answered.append(identity)
            else:
                story.refused.append(answer.status_code)
            await asyncio.sleep(0.01)


async def _make_users(admin: httpx.AsyncClient, story: Story, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        name = f"user{number:04d}"
        status = await _status(admin, "POST", "/api/users", {"username": name, "password": "correct horse 7"})
        if status in UNKNOWN:
            story.unavailable += 1
        else:
            assert status == 201
        story.users[name] = status == 201
        await asyncio.sleep(0.02)


async def _change_job(admin: httpx.AsyncClient, story: Story, stop: asyncio.Event, job: int) -> None:
    version = 0
    while not stop.is_set():
        version += 1
        story.jobs[job] = story.jobs[job] | {version}
        status = await _status(admin, "PUT", f"/api/scheduled-jobs/{job}", _job(version))
        if status == 200:
            story.jobs[job] = {version}
        else:
            assert status in UNKNOWN
            story.unavailable += 1
        await asyncio.sleep(0.01)


async def _look(admin: httpx.AsyncClient, story: Story, stop: asyncio.Event) -> None:
    """What is read meanwhile is whole, too; or it is said that nothing can be read now (D-15)."""
    while not stop.is_set():
        for path in ("/api/scheduled-jobs", "/api/analytics?hours=1", "/api/requests?hours=1"):
            try:
                answer = await admin.get(path)
            except httpx.TransportError:
                continue
            if answer.status_code in UNKNOWN:
                assert answer.status_code != 503 or "retry-after" in answer.headers, path
                assert "error" in answer.json()
                continue
            assert answer.status_code == 200, (path, answer.text)
            story.reads += 1
            if path == "/api/scheduled-jobs":
                for job in answer.json():
                    _version(job)
        await asyncio.sleep(0.05)


async def _kill(service: Service, story: Story, stop: asyncio.Event, rng: random.Random) -> None:
    ends_s = time.monotonic() + SECONDS
    last = 0
    while time.monotonic() < ends_s:
        await asyncio.sleep(rng.uniform(0.05, 1.5))
        pid = service.pids().get("control")
        if pid is not None and pid != last:
            os.kill(pid, signal.SIGKILL)
            story.kills += 1
            last = pid
    stop.set()


async def _back(admin: httpx.AsyncClient) -> None:
    """Until control, killed at last, is there again."""
    async with asyncio.timeout(20):
        while (await admin.get("/api/users")).status_code != 200:
            await asyncio.sleep(0.05)


async def _status(admin: httpx.AsyncClient, method: str, path: str, body: dict[str, Any]) -> int:
    try:
        return (await admin.request(method, path, json=body)).status_code
    except httpx.TransportError:
        return 502  # the connection broke: nobody said what became of it


async def _make_job(admin: httpx.AsyncClient, number: int) -> int:
    made = await admin.post("/api/scheduled-jobs", json=_job(0))
    assert made.status_code == 201, made.text
    return int(made.json()["id"])


def _job(version: int) -> dict[str, Any]:
    """A job each of whose fields tells its version."""
    return {
        "name": f"job {version}",
        "description": f"version {version}",
        "sourceIdentifier": f"source-{version}",
        "cronExpression": f"{version % 60} 3 * * *",
        "targetModel": f"model-{version}",
        "expectedDurationMs": 1000 + version,
    }


def _version(job: dict[str, Any]) -> int:
    """The version of a job that is wholly of one."""
    version = int(job["expectedDurationMs"]) - 1000
    assert {name: job[name] for name in _job(version)} == _job(version)
    return version
