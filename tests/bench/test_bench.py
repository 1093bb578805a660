"""The bench's own instruments: if the mock or the load client lies, every number after it does."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import processes, programs, report
from bench.measure import Outcome
from bench.targets import Target

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None and not os.environ.get("FLEETPROXY_TEST_ALL"), reason="gcc compiles the two programs"
)


STREAMS = ("--connections", "3", "--rounds", "2", "--chunks", "5", "--gap-us", "500")


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    return programs.build()


@pytest.fixture(scope="module")
def port(built: dict[str, Path]) -> Iterator[int]:
    with programs.mock(built["mock"]) as (port, _pid):
        yield port


def run(built: dict[str, Path], port: int, mode: str, *options: str, path: str = "/api/chat") -> programs.Load:
    command = [str(built["load"]), mode, "--url", f"http://127.0.0.1:{port}{path}", *options]
    return programs.load(command, sorted(os.sched_getaffinity(0)))


def fetch(port: int, method: str, path: str, body: str | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("size", ["200", "45000"])
def test_unary_answers_are_whole_and_of_the_asked_size(built: dict[str, Path], port: int, path: str, size: str) -> None:
    options = ("--connections", "4", "--seconds", "0.1", "--request-bytes", size, "--answer-bytes", "777")
    load = run(built, port, "unary", *options, path=path)
    assert load.requests >= 4
    assert load.latency_us is not None
    assert load.latency_us.count == load.requests


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_streams_deliver_every_piece_with_its_travel_time(built: dict[str, Path], port: int, path: str) -> None:
    load = run(built, port, "stream", *STREAMS, path=path)
    assert (load.requests, load.chunks) == (6, 30)
    assert load.ttft_us is not None
    assert load.delay_us is not None
    assert (load.ttft_us.count, load.delay_us.count) == (6, 30)
    assert 0 < load.delay_us.p50 <= load.delay_us.p90 <= load.delay_us.p99 <= load.delay_us.max


def test_idle_streams_are_held_until_told(built: dict[str, Path], port: int) -> None:
    command = [str(built["load"]), "idle", "--url", f"http://127.0.0.1:{port}/api/chat", "--connections", "100"]
    with programs.held(command, sorted(os.sched_getaffinity(0))) as close:
        assert close().chunks == 100


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_a_wrong_status_ends_the_bench(built: dict[str, Path], port: int, mode: str) -> None:
    with pytest.raises(programs.BenchError, match="404"):
        run(built, port, mode, path="/nowhere")


def test_a_wrong_status_ends_the_holding_of_streams(built: dict[str, Path], port: int) -> None:
    command = [str(built["load"]), "idle", "--url", f"http://127.0.0.1:{port}/nowhere"]
    with (
        pytest.raises(programs.BenchError, match="404"),
        programs.held(command, sorted(os.sched_getaffinity(0))),
    ):
        pytest.fail("nothing is held")


def test_an_answer_of_another_size_ends_the_bench(built: dict[str, Path], port: int) -> None:
    # No JSON answer is that small: the mock sends its smallest.
    with pytest.raises(programs.BenchError, match="answer size"):
        run(built, port, "unary", "--answer-bytes", "10", "--seconds", "0.1")


def test_nobody_listening_ends_the_bench(built: dict[str, Path]) -> None:
    with pytest.raises(programs.BenchError, match="connect"):
        run(built, 1, "unary", "--seconds", "0.1")


def test_the_mock_speaks_enough_ollama_to_be_polled(port: int) -> None:
    for path, models in (("/api/tags", "models"), ("/api/ps", "models"), ("/v1/models", "data")):
        answer, body = fetch(port, "GET", path)
        assert answer.status == 200
        assert len(json.loads(body)[models]) == 1
    assert "version" in json.loads(fetch(port, "GET", "/api/version")[1])
    assert fetch(port, "GET", "/nowhere")[0].status == 404


def test_ollama_streams_end_with_the_done_line(port: int) -> None:
    answer, body = fetch(port, "POST", "/api/chat?chunks=3&gap_us=100&chunk_bytes=150", '{"model":"bench"}')
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["done"] for line in lines] == [False, False, True]
    assert len(body.splitlines(keepends=True)[0]) == 150


def test_openai_streams_end_with_done(port: int) -> None:
    answer, body = fetch(port, "POST", "/v1/chat/completions?chunks=3&gap_us=100", '{"model":"bench","stream":true}')
    assert answer.headers["content-type"] == "text/event-stream"
    *events, end = body.removesuffix(b"\n\n").split(b"\n\n")
    assert [json.loads(event[6:])["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]
    assert end == b"data: [DONE]"


def test_chunked_request_bodies_are_understood(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    pieces = iter([b'{"model":"bench",', b'"stream":false,', b'"messages":"bench bytes=600;"}'])
    try:
        connection.request("POST", "/api/chat", pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        with connection.getresponse() as answer:
            assert len(answer.read()) == 600
    finally:
        connection.close()


def test_cpu_time_of_a_process_is_what_it_burned() -> None:
    burner = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        roles = processes.tree([burner.pid])
        before = processes.cpu(roles)
        limit = time.monotonic() + 10
        while (us := sum(processes.cpu_between(before, processes.cpu(roles)).values())) < 20_000:
            assert time.monotonic() < limit
        assert us < (time.monotonic() - limit + 10) * 1e6 + 20_000
        assert processes.rss_kib(roles)["sh"] > 0
    finally:
        burner.kill()
        burner.wait()
    with pytest.raises(ProcessLookupError):
        processes.cpu_between(before, processes.cpu(roles))


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/usr/bin/python3 -m fleetproxy.process proxy 1 /run/x 5", "proxy-1"),
        ("python3 -m fleetproxy.process control 0 /run/x", "control"),
        ("/v/bin/python /v/bin/fleetproxy serve --config x.toml", "supervisor"),
        ("nginx: worker process", "nginx"),
        ("/v/bin/python /v/bin/fleetproxy worker llm --server-url ws://x", "agent"),
        ("/v/bin/python -m bench.stock_agent llm --server-url ws://x", "agent"),
    ],
)
def test_processes_are_recognised_by_their_command_line(command: str, role: str) -> None:
    assert processes.role_of(command.split(" ")) == role


NAMES = {"": "fleetproxy", "dial": "dial-in", "json": "dial-in, nfrx JSON"}


def outcome(**ours: float) -> Outcome:
    base = {"unary_us": 10.0, "step_us": 10.0, "spread_us": 10.0}
    values: dict[str, dict[str, list[float]]] = {"nginx": {key: [value] for key, value in base.items()}}
    for key, value in ours.items():
        target, _, metric = key.rpartition("__")
        values.setdefault(NAMES[target], {})[metric] = [value]
    names = [Target(name=name, url="", counted=("proxy-",)) for name in NAMES.values()]
    return Outcome((Target(name="nginx", url=""), *names), values, 0.0, 0.0, 1.0)


GOOD = {"unary_us": 59.0, "step_us": 19.0, "spread_us": 19.0, "ttft_p50_ms": 1.4, "delay_p50_ms": 0.2, "idle_kib": 47.0}
GOOD |= {"dial__step_us": 99.0, "dial__spread_us": 99.0, "json__step_us": 129.0, "json__spread_us": 129.0}


def test_a_bar_holds_up_to_its_limit_and_fails_beyond_it_or_unmeasured() -> None:
    assert all(holds for holds, _ in report.verdicts(outcome(**GOOD)))
    for key, value in GOOD.items():
        assert [holds for holds, _ in report.verdicts(outcome(**GOOD | {key: value * 1.6}))].count(False) == 1
        missing = {name: number for name, number in GOOD.items() if name != key}
        assert [holds for holds, _ in report.verdicts(outcome(**missing))].count(False) == 1


def test_the_table_shows_ratios_to_nginx() -> None:
    text = report.markdown(outcome(**GOOD), "2026-01-01")
    assert "| fleetproxy |" in text
    assert "| 10.0 | 59.0 | 5.90 |" in text
    assert "| 10.0 | 19.0 | 1.90 | 99.0 | 9.90 | 129.0 | 12.90 |" in text
    assert "45 KB" not in text, "a row nobody has a number for"
    assert "2026-01-01" in text
