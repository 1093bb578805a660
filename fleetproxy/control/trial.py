"""A server tried out before it is trusted: is its address fit, does it answer, what has it, does it say hello."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from fleetproxy import log
from fleetproxy.control import server_calls
from fleetproxy.control.ports import Caller
from fleetproxy.control.probe import Getter, Probe, probe
from fleetproxy.control.saying import Piece, Question, Said, Streamer, say
from fleetproxy.core.backend import Backend, Kind
from fleetproxy.errors import FleetError

_log = log.get("control.servers")

#: Looking may take this long at each path; an answer, for which a model may have to be loaded, that long.
LOOK_S, ANSWER_S = 5.0, 120.0
MAX_MODELS = 200
PROMPT = "Say hello."
#: Where lines go.
Tell = Callable[[dict[str, Any]], None]
_KINDS: tuple[Kind, ...] = ("ollama", "openai")


class Client(Caller, Getter, Streamer, Protocol):
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
    """One trial. Steps are kept as they end; the first that fails is the last.

    With `tell` it is told as it goes, as lines of the API, and models are asked for their answers in pieces.
    """

    def __init__(
        self,
        client: Client,
        clock: Callable[[], float] = time.monotonic,
        tell: Tell | None = None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._tell = tell
        self._began_s = clock()
        self.steps: list[Step] = []
        #: How the answer came, where it was told in pieces.
        self.said: Said | None = None

    def step(self, name: str, ok: bool, detail: str) -> bool:
        now_s = self._clock()
        self.steps.append(Step(name, ok, round((now_s - self._began_s) * 1000, 1), detail))
        self._began_s = now_s
        if self._tell is not None:
            self._tell({"type": "step", **msgspec.to_builtins(self.steps[-1])})
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
        if self._tell is not None:
            self._tell({"type": "found", "kind": kind, "version": found.version, "models": models[:MAX_MODELS]})
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
            if self._tell is not None:
                return await self._say(backend, model, prompt, self._tell)
            answer = await server_calls.prompt(self._client, backend, model, prompt, ANSWER_S)
        except Exception as error:
            self.step("answer", False, server_calls.reason_of(error))
            return None
        self.step("answer", True, f"{model} answered")
        return answer

    async def _say(self, backend: Backend, model: str, prompt: str, tell: Tell) -> str:
        def heard(piece: Piece) -> None:
            tell({"type": "text", "text": piece.text} if piece.text else {"type": "thinking"})

        self.said = await say(self._client, backend, Question(model, prompt, ANSWER_S), heard, self._clock)
        self.step("answer", True, f"{model} answered")
        return self.said.text


def _met(kind: Kind, found: Probe) -> str:
    if not found.reachable:
        return found.error or "it does not answer"
    name = "Ollama" if kind == "ollama" else "an OpenAI-compatible server"
    return f"{name} {found.version}" if found.version else name


def shown(trial: Trial) -> dict[str, Any]:
    return dict(msgspec.to_builtins(trial))


async def lines(run: Callable[[Tell], Awaitable[tuple[Trial, Said | None]]]) -> AsyncGenerator[bytes, None]:
    """A trial as lines of JSON, each as soon as there is something to say; it is ended when nobody reads on.

    The last line is of type `end` or `error`. Nothing piles up: a trial says `saying.MAX_CHARACTERS` at most.
    """
    told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    trying = asyncio.ensure_future(run(told.put_nowait))
    trying.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (line := await told.get()) is not None:
            yield msgspec.json.encode(line) + b"\n"
        yield msgspec.json.encode(await _last(trying)) + b"\n"
    finally:
        trying.cancel()
        await asyncio.wait({trying})


async def _last(trying: Awaitable[tuple[Trial, Said | None]]) -> dict[str, Any]:
    try:
        trial, said = await trying
    except FleetError as error:
        return {"type": "error", "error": str(error)}
    except Exception:
        _log.exception("a trial failed")
        return {"type": "error", "error": "The test itself failed; see the log of fleetproxy"}
    if not trial.ok:
        failed = next(step for step in reversed(trial.steps) if not step.ok and step.name != "models")
        return {"type": "error", "error": failed.detail}
    return {
        "type": "end",
        "ttftMs": said.first_token_ms if said else None,
        "tokens": said.tokens if said else None,
        "tokensPerSecond": said.tokens_per_second if said else None,
        "truncated": said.truncated if said else False,
    }
