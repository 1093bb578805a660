"""Speech recognition as a user has it: forms of any size, on both surfaces, by servers and by workers of both kinds."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from websockets.asyncio.client import ClientConnection, connect

from fleetproxy.testing.processes import memory_bytes
from fleetproxy.testing.raw import Answer, RawClient, request
from fleetproxy.testing.raw import connect as raw_connect
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, Spawned, until
from tests.e2e.fault_cases import rounds

BOUNDARY = "----FleetproxyTests7MA4YWxk"
ASR, MAIN = "/api/asr/v1/audio/transcriptions", "/v1/audio/transcriptions"
SPOOL_BYTES = 3 * 1024 * 1024
JSON_BODY = 300_000


class Place:
    def __init__(self, folder: Path, service: Service, speech: FakeProcess, vllm: FakeProcess) -> None:
        self.folder = folder
        self.service = service
        self.speech = speech
        self.vllm = vllm
        self.worker = self.worker_process()

    def worker_process(self, name: str = "ear", **environment: str) -> Spawned:
        given = {
            "SERVER_URL": self.service.url,
            "ASR_BASE_URL": f"{self.speech.url}/v1",
            "CLIENT_NAME": name,
            "CLIENT_ID": f"id-{name}",
            "MODEL_POLL_INTERVAL": "0.3",
            "FLEETPROXY_DATA_DIR": str(self.folder),
        }
        words = [sys.executable, "-m", "fleetproxy", "worker", "asr"]
        return Spawned(words, self.folder / f"{name}.log", given | environment)

    def listed(self, model: str, path: str = "/api/asr/v1/models", *, present: bool = True) -> None:
        """Wait until every process lists a model, or none does."""

        def agreed() -> bool:
            looks = 1 if self.service.settings["processes"] == 1 else 12
            return all((model in self.service.names(path)) == present for _ in range(looks))

        until(agreed, 20, f"{model} {'on' if present else 'off'} {path}")


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("speech")
    speech = FakeProcess(folder, "speech", kind="asr", models="whisper-1,openai/whisper-large-v3", seed=7, speed=0)
    vllm = FakeProcess(folder, "vllm", kind="openai", models="vllm-whisper", seed=7, speed=0)
    with speech, vllm:
        settings = {
            "asr": {"spool_bytes": SPOOL_BYTES, "max_json_body": JSON_BODY},
            "routing": {"aliases": {"ear": "vllm-whisper"}},
        }
        servers = {"vllm": {"url": vllm.url, "kind": "openai"}}
        service = Service(folder, servers, processes=request.param, settings=settings)
        service.start()
        place = Place(folder, service, speech, vllm)
        try:
            place.worker.spawn()
            place.listed("whisper-1")
            yield place
        finally:
            place.worker.kill()
            code = service.stop()
        assert code == 0
        assert not service.bad_lines()


def part(name: str, content: bytes, filename: str = "") -> bytes:
    file = f'; filename="{filename}"\r\nContent-Type: audio/wav' if filename else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


TYPE = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")


async def client_of(place: Place) -> RawClient:
    return await raw_connect(place.service.host, place.service.port)


async def ask(place: Place, path: str, body: bytes, *headers: tuple[str, str], within_s: float = 20.0) -> Answer:
    async with await client_of(place) as client:
        await client.send(request("POST", path, body, [TYPE, *headers]))
        return await client.answer(method="POST", within_s=within_s)


def heard(answer: Answer) -> dict[str, Any]:
    assert (answer.status, answer.clean) == (200, True), answer
    fake: dict[str, Any] = json.loads(answer.body)["fake"]
    return fake


def code_of(answer: Answer) -> tuple[int | None, str]:
    said = json.loads(answer.body)
    assert set(said["error"]) == {"message", "type", "param", "code"}
    return answer.status, said["error"]["code"]


async def test_the_models_of_the_workers_are_listed(place: Place) -> None:
    for _ in range(4):
        status, _, body = await asyncio.to_thread(place.service.fetch, "GET", "/api/asr/v1/models")
        listed = json.loads(body)
        assert (status, listed["object"]) == (200, "list")
        assert [entry["id"] for entry in listed["data"]] == ["openai/whisper-large-v3", "whisper-1"]
        assert {entry["owned_by"] for entry in listed["data"]} == {"ear"}
        assert len({entry["created"] for entry in listed["data"]}) == 1
    for name in ("openai/whisper-large-v3", "openai%2Fwhisper-large-v3"):
        status, _, body = await asyncio.to_thread(place.service.fetch, "GET", f"/api/asr/v1/models/{name}")
        assert (status, json.loads(body)["id"]) == (200, "openai/whisper-large-v3")
    status, _, body = await asyncio.to_thread(place.service.fetch, "GET", "/api/asr/v1/models/nope")
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    # Speech workers' models are no language models.
    assert "whisper-1" not in place.service.names("/v1/models")
    assert "whisper-1" not in place.service.names("/api/llm/v1/models")


@pytest.mark.parametrize("path", [ASR, MAIN])
@pytest.mark.parametrize("order", ["model first", "model last"])
async def test_a_form_reaches_the_worker_as_it_is(place: Place, path: str, order: str) -> None:
    for size in (0, 1, 70_000, 700_000):
        sound = random.Random(size).randbytes(size)
        parts = [part("model", b"whisper-1"), part("language", b"de"), part("file", sound, "../e;vil\u00e9.wav")]
        body = form(*(parts if order == "model first" else reversed(parts)))
        answer = await ask(place, path, body)
        said = heard(answer)
        assert (said["bytes"], said["sha256"]) == (size, hashlib.sha256(sound).hexdigest())
        assert said["fields"] == {"model": "whisper-1", "language": "de"}
        assert answer.header("x-fleet-backend") == "ear"
        (row,) = (place.service.records([answer.header("x-request-id") or ""])).values()
        assert (row["model"], row["bytes_in"], row["outcome"]) == ("whisper-1", len(body), "ok")


async def test_servers_serve_forms_on_the_main_surface_alone(place: Place) -> None:
    body = form(part("model", b"vllm-whisper"), part("file", b"RIFF", "a.wav"))
    answer = await ask(place, MAIN, body)
    assert heard(answer)["bytes"] == 4
    assert answer.header("x-fleet-backend") == "vllm"
    assert code_of(await ask(place, ASR, body)) == (404, "model_not_found")


async def test_an_alias_is_written_into_the_form(place: Place) -> None:
    for order in (1, -1):
        parts = [part("model", b"ear"), part("file", b"RIFF" * 1000, "a.wav")][::order]
        said = heard(await ask(place, MAIN, form(*parts)))
        assert said["fields"] == {"model": "vllm-whisper"}
        assert said["bytes"] == 4000


async def test_the_openai_sdk_transcribes(place: Place, tmp_path: Path) -> None:
    sound = tmp_path / "speech.wav"
    sound.write_bytes(random.Random(3).randbytes(200_000))
    for base in ("/api/asr/v1", "/v1"):
        async with AsyncOpenAI(base_url=place.service.url + base, api_key="x", max_retries=0) as client:
            whole = await client.audio.transcriptions.create(file=sound, model="whisper-1")
            text = whole.text
            assert text
            events = [
                event
                async for event in await client.audio.transcriptions.create(file=sound, model="whisper-1", stream=True)
            ]
            assert events[-1].type == "transcript.text.done"
            assert events[-1].text == text
            assert "".join(event.delta for event in events[:-1]) == text  # type: ignore[union-attr]
            with pytest.raises(NotFoundError):
                await client.audio.transcriptions.create(file=sound, model="nobody-has-it")
    async with AsyncOpenAI(base_url=place.service.url + "/api/asr/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(BadRequestError):
            await client.audio.transcriptions.create(file=sound, model="")


# --- size ------------------------------------------------------------------------------------------------------------


async def pour(client: RawClient, megabytes: int, digest: Any) -> None:
    block = random.Random(1).randbytes(1024 * 1024)
    for number in range(megabytes):
        data = number.to_bytes(8) + block[8:]
        digest.update(data)
        await client.send(data)


async def upload(place: Place, megabytes: int, watch: Callable[[], None] = lambda: None) -> None:
    head = part("model", b"whisper-1") + part("file", b"", "a.wav")[:-2]
    tail = b"\r\n" + form()
    length = len(head) + megabytes * 1024 * 1024 + len(tail)
    digest = hashlib.sha256()
    async with await client_of(place) as client:
        await client.send(request("POST", ASR, None, [TYPE, ("Content-Length", str(length))]) + head)
        for _ in range(megabytes):
            await pour(client, 1, digest)
            watch()
        await client.send(tail)
        said = heard(await client.answer(method="POST", within_s=60))
    assert (said["bytes"], said["sha256"]) == (megabytes * 1024 * 1024, digest.hexdigest())


async def test_large_forms_pass_in_little_memory(place: Place) -> None:
    await upload(place, 2)  # everything warm
    pids = {name: pid for name, pid in place.service.pids().items() if name != "control"}
    pids["worker"] = place.worker.pid
    before = {name: memory_bytes(pid) for name, pid in pids.items()}
    peak = dict(before)

    def watch() -> None:
        for name, pid in pids.items():
            peak[name] = max(peak[name], memory_bytes(pid))

    await upload(place, rounds(64, 1024), watch)
    grown = {name: peak[name] - before[name] for name in before}
    assert max(grown.values()) < 8 * 1024 * 1024, grown


async def test_what_comes_before_the_model_is_kept_up_to_a_bound(place: Place) -> None:
    almost = form(part("file", b"x" * (SPOOL_BYTES - 100_000), "a.wav"), part("model", b"whisper-1"))
    assert heard(await ask(place, ASR, almost))["bytes"] == SPOOL_BYTES - 100_000
    answer = await ask(place, ASR, form(part("file", b"x" * (SPOOL_BYTES + 1), "a.wav"), part("model", b"whisper-1")))
    assert code_of(answer) == (413, "body_too_large")
    assert b"`model` part first" in answer.body
    # The room is there again.
    assert heard(await ask(place, ASR, almost))["bytes"] == SPOOL_BYTES - 100_000


# --- what is no form -------------------------------------------------------------------------------------------------

FILE = part("file", b"RIFF", "a.wav")
MODEL = part("model", b"whisper-1")
BAD: list[tuple[str, bytes, tuple[str, str]]] = [
    ("no boundary", form(MODEL, FILE), ("Content-Type", "multipart/form-data")),
    ("not a form", b"{}", ("Content-Type", "application/json")),
    ("boundary of 60 KB", form(MODEL, FILE), ("Content-Type", f"multipart/form-data; boundary={'b' * 7000}")),
    ("no model", form(FILE), TYPE),
    ("empty model", form(part("model", b" "), FILE), TYPE),
    ("long model", form(part("model", b"m" * 300), FILE), TYPE),
    ("unterminated", MODEL + FILE, TYPE),
    ("no closing dashes", form(MODEL, FILE)[:-4], TYPE),
    ("two models", form(MODEL, FILE, part("model", b"other")), TYPE),
    ("5000 parts", form(*[part("x", b"")] * 5000, MODEL, FILE), TYPE),
    ("a head of 3 MB", form(part("x" * 3_000_000, b""), MODEL, FILE), TYPE),
    ("bare line feeds", form(FILE, MODEL).replace(b"\r\n", b"\n"), TYPE),
    ("nothing", b"", TYPE),
]


@pytest.mark.parametrize(("body", "kind"), [entry[1:] for entry in BAD], ids=[entry[0] for entry in BAD])
async def test_j10_what_is_no_form_is_refused(place: Place, body: bytes, kind: tuple[str, str]) -> None:
    before = len(place.speech.requests())
    async with await client_of(place) as client:
        with contextlib.suppress(ConnectionError):
            await client.send(request("POST", ASR, body, [kind]))
        answer = await client.answer(method="POST")
    assert code_of(answer) in {(400, "bad_request"), (400, "no_model")}
    # A backend may have seen its beginning, never all of it.
    for row in place.speech.requests()[before:]:
        assert not row["body_complete"]


async def test_j11_boundaries_in_the_file_are_found_at_every_split(place: Place) -> None:
    sound = f"RIFF--{BOUNDARY}x\r\r\n-\r\n--{BOUNDARY[:-1]}\r\n-- {BOUNDARY}".encode()
    body = form(part("file", sound, "a.wav"), MODEL)
    head = request("POST", ASR, None, [TYPE, ("Content-Length", str(len(body)))])
    async with await client_of(place) as client:
        for cut in range(0, len(body), 1 if rounds(0, 1) else 9):
            await client.send(head + body[:cut])
            await asyncio.sleep(0)
            await client.send(body[cut:])
            said = heard(await client.answer(method="POST"))
            assert said["sha256"] == hashlib.sha256(sound).hexdigest()


# --- coming and going ------------------------------------------------------------------------------------------------


async def test_a_caller_that_leaves_leaves_no_whole_form_behind(place: Place) -> None:
    for how in ("close", "reset"):
        before = len(place.speech.requests())
        client = await client_of(place)
        start = MODEL + part("file", b"x" * 100_000, "a.wav")
        await client.send(request("POST", ASR, None, [TYPE, ("Content-Length", "10000000")]) + start)
        await asyncio.to_thread(until, lambda n=before: len(place.speech.requests()) > n, 5, "it is under way")
        getattr(client, how)()

        def broken_off(n: int = before) -> bool:
            row = place.speech.requests()[n]
            return row["peer_closed_s"] is not None and not row["body_complete"]

        await asyncio.to_thread(until, broken_off, 5, "the backend sees it break off")
    await asyncio.to_thread(place.service.check)


async def test_a_worker_that_dies_is_told_and_another_one_serves(place: Place) -> None:
    spare = place.worker_process("spare")
    spare.spawn()
    await asyncio.to_thread(until, lambda: b"spare" in _models(place), 20, "the second worker")
    client = await client_of(place)
    try:
        await client.send(request("POST", ASR, None, [TYPE, ("Content-Length", "10000000")]) + MODEL + FILE[:-2])
        await asyncio.sleep(0.3)
        place.worker.kill()
        spare_pid = spare.pid
        spare.kill()
        assert spare_pid
        answer = await client.answer(method="POST")
        assert code_of(answer) == (502, "upstream_error")
    finally:
        client.close()
    await asyncio.to_thread(place.listed, "whisper-1", present=False)
    assert code_of(await ask(place, ASR, form(MODEL, FILE))) in {(404, "model_not_found"), (503, "no_worker")}
    place.worker.spawn()
    await asyncio.to_thread(place.listed, "whisper-1")
    assert heard(await ask(place, ASR, form(MODEL, FILE)))["bytes"] == 4


def _models(place: Place) -> bytes:
    return place.service.fetch("GET", "/api/asr/v1/models")[2]


# --- stock workers ---------------------------------------------------------------------------------------------------


class StockWorker:
    """What nfrx-asr does."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def order(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            order: dict[str, Any] = json.loads(await self.socket.recv())
        return order

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def answer(self, order: dict[str, Any], kind: str, *pieces: bytes) -> None:
        identity = order["request_id"]
        headers = {"Content-Type": kind}
        await self.say(type="http_proxy_response_headers", request_id=identity, status=200, headers=headers)
        for piece in pieces:
            text = base64.b64encode(piece).decode()
            await self.say(type="http_proxy_response_chunk", request_id=identity, data=text)
        await self.say(type="http_proxy_response_end", request_id=identity)


