"""A server dies under load: reads go on elsewhere, what had begun breaks visibly, a returned server is used again."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from fleetproxy.testing.raw import Answer, connect, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, stopped, until

MakeFake = Callable[..., FakeProcess]
MakeService = Callable[..., Service]


async def stream(service: Service, model: str = "a:1b") -> tuple[Answer, bool]:
    """One streamed chat: its answer, and whether a piece of it had come before its end."""
    body = {"model": model, "messages": [{"role": "user", "content": "tell me"}]}
    async with await connect("127.0.0.1", service.port) as client:
        await client.send(request("POST", "/api/chat", json.dumps(body).encode()))
        answer = await client.answer(within_s=30)
    return answer, bool(answer.pieces)


@pytest.mark.parametrize("processes", [1, 2])
async def test_kill_one_of_two_mid_load(fake: MakeFake, start: MakeService, processes: int) -> None:
    one, two = fake("one", models="a:1b", speed=6, slots=64), fake("two", models="a:1b", speed=6, slots=64)
    service = start({"one": one.url, "two": two.url}, processes=processes)
    answers: list[Answer] = []
    done = asyncio.Event()

    async def client() -> None:
        while not done.is_set():
            answer, _ = await stream(service)
            answers.append(answer)

    running = asyncio.gather(*(client() for _ in range(12)))
    await asyncio.to_thread(until, lambda: len(answers) > 24, 20, "traffic")
    one.kill()
    at_kill = len(answers)
    await asyncio.to_thread(until, lambda: len(answers) > at_kill + 60, 30, "traffic after the kill")
    done.set()
    await running
    for answer in answers:
        assert answer.status == 200, "no error before the first byte reaches a client"
        last = answer.body.rstrip().rpartition(b"\n")[2]
        if answer.clean:
            assert json.loads(last)["done"] is True
        else:
            assert b'"done":true' not in last
            assert "error" in json.loads(last)
    broken = [answer for answer in answers if not answer.clean]
    assert len(broken) <= 12
    assert {answer.header("x-fleet-backend") for answer in broken} <= {"one"}
    assert {answer.header("x-fleet-backend") for answer in answers[-12:]} == {"two"}
    records = service.records([answer.header("x-request-id") or "" for answer in answers])
    outcomes = Counter(record["outcome"] for record in records.values())
    assert outcomes["truncated"] == len(broken)
    assert outcomes["ok"] == len(answers) - len(broken)


async def test_a_returned_server_is_used_again(fake: MakeFake, start: MakeService) -> None:
    one, two = fake("one", models="a:1b"), fake("two", models="a:1b")
    service = start({"one": one.url, "two": two.url}, settings={"routing": {"eject_s": 1.0}})
    one.kill()
    for _ in range(10):
        assert (await stream(service))[0].status == 200
    one.start()
    until(lambda: all(found["isOnline"] for found in service.admin("GET", "/api/servers")), 10, "online again")
    two.kill()
    for _ in range(10):
        answer, _ = await stream(service)
        assert (answer.status, answer.header("x-fleet-backend")) == (200, "one")


async def test_a_frozen_server_is_left_aside_and_its_waiters_end(fake: MakeFake, start: MakeService) -> None:
    """SIGSTOP: connections still complete in the kernel, nothing ever answers."""
    one, two = fake("one", models="a:1b"), fake("two", models="a:1b")
    service = start(
        {"one": one.url, "two": two.url},
        settings={
            "timeouts": {"first_byte_s": 1.5},
            "poll": {"interval_s": 0.5, "timeout_s": 0.5, "offline_threshold": 2, "online_threshold": 1},
        },
    )
    with stopped(one.pid):
        answers = [answer for answer, _ in await asyncio.gather(*(stream(service) for _ in range(8)))]
        assert {answer.status for answer in answers} <= {200, 504}
        servers = service.admin
        until(lambda: not all(found["isOnline"] for found in servers("GET", "/api/servers")), 10, "seen as offline")
        for _ in range(6):
            answer, _ = await stream(service)
            assert (answer.status, answer.header("x-fleet-backend")) == (200, "two")
    until(lambda: all(found["isOnline"] for found in service.admin("GET", "/api/servers")), 10, "online again")


async def test_everybody_dead_is_said_and_mended(fake: MakeFake, start: MakeService) -> None:
    one = fake("one", models="a:1b")
    service = start({"one": one.url}, settings={"routing": {"eject_s": 0.5}})
    one.kill()
    answer, _ = await stream(service)
    assert answer.status in {502, 503}
    until(lambda: service.status("/readyz") == 503, 10, "not ready")
    answer, _ = await stream(service)
    assert answer.status == 503
    assert answer.header("retry-after")
    one.start()
    service.wait_ready()
    assert (await stream(service))[0].status == 200


async def test_control_may_die_under_traffic(fake: MakeFake, start: MakeService) -> None:
    one = fake("one", models="a:1b")
    service = start({"one": one.url}, processes=2, allowed=[r"control ended", r"link"])
    import os

    before = service.pids()["control"]
    os.kill(before, signal.SIGKILL)
    answers = [(await stream(service))[0] for _ in range(20)]
    assert {answer.status for answer in answers} == {200}
    until(lambda: service.pids().get("control") not in {None, before}, 10, "control is back")
    until(lambda: service.status("/readyz") == 200, 10, "ready")
    service.records([answer.header("x-request-id") or "" for answer in answers], within_s=15)
