"""Asks the Docker Engine which containers run scheduled jobs: fixed GETs over its socket, nothing else.

Off unless `discovery.docker_socket` names the socket; it never comes from a request. The whole look takes at most
LOOK_S and LOOK_BYTES. Values of variables and labels leave here only where they are a schedule or a model name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fleetproxy.control.ports import Caller
from fleetproxy.core.backend import Backend
from fleetproxy.core.containers import jobs_of
from fleetproxy.errors import BackendError, BadResponse
from fleetproxy.settings import Discovery as Settings

LOOK_S = 3.0
LOOK_BYTES = 8 * 1024 * 1024
MAX_CONTAINERS = 1000
MAX_JOBS = 2000
AT_ONCE = 4


class Scan(msgspec.Struct, frozen=True):
    containers: int = 0
    #: Fields of `core.jobs.Job`, each name once.
    jobs: Sequence[Mapping[str, Any]] = ()
    #: Why there is nothing, or not everything; None when the look was complete.
    reason: str | None = None


class _Listed(msgspec.Struct):
    id: str = msgspec.field(name="Id")


class _Config(msgspec.Struct):
    env: list[str] | None = msgspec.field(name="Env", default=None)
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _Inspected(msgspec.Struct):
    name: str = msgspec.field(name="Name", default="")
    config: _Config = msgspec.field(name="Config", default_factory=_Config)


class Discovery:
    def __init__(self, caller: Caller, settings: Callable[[], Settings]) -> None:
        self._caller = caller
        self._settings = settings
        self._lock = asyncio.Lock()

    async def scan(self) -> Scan:
        """One look. Never raises for what Docker does: `reason` says why there is nothing."""
        socket = self._settings().docker_socket
        if not socket:
            return Scan(
                reason="Containers are not looked at: set discovery.docker_socket to the Docker Engine's socket"
            )
        if not await asyncio.to_thread(Path(socket).exists):
            return Scan(reason="There is no socket at discovery.docker_socket; is it mounted, is Docker running?")
        async with self._lock:  # one look at a time
            return await self._scan(Backend(name="docker", id=0, column=0, scheme="unix", host=socket))

    async def _scan(self, docker: Backend) -> Scan:
        look = _Look(self._caller, docker)
        reason = None
        try:
            async with asyncio.timeout(LOOK_S):
                await look.run()
        except TimeoutError:
            reason = f"Docker took longer than {LOOK_S:.0f} s; what was seen until then is here"
        except BackendError as error:
            reason = f"Docker could not be asked: {error}"
        jobs: dict[str, Mapping[str, Any]] = {}
        for found in look.found.values():
            for job in found:
                jobs.setdefault(str(job["name"]), job)
        if look.skipped and reason is None:
            reason = f"{look.skipped} containers could not be read"
        return Scan(look.containers, tuple(jobs.values())[:MAX_JOBS], reason)


class _Look:
    """One look at all running containers."""

    def __init__(self, caller: Caller, docker: Backend) -> None:
        self._caller = caller
        self._docker = docker
        self._bytes = 0
        self.containers = 0
        self.skipped = 0
        #: Container's place in the list -> its jobs; in order, whichever answered first.
        self.found: dict[int, list[dict[str, Any]]] = {}

    async def run(self) -> None:
        listed = await self._ask("/containers/json", list[_Listed])
        self.containers = len(listed)
        slots = asyncio.Semaphore(AT_ONCE)

        async def inspect(place: int, container: str) -> None:
            async with slots:
                await self._inspect(place, container)

        self.skipped += max(0, len(listed) - MAX_CONTAINERS)
        async with asyncio.TaskGroup() as tasks:
            for place, one in enumerate(listed[:MAX_CONTAINERS]):
                tasks.create_task(inspect(place, one.id))
        self.found = dict(sorted(self.found.items()))

    async def _inspect(self, place: int, container: str) -> None:
        if not (container.isascii() and container.isalnum() and len(container) <= 128) or self._bytes > LOOK_BYTES:
            self.skipped += 1
            return
        try:
            seen = await self._ask(f"/containers/{container}/json", _Inspected)
        except BackendError:
            self.skipped += 1
            return
        name = seen.name.removeprefix("/")
        self.found[place] = jobs_of(name, seen.config.labels or {}, seen.config.env or [])

    async def _ask(self, path: str, shape: Any) -> Any:
        reply = await self._caller.send(self._docker, "GET", path, LOOK_S)
        self._bytes += len(reply.body)
        if reply.status != 200:
            raise BadResponse(f"the engine answered {reply.status}")
        try:
            return msgspec.json.decode(reply.body, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BadResponse("the engine's answer cannot be read") from None