@asynccontextmanager
async def stock(place: Place) -> AsyncIterator[StockWorker]:
    url = f"ws://{place.service.host}:{place.service.port}/api/asr/connect"
    async with connect(url, compression=None, max_size=None) as socket:
        worker = StockWorker(socket)
        config = {"hostname": "h"}
        await worker.say(
            type="register", worker_id="stock", models=["stock-whisper"], max_concurrency=1, agent_config=config
        )
        await asyncio.to_thread(place.listed, "stock-whisper")
        yield worker
    await asyncio.to_thread(place.listed, "stock-whisper", present=False)


async def test_stock_workers_get_forms_in_their_own_language(place: Place) -> None:
    async with stock(place) as worker:
        sound = random.Random(9).randbytes(100_000)
        for streams in (False, True):
            parts = [part("file", sound, "a.wav"), part("model", b"stock-whisper")]
            parts += [part("stream", b"true")] if streams else []
            body = form(*parts)
            asking = asyncio.ensure_future(ask(place, ASR, body, ("Authorization", "Bearer secret"), ("Cookie", "a=b")))
            order = await worker.order()
            assert (order["type"], order["method"], order["path"]) == (
                "http_proxy_request",
                "POST",
                "/audio/transcriptions",
            )
            assert order.get("stream", False) is streams
            assert base64.b64decode(order["body"]) == body
            assert order["headers"]["Content-Type"] == TYPE[1]
            assert not {"Authorization", "Cookie"} & set(order["headers"])
            if streams:
                events = [b'data: {"type":"transcript.text.delta","delta":"hi"}\n\n', b'data: {"type":"x"}\n\n']
                await worker.answer(order, "text/event-stream", *events)
                answer = await asking
                assert (answer.status, answer.body, answer.clean) == (200, b"".join(events), True)
                assert answer.header("content-type") == "text/event-stream"
            else:
                await worker.answer(order, "application/json", b'{"text":"hi"}')
                assert (await asking).body == b'{"text":"hi"}'


