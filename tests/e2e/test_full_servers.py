"""Servers with `max_concurrent` that die: their slots are always free, and nobody may be lost to them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import RawClient
from fleetproxy.testing.script import NDJSON_HEAD, Keep, Send, Stall, chunk, response
from fleetproxy.testing.stage import DEFAULT, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMITS = {"max_concurrent": 1, "embedding_batch_size": 2}

CHAT = b'{"model":"m","messages":[]}'
LINE = b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}\n'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(folder: Path) -> AsyncIterator[Stage]:
    upstreams = {name: FaultUpstream(("m",)) for name in "ab"}
    made = await Stage.open(folder / "limited", upstreams=upstreams, servers=dict.fromkeys("ab", LIMITS))
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(limited: Stage) -> AsyncIterator[Stage]:
    await limited.reset()
    yield limited
    await limited.settle()


async def held(stage: Stage, name: str) -> RawClient:
    """A stream that keeps the one slot of this server."""
    stage[name].script = [Send(NDJSON_HEAD + chunk(LINE)), Stall()]
    client = await stage.connect()
    await client.send(stage.request("/api/chat", CHAT, (("X-Ollama-Pin-Server", name),)))
    assert (await client.head()).status == 200
    stage[name].script = DEFAULT
    return client


async def test_a_dead_server_costs_nobody_his_answer_while_the_others_are_full(stage: Stage) -> None:
    # The one with a free slot is dead: the request stands in line for the one that is full.
    holder = await held(stage, "b")
    await stage["a"].vanish()
    waiter = await stage.connect()
    await waiter.send(stage.request("/api/chat", CHAT))
    answering = asyncio.ensure_future(waiter.answer())
    await asyncio.sleep(0.3)
    assert not answering.done(), answering.result()
    holder.close()
    answer = await answering
    assert (answer.status, answer.header("x-fleet-backend"), answer.header("x-fleet-retries")) == (200, "b", "1")
    timing = re.fullmatch(r"queue;dur=([\d.]+), upstream;dur=([\d.]+)", answer.header("server-timing") or "")
    assert timing is not None
    assert float(timing[1]) >= 250 > float(timing[2]), "the wait in line is not the server's time"
    waiter.close()

    # Both are full; the one whose slot comes free has died.
    stage["a"].listen()
    await stage.all_online()
    first, second = await held(stage, "a"), await held(stage, "b")
    waiter = await stage.connect()
    await waiter.send(stage.request("/api/chat", CHAT))
    answering = asyncio.ensure_future(waiter.answer())
    await asyncio.sleep(0.05)
    await stage["a"].vanish()
    await asyncio.sleep(0.3)
    assert not answering.done(), answering.result()
    second.close()
    answer = await answering
    assert (answer.status, answer.header("x-fleet-backend")) == (200, "b")
    for client in (first, waiter):
        client.close()
    outcomes = [record["outcome"] for record in await stage.records()]
    assert outcomes == ["client_gone", "ok", "truncated", "client_gone", "ok"]


async def test_slices_of_a_dead_server_wait_for_the_full_ones(stage: Stage) -> None:
    holder = await held(stage, "b")
    await stage["a"].vanish()
    stage["b"].script = [Send(response(body=b'{"model":"m","embeddings":[[1],[2]]}')), Keep()]
    body = b'{"model":"m","input":["one","two","three","four"]}'
    answering = asyncio.ensure_future(stage.ask("/api/embed", body))
    await asyncio.sleep(0.3)
    assert not answering.done(), answering.result()
    holder.close()
    answer = await answering
    assert (answer.status, answer.header("x-fleet-backend")) == (200, "a, b")
    assert json.loads(answer.body)["embeddings"] == [[1], [2]] * 2
