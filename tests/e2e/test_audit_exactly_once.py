"""Every answered request has exactly one record, through kill -9 of a proxy and of control in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from uuid import uuid4

from fleetproxy.testing.raw import connect, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, until
from tests.e2e.fault_cases import rounds

MakeFake = Callable[..., FakeProcess]
MakeService = Callable[..., Service]
CLIENTS = 16


async def test_a_thousand_requests_and_two_kills(fake: MakeFake, start: MakeService) -> None:
    """Ids answered in full: one row each. Rows of ids not answered: at most what was in flight at the kills."""
    one, two = fake("one", models="a:1b", slots=64), fake("two", models="a:1b", slots=64)
    service = start({"one": one.url, "two": two.url}, processes=2, allowed=[r"ended: killed", r"link"])
    total = rounds(1000, 10_000)
    answered: list[str] = []
    unanswered: list[str] = []
    left = iter(range(total))

    async def client(number: int) -> None:
        for index in left:
            identity = f"once-{uuid4().hex}"
            body = {"model": "a:1b", "messages": [{"role": "user", "content": "x"}], "stream": index % 2 == 0}
            data = request("POST", "/api/chat", json.dumps(body).encode(), [("X-Request-Id", identity)])
            try:
                async with await connect("127.0.0.1", service.port) as made:
                    await made.send(data)
                    answer = await made.answer(within_s=20)
            except OSError:
                unanswered.append(identity)
                continue
            (answered if answer.clean and answer.status == 200 else unanswered).append(identity)
            if len(answered) + len(unanswered) == total // 3:
                os.kill(service.pids()["proxy-1"], signal.SIGKILL)
            if len(answered) + len(unanswered) == total * 2 // 3:
                os.kill(service.pids()["control"], signal.SIGKILL)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    assert len(answered) + len(unanswered) == total
    assert len(unanswered) <= CLIENTS, "only what the killed process had in hand is lost"
    until(lambda: service.status("/readyz") == 200, 15, "ready again")
    sql = "select request_id, count(*) as n from requests where request_id like 'once-%' group by request_id"

    def counts() -> dict[str, int]:
        return {row["request_id"]: row["n"] for row in service.rows(sql)}

    until(lambda: set(answered) <= set(counts()), 20, "every answered request has a row")
    found = counts()
    assert set(found.values()) == {1}
    assert set(found) <= {*answered, *unanswered}
    assert len(set(found) - set(answered)) <= CLIENTS


async def test_rows_outlive_a_clean_stop_and_a_kill_of_everything(fake: MakeFake, start: MakeService) -> None:
    one = fake("one", models="a:1b")
    service = start({"one": one.url}, processes=2)
    ids: list[str] = []

    async def some(count: int) -> None:
        for _ in range(count):
            identity = f"kept-{uuid4().hex}"
            data = request("POST", "/api/show", b'{"model":"a:1b"}', [("X-Request-Id", identity)])
            async with await connect("127.0.0.1", service.port) as client:
                await client.send(data)
                assert (await client.answer()).status == 200
            ids.append(identity)

    await some(30)
    assert await asyncio.to_thread(service.stop) == 0
    await asyncio.to_thread(service.start)
    await some(30)
    pids = [service.pid, *service.pids().values()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    service.wait()
    await asyncio.to_thread(service.start)
    assert set(await asyncio.to_thread(service.records, ids, 15)) == set(ids)