async def test_stock_workers_are_spared_what_does_not_fit_a_message(place: Place) -> None:
    async with stock(place) as worker:
        body = form(part("model", b"stock-whisper"), part("file", b"x" * JSON_BODY, "a.wav"))
        chunked = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + 9999]), body[at : at + 9999]) for at in range(0, len(body), 9999)
        )
        for headers, sent in (((), body), ((("Transfer-Encoding", "chunked"),), chunked + b"0\r\n\r\n")):
            answer = await ask(place, ASR, sent, *headers)
            assert code_of(answer) == (413, "body_too_large")
        small = form(part("model", b"stock-whisper"), FILE)
        asking = asyncio.ensure_future(ask(place, ASR, small))
        await worker.answer(await worker.order(), "application/json", b"{}")
        assert (await asking).status == 200


async def test_a_busy_stock_worker_is_waited_for(place: Place) -> None:
    async with stock(place) as worker:
        body = form(part("model", b"stock-whisper"), FILE)
        first, second = (asyncio.ensure_future(ask(place, ASR, body)) for _ in range(2))
        for number in range(2):
            order = await worker.order()
            await asyncio.sleep(0.1)
            await worker.answer(order, "application/json", b"%d" % number)
        assert {(await first).body, (await second).body} == {b"0", b"1"}


async def test_a_key_is_asked_for_where_one_is_set(tmp_path: Path) -> None:
    settings = {"auth": {"admin_key": "e2e-admin-key", "api_key": "the-api-key"}}
    service = Service(tmp_path, {}, settings=settings)
    service.start(ready=False)
    try:
        place = Place.__new__(Place)
        place.service = service
        answer = await ask(place, ASR, form(MODEL, FILE))
        assert code_of(answer) == (401, "unauthorized")
        answer = await ask(place, ASR, form(MODEL, FILE), ("Authorization", "Bearer the-api-key"))
        assert answer.status in {404, 503}
        for path in ("/api/asr/v1/models", "/api/asr/v1/models/x"):
            assert (await asyncio.to_thread(service.fetch, "GET", path))[0] == 401
    finally:
        await asyncio.to_thread(service.stop)
