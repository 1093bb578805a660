"""Faults of processes (P): each P0 case of the catalogue by its number, against real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fleetproxy.testing.processes import cpu_s
from fleetproxy.testing.raw import Answer, RawClient, request
from fleetproxy.testing.script import LAST_CHUNK, NDJSON_HEAD, Keep, Send, Sleep, Stall, chunk, response
from fleetproxy.testing.spawned import until
from fleetproxy.testing.stage import Stage, eventually
from tests.e2e.fault_cases import rounds

pytestmark = pytest.mark.asyncio(loop_scope="module")
OpenStage = Callable[..., Awaitable[Stage]]

CASES = {
    "P-1": "test_p01_a_killed_proxy_takes_only_its_own_streams",
    "P-2": "tests/serve/test_supervisor.py::test_it_never_gives_up_at_run_time",
    "P-3": "test_p03_a_killed_supervisor_leaves_nothing_behind",
    "P-4": "tests/serve/test_supervisor.py::test_a_crash_loop_at_the_start_ends_it_with_one_sentence_that_says_why",
    "P-5": "test_p05_sigterm_refuses_new_work_and_finishes_the_old",
    "P-6": "test_p06_a_client_that_never_ends_does_not_hold_the_exit",
    "P-8": "test_p08_a_second_instance_is_refused_in_a_sentence",
    "P-9": "test_p09_out_of_descriptors_is_survived",
    "P-10": "test_p10_out_of_memory_is_survived",
    "P-14": "test_p14_a_taken_port_is_refused_in_a_sentence",
}
CHAT = b'{"model":"m","messages":[]}'
LINE = b'{"model":"m","message":{"content":"x"},"done":false}\n'
LAST = b'{"model":"m","message":{"content":""},"done":true}\n'
END = [Send(chunk(LAST)), Send(LAST_CHUNK), Keep()]


async def opened(stage: Stage, count: int) -> list[RawClient]:
    """Clients whose streams have begun."""
    clients = [await stage.connect() for _ in range(count)]
    for client in clients:
        await client.send(stage.request("/api/chat", CHAT))
    await asyncio.gather(*(client.until(LINE) for client in clients))
    return clients


async def test_p01_a_killed_proxy_takes_only_its_own_streams(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, timeouts={"stream_idle_s": 60, "first_byte_s": 60})
    release = asyncio.Event()
    stage["a"].choose = lambda *_: [Send(NDJSON_HEAD), Send(chunk(LINE)), Sleep(1.5), *END]
    clients = await opened(stage, rounds(40, 200))
    stage["a"].choose = None
    stage["a"].script = [Send(NDJSON_HEAD), Send(chunk(LINE)), *END]
    before = stage.service.pids()
    killed_s = time.monotonic()
    os.kill(before["proxy-0"], signal.SIGKILL)
    refused = 0
    while "proxy-0" not in stage.service.pids() or stage.service.pids()["proxy-0"] == before["proxy-0"]:
        assert time.monotonic() - killed_s < 10
        try:
            async with await stage.connect() as probe:
                await probe.closed(within_s=0.01)
        except ConnectionRefusedError:
            refused += 1
    assert refused == 0
    ends: list[Answer] = []
    for client in clients:
        rest = Answer()
        found = bytearray()
        while piece := await client.receive(within_s=5):
            found += piece
        rest.body = bytes(found)
        ends.append(rest)
        client.close()
    whole = [rest for rest in ends if rest.body.endswith(b"0\r\n\r\n")]
    broken = [rest for rest in ends if not rest.body.endswith(b"0\r\n\r\n")]
    assert whole, "streams of the other process went on"
    assert broken, "streams of the killed process broke, visibly"
    assert all(LAST in rest.body for rest in whole)
    assert all(LAST not in rest.body for rest in broken)
    served = [(await stage.ask(headers=(("Connection", "close"),))).status for _ in range(20)]
    assert set(served) == {200}
    await asyncio.to_thread(until, lambda: stage.service.in_flight() == 0, 3.0, "again as it was")
    assert stage.service.pids()["proxy-1"] == before["proxy-1"]
    release.set()


async def test_p03_a_killed_supervisor_leaves_nothing_behind(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2)
    clients = await opened_stalled(stage, 3)
    pids = list(stage.service.pids().values())
    stage.service.kill()
    await eventually(lambda: not any(_alive(pid) for pid in pids), 10.0, "every child left")
    for client in clients:
        assert await client.closed() in {"fin", "reset"}
        client.close()
    await asyncio.to_thread(stage.service.start)
    await stage.all_online()
    assert (await stage.ask()).status == 200
    assert len(await stage.records()) == len(stage.asked)


async def opened_stalled(stage: Stage, count: int) -> list[RawClient]:
    stage["a"].script = [Send(NDJSON_HEAD), Send(chunk(LINE)), Stall()]
    clients = await opened(stage, count)
    stage["a"].script = [Send(response(body=b'{"done":true}')), Keep()]
    return clients


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_p05_sigterm_refuses_new_work_and_finishes_the_old(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, timeouts={"drain_s": 15, "stream_idle_s": 30})
    stage["a"].script = [Send(NDJSON_HEAD), Send(chunk(LINE)), Sleep(1.5), *END]
    clients = await opened(stage, 6)
    stage.service.signal(signal.SIGTERM)
    await asyncio.to_thread(until, lambda: stage.service.status("/readyz") == 503, 2.0, "draining is said")
    refused = await stage.ask(within_s=2)
    assert refused.status == 503
    assert refused.header("retry-after")
    assert (refused.header("connection") or "").lower() == "close"
    for client in clients:
        assert LAST in await client.until(b"0\r\n\r\n")
        client.close()
    assert await asyncio.to_thread(stage.service.wait, 20) == 0
    await asyncio.to_thread(stage.service.start)
    records = await stage.records()
    assert [record["outcome"] for record in records] == ["ok"] * 6 + ["refused"]


async def test_p06_a_client_that_never_ends_does_not_hold_the_exit(open_stage: OpenStage) -> None:
    stage = await open_stage(processes=2, timeouts={"drain_s": 1.0, "stream_idle_s": 60, "first_byte_s": 60})
    clients = await opened_stalled(stage, 4)
    started = time.monotonic()
    stage.service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(stage.service.wait, 20) == 0
    assert time.monotonic() - started < 8
    for client in clients:
        rest = b""
        while piece := await client.receive(within_s=2):
            rest += piece
        assert not rest.endswith(b"0\r\n\r\n")
        client.close()
    await asyncio.to_thread(stage.service.start)
    assert {record["outcome"] for record in await stage.records()} == {"aborted"}


async def test_p05_a_second_sigterm_means_now(open_stage: OpenStage) -> None:
    stage = await open_stage(timeouts={"drain_s": 60, "stream_idle_s": 60, "first_byte_s": 60})
    clients = await opened_stalled(stage, 2)
    stage.service.signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert stage.service.alive
    started = time.monotonic()
    stage.service.signal(signal.SIGTERM)
    await asyncio.to_thread(stage.service.wait, 15)
    assert time.monotonic() - started < 8
    for client in clients:
        client.close()
    await asyncio.to_thread(stage.service.start)


def _run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleetproxy", "serve", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def _one_sentence(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode not in {0, None}
    lines = [line for line in done.stderr.splitlines() if not line.startswith('{"ts"')]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("fleetproxy: ")


async def test_p08_a_second_instance_is_refused_in_a_sentence(stage: Stage, tmp_path: Path) -> None:
    same_data = await asyncio.to_thread(
        lambda: _run("--port", "0", "--data-dir", str(stage.service.data), folder=tmp_path)
    )
    _one_sentence(same_data)
    same_port = await asyncio.to_thread(
        lambda: _run("--port", str(stage.service.port), "--data-dir", str(tmp_path / "other"), folder=tmp_path)
    )
    _one_sentence(same_port)
    assert (await stage.ask()).status == 200


async def test_p14_a_taken_port_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for shared in (False, True):
        with socket.socket() as holder:
            if shared:
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            done = await asyncio.to_thread(
                lambda: _run("--port", str(port), "--data-dir", str(tmp_path / "data"), folder=tmp_path)  # noqa: B023
            )
            _one_sentence(done)
            assert str(port) in done.stderr


async def test_p09_out_of_descriptors_is_survived(open_stage: OpenStage) -> None:
    """`ulimit -n 256` and a flood of connections: streams live on, no core is burnt, and it recovers."""
    stage = await open_stage(
        wrapper=["prlimit", "--nofile=256:256"], timeouts={"stream_idle_s": 60, "first_byte_s": 60}
    )
    (streaming,) = await opened_stalled(stage, 1)
    pid = stage.service.pids()["proxy-0"]
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[1] == 256
    flood: list[RawClient] = []
    try:
        for _ in range(400):
            flood.append(await stage.connect())
        before, started = cpu_s(pid), time.monotonic()
        await asyncio.sleep(1.0)
        busy = (cpu_s(pid) - before) / (time.monotonic() - started)
        assert busy < 0.2, f"{busy:.0%} of a core while saturated"
        assert await streaming.closed(within_s=0.1) == "silent"
    finally:
        for client in flood:
            client.close()
        streaming.close()
    await asyncio.to_thread(until, lambda: stage.service.status("/healthz") == 200, 5.0, "healthy again")
    assert (await stage.ask()).status == 200
    assert stage.service.pids()["proxy-0"] == pid
    await stage.settle()


async def test_p10_out_of_memory_is_survived(open_stage: OpenStage) -> None:
    """Large bodies against a process that may have little more memory: refused or broken off, and served again."""
    stage = await open_stage(limits={"buffered_bytes": 1 << 30})
    stage.service.allowed.append(re.compile("Memory|memory|ended|killed|failed"))
    pid = stage.service.pids()["proxy-0"]
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (size + (48 << 20), limits[1]))
    body = b'{"model":"m","pad":"%b"}' % (b"x" * (16 << 20))

    async def one() -> int | None:
        with contextlib.suppress(OSError, AssertionError):
            async with await stage.connect() as client:
                await client.send(request("POST", "/api/chat", body))
                return (await client.answer(within_s=10)).status
        return None

    statuses = await asyncio.gather(*(one() for _ in range(8)))
    assert set(statuses) <= {200, 500, 503, None}
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, limits)
    await asyncio.to_thread(until, lambda: stage.service.status("/readyz") == 200, 10.0, "again as it was")
    for _ in range(3):
        assert (await stage.ask()).status == 200
    assert (await stage.records())[-1]["outcome"] == "ok"


async def test_every_first_order_case_has_its_test() -> None:
    """The table of cases is the index of these files: nothing of the first order is missing, nothing is misnamed."""
    from tests.e2e import (
        test_faults_client,
        test_faults_json,
        test_faults_mcp,
        test_faults_process,
        test_faults_streaming,
        test_faults_transfer,
        test_faults_upstream,
        test_faults_workers,
    )
    from tests.e2e.fault_cases import FIRST_ORDER

    here = {
        "U": test_faults_upstream,
        "C": test_faults_client,
        "J": test_faults_json,
        "S": test_faults_streaming,
        "P": test_faults_process,
        "W": test_faults_workers,
        "M": test_faults_mcp,
        "T": test_faults_transfer,
    }
    root = Path(__file__).parents[2]
    for letter, numbers in FIRST_ORDER.items():
        module = here[letter]
        assert set(module.CASES) == {f"{letter}-{number}" for number in numbers}
        for case, name in module.CASES.items():
            path, _, elsewhere = name.partition("::")
            found = f"def {elsewhere}(" in (root / path).read_text() if elsewhere else hasattr(module, name)
            assert found, f"{case}: {name}"
