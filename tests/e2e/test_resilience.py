"""Something dies every second: the service stays there, every answer is whole or visibly broken, no row is lost.

Short by default; FLEETPROXY_FAULT_ROUNDS=full runs it for ten minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

import pytest

from fleetproxy.testing.raw import connect, request
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, until
from tests.e2e.fault_cases import rounds

MakeFake = Callable[..., FakeProcess]
MakeService = Callable[..., Service]
KILLS_EVERY_S = 1.0
FAULTS = ("reset_before", "reset_mid", "cut", "error", "unavailable")


@pytest.mark.timeout(rounds(120, 1800))
async def test_random_kills(fake: MakeFake, start: MakeService) -> None:
    """Any child of the service, by SIGKILL; servers now and then freeze or reset."""
    chance = random.Random(19)
    fakes = [fake(name, models="a:1b", slots=64, speed=20) for name in ("one", "two", "three")]
    service = start(
        {made.name: made.url for made in fakes}, processes=2, allowed=[r"ended: killed", r"link", r"Connection", r"hub"]
    )
    results: Counter[str] = Counter()
    answered: list[str] = []
    done = asyncio.Event()
    expected: dict[str, str] = {}

    async def client(number: int) -> None:
        prompts = random.Random(number)
        while not done.is_set():
            identity, prompt = f"soak-{uuid4().hex}", f"prompt {prompts.randint(0, 40)}"
            body = {"model": "a:1b", "messages": [{"role": "user", "content": prompt}]}
            data = request("POST", "/api/chat", json.dumps(body).encode(), [("X-Request-Id", identity)])
            try:
                async with await connect("127.0.0.1", service.port) as made:
                    await made.send(data)
                    answer = await made.answer(within_s=30)
            except OSError:
                results["no connection"] += 1
                continue
            if not answer.clean:
                results["broken"] += 1
                continue
            results[str(answer.status)] += 1
            if answer.status != 200:
                continue
            answered.append(identity)
            text = "".join(json.loads(line)["message"]["content"] for line in answer.body.splitlines())
            assert expected.setdefault(prompt, text) == text, "a wrong body"
            assert json.loads(answer.body.splitlines()[-1])["done"] is True

    clients = [asyncio.ensure_future(client(number)) for number in range(8)]
    for _ in range(rounds(10, 600)):
        await asyncio.sleep(KILLS_EVERY_S)
        if chance.random() < 0.3:
            chance.choice(fakes).fault(
                chance.choice(["reset_before", "reset_mid", "cut", "error", "unavailable"]), next=3
            )
            continue
        pids = service.pids()
        if pids:
            os.kill(pids[chance.choice(sorted(pids))], signal.SIGKILL)
    done.set()
    await asyncio.gather(*clients)
    until(lambda: service.status("/readyz") == 200, 15, "ready after the last kill")
    total = sum(results.values())
    assert results["200"] > total * 0.9, results
    assert results["no connection"] == 0, results
    sql = "select request_id, count(*) as n from requests where request_id like 'soak-%' group by request_id"

    def counts() -> dict[str, int]:
        return {row["request_id"]: row["n"] for row in service.rows(sql)}

    until(lambda: set(answered) <= set(counts()), 20, "every answered request has its row")
    assert set(counts().values()) == {1}
    service.check()
