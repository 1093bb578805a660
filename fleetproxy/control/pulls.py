"""Pulls of models onto servers: a few at a time, with progress, each ending in the record of actions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from fleetproxy.control.server_calls import Progress, pull, reason_of
from fleetproxy.control.state import Store, actions
from fleetproxy.core.backend import Backend
from fleetproxy.errors import RateLimited
from fleetproxy.transport.base import Transport

AT_ONCE = 4
MAX_WAITING = 64


class Pulls:
    def __init__(
        self, store: Store, transport: Transport, now: Callable[[], datetime], done: Callable[[], None]
    ) -> None:
        self._store = store
        self._transport = transport
        self._now = now
        self._done = done
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[int, asyncio.Task[str]] = {}
        #: Action id -> how far it is, while it runs.
        self.progress: dict[int, Progress] = {}
        #: What those are: action id -> (model, server).
        self._what: dict[int, tuple[str, Backend]] = {}

    def refuse_when_full(self) -> None:
        """Raises RateLimited."""
        if len(self._tasks) >= MAX_WAITING:
            raise RateLimited("Too many pulls are waiting; try again when some have ended")

    async def start(self, action_id: int, backend: Backend, model: str) -> asyncio.Task[str]:
        """Begin the pull of an action that is pending. The task ends with "" or with why it failed."""
        self.progress[action_id] = Progress()
        self._what[action_id] = (model, backend)
        task = asyncio.create_task(self._run(action_id, backend, model), name=f"pull {model} on {backend.name}")
        self._tasks[action_id] = task
        task.add_done_callback(lambda _: (self._tasks.pop(action_id, None), self._what.pop(action_id, None)))
        # Under way before anybody can cancel it: a task that never began would not write down its end.
        await asyncio.sleep(0)
        return task

    def cancel(self, action_id: int) -> bool:
        """Stop a pull; what was fetched stays on the server. False: it is not running."""
        task = self._tasks.get(action_id)
        return task is not None and task.cancel()

    def shown(self) -> list[dict[str, Any]]:
        """The pulls that run, or wait for their turn, as the live stream shows them."""
        return [
            {
                "actionId": action_id,
                "modelName": self._what[action_id][0],
                "serverId": self._what[action_id][1].id,
                "serverName": self._what[action_id][1].name,
                **msgspec.to_builtins(seen),
            }
            for action_id, seen in self.progress.items()
            if action_id in self._what
        ]

    async def close(self) -> None:
        running = list(self._tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, action_id: int, backend: Backend, model: str) -> str:
        status: actions.Status = "failed"
        detail = "Cancelled"
        try:
            async with self._slots:
                await pull(self._transport, backend, model, lambda seen: self.progress.update({action_id: seen}))
            status, detail = "success", "Pull completed"
        except Exception as error:
            detail = reason_of(error)
        finally:
            self.progress.pop(action_id, None)
            await self._store.write(actions.finish, action_id, status, detail, self._now())
        self._done()
        return "" if status == "success" else detail
