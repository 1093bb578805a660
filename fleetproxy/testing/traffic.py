"""Made-up traffic: who asks what and when, from a seed; and the clients that carry it out.

The plan is a pure, endless row of visits; `drive` lets them happen against an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import orjson

from fleetproxy.testing.fakes.words import WORDS
from fleetproxy.testing.raw import connect, request

#: Seconds of one "day": quiet, busy and quiet again.
DAY_S = 120.0
BASE_PER_S = 2.5
#: A burst comes about this often.
BURST_EVERY_S = 25.0
#: At most so many visits at once; more are dropped, as a full client drops its work.
MOST_AT_ONCE = 64

SOURCES = ("open-webui", "nightly-batch", "support-bot", "notebook", "code-helper")
#: (weight, kind, model)
CHOICES: tuple[tuple[int, str, str], ...] = (
    (30, "chat", "llama3.2:3b"),
    (14, "chat", "llama3.1:8b"),
    (10, "chat", "qwen3:8b"),
    (12, "openai", "meta-llama/Llama-3.1-8B-Instruct"),
    (8, "openai", "llama3.2:3b"),
    (8, "openai", "phi-4-mini"),
    (6, "generate", "llama3.2:3b"),
    (4, "anthropic", "qwen3:8b"),
    (10, "embed", "nomic-embed-text"),
    (6, "openai-embed", "nomic-embed-text"),
    (2, "chat", "a-model-nobody-has"),
)


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the plan."""

    #: Seconds after the start.
    at_s: float
    path: str
    body: bytes
    source: str
    #: The client hangs up this long after asking; None waits for the end.
    patience_s: float | None = None


def plan(seed: int) -> Iterator[Visit]:
    """Visits in order of time, for ever; equal seeds give equal plans."""
    chance = Random(seed)  # noqa: S311 - made-up traffic, no secrets
    now_s = 0.0
    burst_s = chance.uniform(5, BURST_EVERY_S)
    while True:
        now_s += chance.expovariate(rate_per_s(now_s))
        if now_s >= burst_s:
            source = chance.choice(SOURCES)
            for number in range(chance.randint(6, 16)):
                yield _visit(chance, burst_s + number * 0.03, source)
            now_s = max(now_s, burst_s + 0.5)
            burst_s = now_s + chance.expovariate(1 / BURST_EVERY_S)
        yield _visit(chance, now_s, chance.choice(SOURCES))


def rate_per_s(now_s: float) -> float:
    """Requests per second at a time of the day."""
    return BASE_PER_S * (1.0 - 0.7 * math.cos(2 * math.pi * now_s / DAY_S))


def _visit(chance: Random, at_s: float, source: str) -> Visit:
    _, kind, model = chance.choices(CHOICES, [weight for weight, _, _ in CHOICES])[0]
    path, body = _BODIES[kind](chance, model)
    patience_s = chance.uniform(0.1, 0.6) if chance.random() < 0.03 else None
    return Visit(at_s=at_s, path=path, body=orjson.dumps(body), source=source, patience_s=patience_s)


def _sentence(chance: Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


def _messages(chance: Random) -> list[dict[str, str]]:
    return [{"role": "user", "content": _sentence(chance, chance.randint(3, 120))}]


def _chat(chance: Random, model: str) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"model": model, "messages": _messages(chance)}
    if chance.random() < 0.25:
        body["stream"] = False
    return "/api/chat", body


def _generate(chance: Random, model: str) -> tuple[str, dict[str, Any]]:
    return "/api/generate", {"model": model, "prompt": _sentence(chance, chance.randint(3, 60))}


def _openai(chance: Random, model: str) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"model": model, "messages": _messages(chance), "max_tokens": chance.randint(8, 200)}
    if chance.random() < 0.7:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return "/v1/chat/completions", body


def _anthropic(chance: Random, model: str) -> tuple[str, dict[str, Any]]:
    return "/v1/messages", {"model": model, "max_tokens": 200, "stream": True, "messages": _messages(chance)}


def _embed(chance: Random, model: str) -> tuple[str, dict[str, Any]]:
    inputs = [_sentence(chance, chance.randint(5, 60)) for _ in range(chance.choice((1, 8, 32, 64)))]
    return "/api/embed", {"model": model, "input": inputs}


def _openai_embed(chance: Random, model: str) -> tuple[str, dict[str, Any]]:
    inputs = [_sentence(chance, chance.randint(5, 60)) for _ in range(chance.choice((1, 16, 48)))]
    return "/v1/embeddings", {"model": model, "input": inputs}


_BODIES = {
    "chat": _chat,
    "generate": _generate,
    "openai": _openai,
    "anthropic": _anthropic,
    "embed": _embed,
    "openai-embed": _openai_embed,
}


class Tally(msgspec.Struct):
    """What became of the visits."""

    answered: int = 0
    broken: int = 0
    left: int = 0
    dropped: int = 0


async def drive(host: str, port: int, seed: int, speed: float, tally: Tally) -> None:
    """Let the plan happen, `speed` times as fast, until cancelled."""
    start_s = time.monotonic()
    running: set[asyncio.Task[None]] = set()
    try:
        for visit in plan(seed):
            await asyncio.sleep(max(0.0, start_s + visit.at_s / speed - time.monotonic()))
            if len(running) >= MOST_AT_ONCE:
                tally.dropped += 1
                continue
            task = asyncio.create_task(_pay(host, port, visit, tally))
            running.add(task)
            task.add_done_callback(running.discard)
    finally:
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _pay(host: str, port: int, visit: Visit, tally: Tally) -> None:
    fields = [("X-Ollama-Source", visit.source), ("User-Agent", f"{visit.source}/1.0"), ("Connection", "close")]
    data = request("POST", visit.path, visit.body, fields, host=f"{host}:{port}")
    with contextlib.suppress(OSError, AssertionError):
        async with await connect(host, port) as client:
            await client.send(data)
            answer = await client.answer(within_s=visit.patience_s or 120.0)
            if answer.clean:
                tally.answered += 1
            elif visit.patience_s is not None and answer.end == "silent":
                tally.left += 1
            else:
                tally.broken += 1
            return
    tally.broken += 1
