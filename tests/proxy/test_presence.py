from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fleetproxy.core.table import Snapshot
from fleetproxy.core.worker import Offer, Worker
from fleetproxy.proxy import presence as proxy_presence
from fleetproxy.proxy.presence import Presence
from fleetproxy.transport.hub import HubClient
from fleetproxy.wire import payloads


class Published:
    """What a plane was given, and how long each time took it."""

    def __init__(self) -> None:
        self.models: list[int] = []

    def __call__(self, snapshot: Snapshot, others: Mapping[str, Snapshot]) -> None:
        self.models.append(len(snapshot.table.models))


def come(hub: HubClient, number: int) -> None:
    offer = Offer(models=(f"m{number}:1b",), max_concurrency=1, status="idle")
    worker = Worker(
        id=f"w{number}", name=f"w{number}", family="llm", column=2048 + number, protocol="nfrx", offer=offer
    )
    hub._presence(payloads.encode(payloads.Presence(worker=worker)))


@pytest.fixture
def hub(tmp_path: Path) -> HubClient:
    now = iter(range(0, 10_000, 100))
    return HubClient(tmp_path / "hub.sock", "proxy-0", clock=lambda: float(next(now)))  # away for long: no waiting


async def test_news_of_one_moment_are_joined_once(hub: HubClient) -> None:
    published = Published()
    presence = Presence(hub, published, asyncio.get_running_loop())
    presence.publish(Snapshot())
    for number in range(5):
        come(hub, number)
    await presence.settled()
    assert published.models == [0, 5]
    await presence.settled()
    assert published.models == [0, 5]


async def test_what_takes_long_to_join_is_joined_less_often_and_settled_waits_for_it(
    hub: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(proxy_presence, "time", _Time(lambda: next(ticks) * 0.005))  # each join seems to take 5 ms
    published = Published()
    loop = asyncio.get_running_loop()
    presence = Presence(hub, published, loop)
    presence.publish(Snapshot())
    come(hub, 0)
    await presence.settled()
    began_s = loop.time()
    for number in range(1, 20):
        come(hub, number)
        await asyncio.sleep(0)
    assert published.models == [0, 1]
    await presence.settled()
    assert published.models == [0, 1, 20]
    assert loop.time() - began_s >= 0.04


class _Time:
    def __init__(self, perf_counter: Callable[[], float]) -> None:
        self.perf_counter: Any = perf_counter
