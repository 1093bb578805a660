"""The machine inside a fake: memory, model loads, slots, pace. Real waiting, reckoned times.

Durations that a fake reports are reckoned from its pace, never measured, so equal requests report equal ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from fleetproxy.testing.fakes.catalog import GB, Model
from fleetproxy.testing.fakes.clock import FOREVER_S
from fleetproxy.testing.fakes.profile import Profile

LOAD_BYTES_PER_S = 2.5 * GB
PREFILL_TOKENS_PER_S = 2500.0
FIRST_TOKEN_S = 0.025
#: Memory beyond the weights: cache and buffers.
OVERHEAD = 1.15
#: Speed 0 waits not at all but still reports durations, as if it were this fast.
REPORTED_SPEED = 1000.0
_GIB = 1 << 30


class Busy(Exception):
    """More requests wait for a load than the queue takes."""


class Pace(msgspec.Struct, frozen=True):
    """How long things take. Times are seconds."""

    speed: float

    @property
    def _divisor(self) -> float:
        return self.speed or REPORTED_SPEED

    def load_s(self, model: Model) -> float:
        return (0.2 + model.size_bytes / LOAD_BYTES_PER_S) / self._divisor

    def prefill_s(self, prompt_tokens: int) -> float:
        return (FIRST_TOKEN_S + prompt_tokens / PREFILL_TOKENS_PER_S) / self._divisor

    def token_s(self, model: Model) -> float:
        return 1.0 / model.tokens_per_s / self._divisor

    async def until(self, start_s: float, elapsed_s: float) -> None:
        """Wait until `elapsed_s` after `start_s` (monotonic); at speed 0 only let others run."""
        wait = start_s + elapsed_s - time.monotonic() if self.speed else 0.0
        await asyncio.sleep(max(wait, 0.0))


class Resident:
    """A model in memory, or on its way there."""

    def __init__(self, model: Model, context: int, needs_bytes: int, vram_bytes: int, slots: int) -> None:
        self.model = model
        self.context = context
        self.size_bytes = needs_bytes
        #: What lies in video memory; the rest runs on the processor.
        self.vram_bytes = vram_bytes
        self.slots = asyncio.Semaphore(slots)
        self.users = 0
        self.ready = False
        self.keep_alive_s = FOREVER_S
        self.expires_ns: int | None = None
        self.last_used_s = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None


class Lease(msgspec.Struct):
    """The right to run one request on a loaded model."""

    resident: Resident
    #: Reckoned load time this request waited for; 0 when the model was there.
    load_ns: int


class Engine:
    """Video memory and what is in it."""

    def __init__(self, profile: Profile, now_ns: Callable[[], int]) -> None:
        self.profile = profile
        self.pace = Pace(profile.speed)
        self.vram_bytes = int(profile.vram_gb * GB)
        self.resident: dict[str, Resident] = {}
        self.running = 0
        self.peak = 0
        self.waiting = 0
        self.loads = 0
        self._now_ns = now_ns
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def used_bytes(self) -> int:
        return sum(item.vram_bytes for item in self.resident.values())

    def context_for(self, model: Model, asked: int | None) -> int:
        """Ollama's rule: what was asked, else a default by memory; never more than the model has."""
        gib = self.vram_bytes / _GIB
        default = 262_144 if gib >= 47 else 32_768 if gib >= 23 else 4096
        return min(asked or default, model.context_length)

    @asynccontextmanager
    async def lease(self, model: Model, keep_alive_s: float, asked_context: int | None = None) -> AsyncIterator[Lease]:
        """Load the model if need be, take a slot, and hold both for the length of the block.

        Busy when the queue is full.
        """
        resident, load_ns = await self._loaded(model, asked_context)
        resident.users += 1
        if resident.timer is not None:
            resident.timer.cancel()
        try:
            async with resident.slots:
                self.running += 1
                self.peak = max(self.peak, self.running)
                try:
                    yield Lease(resident, load_ns)
                finally:
                    self.running -= 1
        finally:
            resident.users -= 1
            self._idle(resident, keep_alive_s)

    async def unload(self, model: Model) -> None:
        """Drop a model once nobody uses it; nothing when it is not loaded."""
        while (resident := self.resident.get(model.name)) is not None:
            if not resident.users and resident.ready:
                self._drop(resident)
                return
            await self._changed.wait()

    async def preload(self, model: Model, keep_alive_s: float, asked_context: int | None = None) -> int:
        """Load without generating; the reckoned load time in nanoseconds."""
        resident, load_ns = await self._loaded(model, asked_context)
        self._idle(resident, keep_alive_s)
        return load_ns

    async def close(self) -> None:
        for resident in tuple(self.resident.values()):
            self._drop(resident)
        for task in tuple(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # --- inside -------------------------------------------------------------------------------------------------

    async def _loaded(self, model: Model, asked_context: int | None) -> tuple[Resident, int]:
        context = self.context_for(model, asked_context)
        queued = False
        load_ns = 0
        try:
            while True:
                resident = self.resident.get(model.name)
                if resident is not None and resident.ready and (asked_context is None or resident.context == context):
                    return resident, load_ns
                if not queued:
                    if self.waiting >= self.profile.queue:
                        raise Busy
                    queued = True
                    self.waiting += 1
                load_ns = int(self.pace.load_s(model) * 1e9)
                if resident is None:
                    if self._make_room(model):
                        self._begin(model, context)
                        continue
                elif resident.ready and not resident.users:  # another context length: the runner starts anew
                    self._drop(resident)
                    continue
                await self._changed.wait()
        finally:
            self.waiting -= queued

    def _make_room(self, model: Model) -> bool:
        """Evict idle models, least recently used first, until this one fits. False while others are in use."""
        needs = min(int(model.size_bytes * OVERHEAD), self.vram_bytes)
        idle = sorted(
            (item for item in self.resident.values() if item.ready and not item.users),
            key=lambda item: item.last_used_s,
        )
        free = self.vram_bytes - self.used_bytes
        if free + sum(item.vram_bytes for item in idle) < needs:
            return False
        for item in idle:
            if free >= needs:
                break
            free += item.vram_bytes
            self._drop(item)
        return True

    def _begin(self, model: Model, context: int) -> None:
        needs = int(model.size_bytes * OVERHEAD)
        slots = 1 if model.embeds_only and self.profile.kind == "ollama" else self.profile.slots
        resident = Resident(model, context, needs, min(needs, self.vram_bytes), slots)
        self.resident[model.name] = resident
        self.loads += 1
        # A task of its own: a client that leaves during the load does not undo it for the others.
        task = asyncio.get_running_loop().create_task(self._load(resident))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, resident: Resident) -> None:
        await self.pace.until(time.monotonic(), self.pace.load_s(resident.model))
        resident.ready = True
        self._notify()

    def _idle(self, resident: Resident, keep_alive_s: float) -> None:
        resident.last_used_s = time.monotonic()
        resident.keep_alive_s = keep_alive_s
        if self.resident.get(resident.model.name) is resident and not resident.users:
            if resident.timer is not None:
                resident.timer.cancel()
                resident.timer = None
            resident.expires_ns = None
            if keep_alive_s == 0:
                self._drop(resident)
            elif keep_alive_s != FOREVER_S:
                resident.expires_ns = self._now_ns() + int(keep_alive_s * 1e9)
                resident.timer = asyncio.get_running_loop().call_later(keep_alive_s, self._expire, resident)
        self._notify()

    def _expire(self, resident: Resident) -> None:
        if not resident.users and self.resident.get(resident.model.name) is resident:
            self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        if resident.timer is not None:
            resident.timer.cancel()
        self.resident.pop(resident.model.name, None)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
