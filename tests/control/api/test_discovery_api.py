from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import Control, make_control

from fleetproxy.control import discovery
from fleetproxy.settings import Discovery, Settings


class Docker:
    """An engine on a Unix socket: answers by path, writes down what it was asked."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.asked: list[bytes] = []
        self.answers: dict[str, bytes] = {}
        self.delay_s = 0.0

    def hold(self, *containers: dict[str, Any]) -> None:
        ids = [f"{number:064x}" for number in range(len(containers))]
        self.answers["/containers/json"] = json.dumps([{"Id": one} for one in ids]).encode()
        for number, container in zip(ids, containers, strict=True):
            self.answers[f"/containers/{number}/json"] = json.dumps(container).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked.append(head)
                await asyncio.sleep(self.delay_s)
                body = self.answers.get(head.split(b" ")[1].decode(), b"")
                status = b"200 OK" if body else b"404 Not Found"
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def docker(tmp_path: Path) -> AsyncIterator[Docker]:
    docker = Docker(tmp_path / "docker.sock")
    server = await asyncio.start_unix_server(docker.serve, docker.socket)
    yield docker
    server.close()


@pytest.fixture
def settings(docker: Docker) -> Settings:
    return Settings(discovery=Discovery(docker_socket=str(docker.socket)))


def container(name: str, *environment: str, **labels: str) -> dict[str, Any]:
    return {"Name": f"/{name}", "Config": {"Env": list(environment), "Labels": labels}}


async def test_jobs_of_containers_are_told_and_imported_once(control: Control, docker: Docker) -> None:
    docker.hold(
        container("app", "SYNC_CRON=0 3 * * *", "OLLAMA_SUMMARY_MODEL=phi", "DATABASE_PASSWORD=canary-secret"),
        container(
            "labelled", "TOKEN=canary-secret", **{"fleetproxy.job.cron": "@daily", "fleetproxy.job.model": "llama"}
        ),
        container("nomodel", "SCHEDULE=*/5 * * * *"),
        container("plain", "PATH=/bin"),
    )
    admin = await control.admin()
    found = await admin.get("/api/scheduled-jobs/discover")
    assert found.json() == {
        "containers": 4,
        "jobs": [
            {
                "name": "app - summary",
                "sourceIdentifier": "app",
                "cronExpression": "0 3 * * *",
                "targetModel": "phi",
                "description": "Auto-discovered from app (OLLAMA_SUMMARY_MODEL)",
            },
            {
                "name": "labelled",
                "sourceIdentifier": "labelled",
                "cronExpression": "@daily",
                "targetModel": "llama",
                "description": "Auto-discovered from labelled (fleetproxy.job.cron)",
            },
            {
                "name": "nomodel",
                "sourceIdentifier": "nomodel",
                "cronExpression": "*/5 * * * *",
                "targetModel": "unknown",
                "description": "Auto-discovered from nomodel (SCHEDULE)",
            },
        ],
        "reason": None,
    }
    assert "canary" not in found.text
    imports = await asyncio.gather(*(admin.post("/api/scheduled-jobs/discover") for _ in range(2)))
    assert sorted(answer.json()["added"] for answer in imports) == [0, 2]
    first = max((answer.json() for answer in imports), key=lambda one: one["added"])
    assert first == {
        "discovered": 3,
        "added": 2,
        "skipped": 1,
        "addedJobs": ["app - summary", "labelled"],
        "skippedJobs": ["nomodel (no model specified)"],
        "reason": None,
    }
    jobs = (await admin.get("/api/scheduled-jobs")).json()
    assert [(job["name"], job["expectedDurationMs"], job["timezone"], job["action"]) for job in jobs] == [
        ("labelled", 300000, "UTC", "none"),
        ("app - summary", 300000, "UTC", "none"),
    ]
    assert {head.split(b" ")[0] for head in docker.asked} == {b"GET"}
    paths = {head.split(b" ")[1] for head in docker.asked}
    assert all(path == b"/containers/json" or path.endswith(b"/json") for path in paths)


async def test_without_a_socket_it_says_so(tmp_path: Path) -> None:
    for settings, words in [
        (Settings(), "set discovery.docker_socket"),
        (Settings(discovery=Discovery(docker_socket=str(tmp_path / "none.sock"))), "no socket"),
    ]:
        control = await make_control(tmp_path / words.replace(" ", "-"), settings)
        admin = await control.admin()
        found = (await admin.get("/api/scheduled-jobs/discover?socket=/var/run/docker.sock")).json()
        assert (found["containers"], found["jobs"]) == (0, [])
        assert words in found["reason"]
        imported = (await admin.post("/api/scheduled-jobs/discover", json={"docker_socket": "/etc/passwd"})).json()
        assert (imported["discovered"], imported["added"]) == (0, 0)
        await control.services.close()
        await control.caller.aclose()


HOSTILE = {
    "not json": b"<html>",
    "another shape": b'{"message":"page not found"}',
    "deep": b"[" * 100_000,
    "bad utf-8": b'[{"Id":"\xff"}]',
    "path in an id": b'[{"Id":"../../etc"}]',
    "id that is no id": b'[{"Id":""},{"Id":"a b"}]',
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_engine_costs_nothing(control: Control, docker: Docker, answer: bytes) -> None:
    docker.answers["/containers/json"] = answer
    admin = await control.admin()
    found = await admin.get("/api/scheduled-jobs/discover")
    assert found.status_code == 200
    assert found.json()["jobs"] == []
    assert found.json()["reason"]
    assert not [head for head in docker.asked if b".." in head]


@pytest.mark.parametrize(
    "inspected",
    [b"", b"null", b'{"Name":5}', b'{"Config":{"Env":"x"}}', b'{"Name":"/x","Config":{"Env":null,"Labels":null}}'],
)
async def test_a_container_that_cannot_be_read_is_left_out(control: Control, docker: Docker, inspected: bytes) -> None:
    docker.hold(container("bad"), container("app", "CRON=0 3 * * *", "OLLAMA_MODEL=phi"))
    docker.answers[f"/containers/{0:064x}/json"] = inspected
    admin = await control.admin()
    found = (await admin.get("/api/scheduled-jobs/discover")).json()
    assert [job["sourceIdentifier"] for job in found["jobs"]] == ["app"]


async def test_a_slow_engine_is_left_after_its_time(
    control: Control, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "LOOK_S", 0.3)
    docker.hold(*[container(f"app{n}", "CRON=0 3 * * *", "OLLAMA_MODEL=phi") for n in range(200)])
    docker.delay_s = 0.05
    admin = await control.admin()
    found = (await admin.get("/api/scheduled-jobs/discover")).json()
    assert found["containers"] == 200
    assert len(found["jobs"]) < 200
    assert "took longer" in found["reason"]


async def test_ten_thousand_containers_are_bounded(
    control: Control, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MAX_CONTAINERS", 20)
    docker.hold(*[container(f"app{n}", "CRON=0 3 * * *", "OLLAMA_MODEL=phi") for n in range(10_000)])
    admin = await control.admin()
    found = (await admin.get("/api/scheduled-jobs/discover")).json()
    assert found["containers"] == 10_000
    assert len(docker.asked) == 21
    assert "9980 containers" in found["reason"]
