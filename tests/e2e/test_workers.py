"""Machines that dial in, as a user has them: `fleetproxy serve`, `fleetproxy worker llm`, a backend out of sight."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, Spawned, until
from tests.e2e.go_socket import free_port

MODEL = "llama3.2:3b"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


class WorkerProcess(Spawned):
    """`fleetproxy worker llm` in front of a fake, dialling in at the public port."""

    def __init__(self, folder: Path, server: str, backend: str, name: str = "gpu", **environment: str) -> None:
        words = [sys.executable, "-m", "fleetproxy", "worker", "llm"]
        given = {
            "SERVER_URL": server,
            "COMPLETION_BASE_URL": f"{backend}/v1",
            "CLIENT_NAME": name,
            "CLIENT_ID": f"id-{name}",
            "CLIENT_KEY": "worker-key",
            "MODEL_POLL_INTERVAL": "0.3",
            "FLEETPROXY_DATA_DIR": str(folder),
        }
        super().__init__(words, folder / f"{name}.log", given | environment)


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("workers")
    fakes = FakeProcess(folder, "fake", kind="ollama", models=f"{MODEL},nomic-embed-text", seed=7, speed=0)
    settings = {"auth": {"admin_key": "e2e-admin-key", "client_key": "worker-key"}}
    service = Service(folder, {}, processes=request.param, settings=settings)
    with fakes as fake:
        service.start(ready=False)
        place = Place(folder, service, fake)
        try:
            yield place
        finally:
            place.worker.kill()
            code = service.stop()
        assert code == 0
        assert not service.bad_lines()


class Place:
    def __init__(self, folder: Path, service: Service, fake: FakeProcess) -> None:
        self.folder = folder
        self.service = service
        self.fake = fake
        self.worker = WorkerProcess(folder, service.url, fake.url, MAX_CONCURRENCY="64")

    def connected(self) -> None:
        """The worker is there, and requests find it."""
        if not self.worker.alive:
            self.worker.spawn()
        until(lambda: self.service.status("/readyz") == 200, 20, "the worker is routed to")

    def chat(self, **extra: Any) -> tuple[int, dict[str, str], bytes]:
        return self.service.fetch("POST", "/api/chat", json.dumps(CHAT | extra).encode())


@pytest.fixture
def connected(place: Place) -> Place:
    place.connected()
    return place


def test_native_and_openai_paths_answer_from_behind_the_nat(connected: Place) -> None:
    status, headers, body = connected.chat(stream=False)
    assert status == 200
    assert json.loads(body)["done"] is True
    assert headers["x-fleet-backend"] == "gpu"
    status, headers, body = connected.chat(stream=True)
    lines = [json.loads(line) for line in body.splitlines()]
    assert lines[-1]["done"] is True
    assert headers["content-type"] == "application/x-ndjson"
    with OpenAI(base_url=f"{connected.service.url}/v1", api_key="none") as client:
        asked = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in asked if piece.choices)
        vectors = client.embeddings.create(model="nomic-embed-text", input=["a", "b"])
    assert len(vectors.data) == 2


def test_large_requests_at_once_find_the_free_slots(connected: Place) -> None:
    """What is still on its way to a worker does not make it busy."""
    big = {"stream": False, "messages": [{"role": "user", "content": "x" * 150_000}]}
    with ThreadPoolExecutor(32) as callers:
        answers = [callers.submit(connected.chat, **big) for _ in range(32)]
        assert [answer.result()[0] for answer in answers] == [200] * 32


def test_its_models_are_in_every_list(connected: Place) -> None:
    def names(path: str, key: str, name: str) -> list[str]:
        _, _, body = connected.service.fetch("GET", path)
        return [entry[name] for entry in json.loads(body)[key]]

    until(lambda: MODEL in names("/v1/models", "data", "id"), 10, "/v1/models")
    until(lambda: MODEL in names("/api/tags", "models", "name"), 10, "/api/tags")


def test_every_request_has_its_row_with_the_workers_name(connected: Place) -> None:
    _, headers, _ = connected.chat(stream=False)
    row = connected.service.records([headers["x-request-id"]])[headers["x-request-id"]]
    assert (row["backend"], row["status"], row["outcome"]) == ("gpu", 200, "ok")


def test_a_killed_hub_costs_a_moment(connected: Place) -> None:
    pid = connected.service.pids()["hub"]
    connected.service.allowed.append(re.compile("hub"))
    subprocess.run(["kill", "-9", str(pid)], check=True)
    until(lambda: connected.service.pids().get("hub") not in (None, pid), 10, "a new hub")
    until(lambda: connected.chat(stream=False)[0] == 200, 20, "served again")


def test_a_worker_that_is_killed_in_the_middle_breaks_its_stream_visibly(connected: Place) -> None:
    connected.fake.fault("stall", after=2, path="/api/chat")
    connection = http.client.HTTPConnection(connected.service.host, connected.service.port, timeout=20)
    try:
        connection.request("POST", "/api/chat", json.dumps(CHAT), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.read(1)
        connected.worker.kill()
        try:
            rest = answer.read()
        except (http.client.HTTPException, OSError):
            rest = b""
        assert b'"done":true' not in rest
        answer.close()
    finally:
        connection.close()
    until(lambda: connected.chat(stream=False)[0] in (404, 503), 10, "nobody left to ask")


def test_the_command_drains_it_and_says_what_is_wrong_otherwise(connected: Place) -> None:
    port = free_port()
    place = connected
    second = WorkerProcess(place.folder, place.service.url, place.fake.url, "second", STATUS_ADDR=f"127.0.0.1:{port}")
    words = [sys.executable, "-m", "fleetproxy", "worker"]

    def said(*more: str, folder: Path = place.folder) -> tuple[int, str, str]:
        environment = {**os.environ, "FLEETPROXY_DATA_DIR": str(folder)}
        done = subprocess.run([*words, *more], env=environment, capture_output=True, text=True, timeout=20, check=False)
        return done.returncode, done.stdout, done.stderr

    address = ("--status-addr", f"127.0.0.1:{port}")
    assert said("drain", *address)[0] == 4, "nobody is there yet"
    try:
        second.spawn()
        until(lambda: "registered as second" in second.text(), 20, "it is there")
        assert said("drain")[0] == 6
        code, _, error = said("drain", *address, folder=place.folder / "elsewhere")
        assert (code, "FLEETPROXY_DATA_DIR" in error) == (5, True)
        assert said("undrain", *address)[:2] == (0, "second takes requests again\n")
        assert said("drain", *address)[:2] == (0, "second finishes what runs (0), then it leaves\n")
        assert second.wait(20) == 0
    finally:
        second.kill()
    assert connected.chat(stream=False)[0] == 200


def test_sigterm_finishes_what_runs_and_exits_zero(connected: Place) -> None:
    assert connected.chat(stream=False)[0] == 200
    connected.worker.signal(signal.SIGTERM)
    assert connected.worker.wait(20) == 0
    assert "Traceback" not in connected.worker.text()
