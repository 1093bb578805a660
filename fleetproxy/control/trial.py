"""A server tried out before it is trusted: is its address fit, does it answer, what has it, does it say hello."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from fleetproxy.control import server_calls
from fleetproxy.control.ports import Caller
from fleetproxy.control.probe import Getter, Probe, probe
from fleetproxy.core.backend import Backend, Kind

#: Looking may take this long at each path; an answer, for which a model may have to be loaded, that long.
LOOK_S, ANSWER_S = 5.0, 120.0
MAX_MODELS = 200
PROMPT = "Say hello."
_KINDS: tuple[Kind, ...] = ("ollama", "openai")


class Client(Caller, Getter, Protocol):
    """`transport.httpx_client.HttpxClient`."""

    async def forget(self, name: str) -> None: ...


class Step(msgspec.Struct, frozen=True):
    name: str
    ok: bool
    ms: float
    detail: str


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """How it went. `kind` is what the server turned out to be."""

    ok: bool
    steps: tuple[Step, ...]
    kind: str | None = None
    version: str | None = None
    models: tuple[str, ...] = ()
    answer: str | None = None


class Trier:
    """One trial. Steps are kept as they end; the first that fails is the last."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._began_s = clock()
        self.steps: list[Step] = []

    def step(self, name: str, ok: bool, detail: str) -> bool:
        now_s = self._clock()
        self.steps.append(Step(name, ok, round((now_s - self._began_s) * 1000, 1), detail))
        self._began_s = now_s
        return ok

    async def run(self, backend: Backend, kinds: tuple[Kind, ...], model: str | None, prompt: str) -> Trial:
        """Ask a server. Its name is its own for the time of the trial: no connection of anybody else is touched."""
        backend = replace(backend, name=f"trial {secrets.token_hex(8)}")
        try:
            return await self._run(backend, kinds or _KINDS, model, prompt)
        finally:
            await self._client.forget(backend.name)

    async def _run(self, backend: Backend, kinds: tuple[Kind, ...], model: str | None, prompt: str) -> Trial:
        found, kind = Probe(reachable=False), kinds[0]
        for wanted in kinds:
            kind = wanted
            found = await probe(self._client, replace(backend, kind=kind), LOOK_S, set())
            if found.reachable:
                break
        if not self.step("connect", found.reachable, _met(kind, found)):
            return Trial(ok=False, steps=tuple(self.steps))
        listing = found.on_disk or found.v1_models
        models = tuple(name for name, _ in listing.entries) if listing else ()
        self.step("models", bool(models), f"{len(models)} models" if models else "it lists no models")
        answer = None
        if model is not None:
            answer = await self._ask(replace(backend, kind=kind), model, prompt)
        return Trial(
            ok=all(step.ok for step in self.steps if step.name != "models"),
            steps=tuple(self.steps),
            kind=kind,
            version=found.version,
            models=models[:MAX_MODELS],
            answer=answer,
        )

    async def _ask(self, backend: Backend, model: str, prompt: str) -> str | None:
        try:
            answer = await server_calls.prompt(self._client, backend, model, prompt, ANSWER_S)
        except Exception as error:
            self.step("answer", False, server_calls.reason_of(error))
            return None
        self.step("answer", True, f"{model} answered")
        return answer


def _met(kind: Kind, found: Probe) -> str:
    if not found.reachable:
        return found.error or "it does not answer"
    name = "Ollama" if kind == "ollama" else "an OpenAI-compatible server"
    return f"{name} {found.version}" if found.version else name


def shown(trial: Trial) -> dict[str, Any]:
    return dict(msgspec.to_builtins(trial))
