"""The sweep of the exchanges that are under way."""

from __future__ import annotations

import asyncio
import gc
import weakref

import msgspec

from fleetproxy.core.table import Limits
from fleetproxy.proxy.plane import TICK_S
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import connect
from tests.proxy.conftest import snapshot_of


async def test_an_exchange_that_has_ended_is_kept_by_nobody(start):
    """The sweep saw it last: kept there, its `receive` kept its caller's connection open as long as it was quiet."""
    limits = msgspec.structs.replace(Limits(), body_idle_s=0.2)
    async with start(snapshot_of([FaultUpstream(("m",))], limits=limits)) as running:
        async with await connect("127.0.0.1", running.port) as caller:
            await caller.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
            async with asyncio.timeout(5):
                while not running.plane.live:
                    await asyncio.sleep(0.005)
            seen = weakref.ref(next(iter(running.plane.live)))
            assert (await caller.answer(within_s=5)).status == 408
            assert await caller.closed(within_s=5) == "fin"
            await running.settled()
        await asyncio.sleep(2 * TICK_S)
        gc.collect()
        assert seen() is None
