"""Notices on their way out: a lane per destination, each with its own pace, so that one that hangs holds up no other.

Putting a notice in never waits. What gathers in a lane while its last message is being sent goes out together. When
too much waits, the oldest of the longest lane is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence

from fleetproxy import log
from fleetproxy.control.notify.messages import Notice
from fleetproxy.control.notify.telegram import Hopeless, Later
from fleetproxy.errors import BackendError

_log = log.get("control.notify")

MAX_WAITING = 1000
MAX_LANES = 256
#: Between two messages of a lane: chats take about one a second.
PACE_S = 1.0
TRIES = 5
BACK_OFF_S, BACK_OFF_MAX_S = 5.0, 300.0

Send = Callable[[Sequence[Notice]], Awaitable[None]]


class Outbox:
    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._lanes: dict[Hashable, deque[Notice]] = {}
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        #: Since start: sent, dropped because too many waited, given up after TRIES or at once.
        self.sent = 0
        self.dropped = 0
        self.failed = 0

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lanes.values()))

    def put(self, lane: Hashable, notice: Notice, send: Send) -> None:
        """Queue a notice for a destination; `send` delivers whatever the lane has gathered."""
        if lane not in self._lanes and len(self._lanes) >= MAX_LANES:
            self.dropped += 1
            return
        self._lanes.setdefault(lane, deque()).append(notice)
        if self.waiting > MAX_WAITING:
            max(self._lanes.values(), key=len).popleft()
            self.dropped += 1
        if lane not in self._tasks:
            # Named without its lane, which holds a chat's token: names of tasks come into logs.
            self._tasks[lane] = asyncio.get_running_loop().create_task(self._run(lane, send), name="notices of a lane")

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()
        self._tasks.clear()

    async def settled(self) -> None:
        """Until every lane is empty."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, lane: Hashable, send: Send) -> None:
        waiting = self._lanes[lane]
        try:
            while waiting:
                batch = list(waiting)
                waiting.clear()
                await self._deliver(batch, send)
                await self._sleep(PACE_S)
        finally:
            self._lanes.pop(lane, None)
            self._tasks.pop(lane, None)

    async def _deliver(self, batch: Sequence[Notice], send: Send) -> None:
        back_off_s = BACK_OFF_S
        for attempt in range(TRIES):
            try:
                await send(batch)
            except Later as later:
                await self._sleep(later.pause_s)
            except Hopeless:
                break
            except (BackendError, TimeoutError):
                if attempt + 1 < TRIES:
                    await self._sleep(back_off_s)
                    back_off_s = min(BACK_OFF_MAX_S, back_off_s * 3)
            except Exception:
                _log.exception("a notice could not be sent")
                break
            else:
                self.sent += len(batch)
                return
        self.failed += len(batch)
        _log.warning("%d notices could not be delivered", len(batch))
