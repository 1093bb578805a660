"""Everything at once through machines that dial in, at two proxy processes: every answer right, every row there.

Sixty requests by default, a thousand with FLEETPROXY_FAULT_ROUNDS=full.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from fleetproxy.testing.raw import Answer, connect, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, Spawned, until
from tests.e2e.conftest import SAME
from tests.e2e.fault_cases import rounds
from tests.e2e.stock_agent import StockAgent
from tests.e2e.test_workers import WorkerProcess

CHAT, VECTORS, EARS = "llama3.2:3b", "nomic-embed-text", "whisper-1"
BOUNDARY = "mixed"
AT_ONCE = 16


class Mixture:
    def __init__(self, service: Service, llm: FakeProcess, asr: FakeProcess) -> None:
        self.service = service
        self.llm = llm
        self.asr = asr


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixture]:
    """Two workers of ours and a stock agent before one server, a speech worker before another."""
    folder = tmp_path_factory.mktemp("mixed")
    # One server behind all of them: whoever serves a request, its answer is the same bytes.
    llm = FakeProcess(folder, "llm", kind="ollama", models=f"{CHAT},{VECTORS}", slots=64, **SAME)
    asr = FakeProcess(folder, "asr", kind="asr", models=EARS, **SAME)
    service = Service(folder / "service", {}, processes=2, settings={"auth": {"client_key": "worker-key"}})
    started: list[Spawned] = []
    try:
        with llm, asr:
            service.start(ready=False)
            for name in ("one", "two"):
                started.append(WorkerProcess(folder, service.url, llm.url, name, MAX_CONCURRENCY="8"))
            ears = {"SERVER_URL": service.url, "ASR_BASE_URL": f"{asr.url}/v1", "CLIENT_KEY": "worker-key"}
            words = [sys.executable, "-m", "fleetproxy", "worker", "asr"]
            started.append(Spawned(words, folder / "ears.log", ears | {"FLEETPROXY_DATA_DIR": str(folder)}))
            for worker in started:
                worker.spawn()
            with StockAgent(service.url, llm.url, "stock", [CHAT, VECTORS], max_concurrency=8, client_key="worker-key"):
                until(lambda: _owners(service, "llm", CHAT) == {"one", "two", "stock"}, 20, "three workers")
                until(lambda: _owners(service, "asr", EARS), 20, "the speech worker")
                yield Mixture(service, llm, asr)
            for worker in started:
                worker.kill()
            assert service.stop() == 0
            assert not service.bad_lines()
    finally:
        for worker in started:
            worker.kill()
        service.kill()


def _owners(service: Service, family: str, model: str) -> set[str]:
    entries = json.loads(service.fetch("GET", f"/api/{family}/v1/models")[2])["data"]
    return {name for entry in entries if entry["id"] == model for name in entry["owned_by"].split(",")}


def asked(number: int) -> tuple[bool, str, bytes, list[tuple[str, str]]]:
    """The request of a number: (is it speech, path, body, headers)."""
    dice = random.Random(number)
    words = f"question {dice.randint(0, 1000)} of {number}"
    messages = [{"role": "user", "content": words}]
    match number % 6:
        case 0:
            return False, "/v1/chat/completions", _json(model=CHAT, messages=messages, stream=True), []
        case 1:
            return False, "/v1/chat/completions", _json(model=CHAT, messages=messages), []
        case 2:
            return False, "/api/chat", _json(model=CHAT, messages=messages), []
        case 3:
            return False, "/v1/embeddings", _json(model=VECTORS, input=[words, "and more"]), []
        case 4:
            return False, "/api/generate", _json(model=CHAT, prompt=words, stream=False), []
    sound = dice.randbytes(dice.randrange(200_000))
    fields = [("model", "", EARS.encode()), ("file", '; filename="a.wav"', sound)]
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
        for name, more, content in fields
    ]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return True, "/v1/audio/transcriptions", body, [("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")]


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


async def _ask(port: int, path: str, body: bytes | None, headers: list[tuple[str, str]], method: str) -> Answer:
    async with await connect("127.0.0.1", port) as client:
        await client.send(request(method, path, body, headers))
        answer = await client.answer(method=method, within_s=30.0)
    assert (answer.status, answer.clean) == (200, True), answer
    return answer


@pytest.mark.timeout(rounds(120, 600))
async def test_every_answer_is_right_and_written_down_once(mixture: Mixture) -> None:
    service, places = mixture.service, asyncio.Semaphore(AT_ONCE)
    ids: list[str] = []
    backends: set[str | None] = set()
    lists: set[str] = set()

    async def one(number: int) -> None:
        speech, path, body, headers = asked(number)
        async with places:
            straight = await _ask((mixture.asr if speech else mixture.llm).port, path, body, headers, "POST")
            identity = f"mixed-{uuid4().hex}"
            ids.append(identity)
            surface = f"/api/{'asr' if speech else 'llm'}" if path.startswith("/v1/") and number % 4 else ""
            answer = await _ask(service.port, surface + path, body, [*headers, ("X-Request-Id", identity)], "POST")
            assert hashlib.sha256(answer.body).digest() == hashlib.sha256(straight.body).digest(), (number, path)
            backends.add(answer.header("x-fleet-backend"))
            if number % 10 == 0:
                listed = await _ask(service.port, "/api/llm/v1/models", None, [], "GET")
                lists.add(hashlib.sha256(listed.body).hexdigest())
        if number % 10 == 5:
            async with places:
                ids.extend(await _transfer(service.port, random.Random(number).randbytes(300_000)))

    for number in (1, 3):  # loaded once, a model answers alike
        _, path, body, headers = asked(number)
        await _ask(mixture.llm.port, path, body, headers, "POST")
    count = rounds(60, 1000)
    await asyncio.gather(*(one(number) for number in range(count)))
    assert len(lists) == 1
    assert backends >= {"one", "two", "stock"}
    rows = await asyncio.to_thread(service.records, ids, 15.0)
    assert len(rows) == len(ids) == count + 3 * sum(number % 10 == 5 for number in range(count))
    assert {(row["status"], row["outcome"]) for row in rows.values()} == {(200, "ok")}
    counted = await asyncio.to_thread(service.counted, ids)
    assert set(counted.values()) == {1}
    await asyncio.to_thread(service.check)


async def _transfer(port: int, data: bytes) -> list[str]:
    """Bytes through a channel, its ends on connections of their own. The ids of its three requests."""
    ids = [f"mixed-{uuid4().hex}" for _ in range(3)]
    key = ("Authorization", "Bearer worker-key")
    made = await _ask(port, "/api/transfer", b"", [key, ("X-Request-Id", ids[0])], "POST")
    path = f"/api/transfer/{json.loads(made.body)['channel_id']}"
    got, _ = await asyncio.gather(
        _ask(port, path, None, [key, ("X-Request-Id", ids[1])], "GET"),
        _ask(port, path, data, [key, ("X-Request-Id", ids[2])], "POST"),
    )
    assert hashlib.sha256(got.body).digest() == hashlib.sha256(data).digest()
    return ids
