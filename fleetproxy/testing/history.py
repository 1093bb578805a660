"""A made-up past for the demo: a week of requests, models coming and going, and servers that were away, from a seed.

Rows are those that the service itself writes; `write` leaves them in a spool, where control finds them at its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec

from fleetproxy.control.analytics.rows import TABLES, ModelEvent, Row, ServerEvent
from fleetproxy.core.record import Attempt, AuditRecord, Outcome
from fleetproxy.link.spool import Spool
from fleetproxy.testing.traffic import SOURCES

HOUR_S = 3600
DAYS = 7
#: Requests in an hour of middling business.
BASE_PER_HOUR = 34.0
#: The last this many seconds are left to the traffic that is about to come.
UNTIL_NOW_S = 20.0
#: Names of people whose keys were used, by the source they ask from; the others have no keys.
OWNERS = {"notebook": "ada", "code-helper": "grace", "nightly-batch": "batch"}


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A server of the fleet as its past needs it: `id` is its number at the service."""

    id: int
    name: str
    #: Tokens per second of one answer.
    pace: float
    #: Bytes of memory of each of its models.
    models: dict[str, int]
    #: Models come and go (Ollama), or stay for ever.
    swaps: bool
    #: Stretches in which it was away: hours before now, and minutes.
    away: tuple[tuple[float, float], ...] = ()


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One sort of request: how often, where, how long its prompt and answer are (tokens; 0: no text is written)."""

    weight: int
    dialect: str
    path: str
    model: str
    prompt: int
    answer: int
    sources: tuple[str, ...] = SOURCES


KINDS: tuple[Kind, ...] = (
    Kind(weight=30, dialect="ollama", path="/api/chat", model="llama3.2:3b", prompt=420, answer=160),
    Kind(weight=16, dialect="ollama", path="/api/chat", model="llama3.1:8b", prompt=900, answer=240),
    Kind(weight=10, dialect="ollama", path="/api/chat", model="qwen3:8b", prompt=700, answer=420),
    Kind(
        weight=14,
        dialect="openai",
        path="/v1/chat/completions",
        model="meta-llama/Llama-3.1-8B-Instruct",
        prompt=1600,
        answer=300,
    ),
    Kind(weight=8, dialect="openai", path="/v1/chat/completions", model="phi-4-mini", prompt=260, answer=90),
    Kind(weight=5, dialect="anthropic", path="/v1/messages", model="qwen3:8b", prompt=800, answer=380),
    Kind(
        weight=12,
        dialect="ollama",
        path="/api/embed",
        model="nomic-embed-text",
        prompt=2400,
        answer=0,
        sources=("nightly-batch", "notebook"),
    ),
    Kind(weight=2, dialect="ollama", path="/api/chat", model="a-model-nobody-has", prompt=300, answer=100),
)


def business(at_s: float) -> float:
    """How busy a moment (seconds since the epoch) is: 1 is middling. Afternoons most, nights and weekends least."""
    hour = at_s / HOUR_S % 24
    weekend = int(at_s // 86400 + 4) % 7 in (6, 0)
    return (1.0 - 0.85 * math.cos(2 * math.pi * (hour - 3) / 24)) * (0.45 if weekend else 1.0)


def requests(seed: int, now_s: float, machines: Sequence[Machine]) -> Iterator[AuditRecord]:
    """The requests of the last days in order of time, the last one a little before `now_s`."""
    chance = Random(seed)  # noqa: S311 - made-up traffic, no secrets
    at_s, until_s = now_s - DAYS * 86400, now_s - UNTIL_NOW_S
    number = 0
    weights = [kind.weight for kind in KINDS]
    while True:
        at_s += chance.expovariate(BASE_PER_HOUR * max(business(at_s), 0.05) / HOUR_S)
        if at_s >= until_s:
            return
        number += 1
        kind = chance.choices(KINDS, weights)[0]
        yield _request(chance, number, kind, machines, at_s=at_s, now_s=now_s)


def _request(
    chance: Random, number: int, kind: Kind, machines: Sequence[Machine], *, at_s: float, now_s: float
) -> AuditRecord:
    source = chance.choice(kind.sources)
    having = [one for one in machines if kind.model in one.models]
    there = [one for one in having if not _away(one, at_s, now_s)]
    crowd = business(at_s)
    outcome: Outcome = "ok"
    status: int | None = 200
    error = reason = backend = None
    attempts: list[Attempt] = []
    queue_ms = chance.expovariate(1 / 400) if chance.random() < 0.05 * crowd else 0.0
    started_ms = queue_ms + 0.4
    prompt = max(4, round(chance.lognormvariate(math.log(kind.prompt), 0.7)))
    tokens: int | None = None
    ttft_ms: float | None = None
    load_ms = 0.0
    if not there:
        outcome, status = "refused", 404 if not having else 503
        error = "model_not_found" if not having else "no_backend"
        total_ms = chance.uniform(0.3, 1.2)
    else:
        chosen = chance.choice(there)
        retried = len(there) > 1 and chance.random() < 0.012
        if retried:
            failed = next(one for one in there if one is not chosen)
            attempts.append(Attempt(backend=failed.name, error="connect_failed", started_ms=started_ms, total_ms=2.1))
            started_ms += 2.3
        backend = chosen
        if chosen.swaps and chance.random() < 0.06:
            reason, load_ms = "model_available", chosen.models[kind.model] / 2.6e9 * 1000 * chance.uniform(0.8, 1.3)
        else:
            reason = "model_loaded_busy" if queue_ms else "model_loaded"
        read_ms = prompt / (chosen.pace * 30) * 1000 * chance.uniform(0.8, 1.5)
        first_ms = load_ms + read_ms + chance.uniform(4, 30)
        tokens = round(chance.lognormvariate(math.log(kind.answer), 0.6)) if kind.answer else None
        pace = chosen.pace * chance.uniform(0.75, 1.1) / (1 + 0.25 * crowd)
        length_ms = first_ms + ((tokens or 0) / pace * 1000)
        fate = chance.random()
        if fate < 0.02:
            outcome, error, length_ms = "client_gone", "client_gone", length_ms * chance.uniform(0.1, 0.9)
            tokens = None
        elif fate < 0.026:
            outcome, error, length_ms = "truncated", "backend_lost", length_ms * chance.uniform(0.2, 0.9)
            tokens = None
        elif fate < 0.032:
            outcome, error, status, length_ms, tokens = "ok", None, 500, first_ms, None
        if error == "client_gone" and length_ms < first_ms:
            status = None
        elif status == 200:
            ttft_ms = started_ms + min(first_ms, length_ms)
        attempts.append(
            Attempt(
                backend=chosen.name,
                status=status,
                error=error,
                started_ms=started_ms,
                first_byte_ms=None if status is None else min(first_ms, length_ms),
                total_ms=length_ms,
            )
        )
        total_ms = started_ms + length_ms
    owner = OWNERS.get(source)
    return AuditRecord(
        request_id=f"history-{number:06d}",
        started_at_us=round(at_s * 1e6),
        process="proxy-0",
        sequence=number,
        source=source,
        user=owner,
        remote_ip=f"192.168.1.{20 + SOURCES.index(source)}",
        user_agent=f"{source}/1.0",
        dialect=kind.dialect,
        endpoint=kind.path,
        method="POST",
        path=kind.path,
        model=kind.model,
        model_served=kind.model if backend is not None else None,
        backend=None if backend is None else backend.name,
        server_id=None if backend is None else backend.id,
        route_reason=reason,
        status=status,
        outcome=outcome,
        error=error,
        retries=max(len(attempts) - 1, 0),
        streamed=bool(kind.answer),
        queue_ms=queue_ms,
        ttft_ms=ttft_ms,
        overhead_ms=None if backend is None else chance.uniform(0.25, 0.7),
        total_ms=total_ms,
        bytes_in=prompt * 4 + 120,
        bytes_out=(tokens or 12) * 90,
        chunks_out=(tokens or 1) if kind.answer else 1,
        tokens_in=prompt if tokens is not None or (not kind.answer and outcome == "ok") else None,
        tokens_out=tokens,
        load_ms=load_ms or None,
        attempts=tuple(attempts),
    )


def _away(machine: Machine, at_s: float, now_s: float) -> bool:
    return any(0 <= at_s - (now_s - hours * HOUR_S) < minutes * 60 for hours, minutes in machine.away)


def models(seed: int, now_s: float, machines: Sequence[Machine]) -> Iterator[ModelEvent]:
    """Each server's models coming into memory and leaving it, server by server; all have left where models swap."""
    chance = Random(f"models {seed}")  # noqa: S311 - made up
    for machine in machines:
        for model, size_bytes in machine.models.items():
            came_s = now_s - DAYS * 86400 + chance.uniform(0, HOUR_S)
            while came_s < now_s - 600:
                stay_s = chance.uniform(0.6, 9) * HOUR_S if machine.swaps else now_s - 60 - came_s
                left_s = min(came_s + stay_s, now_s - 60)
                yield _seen(machine, model, came_s, size_bytes)
                yield _seen(machine, model, left_s, 0)
                came_s = left_s + chance.uniform(0.2, 7) * HOUR_S / max(business(left_s), 0.2)


def _seen(machine: Machine, model: str, at_s: float, size_bytes: int) -> ModelEvent:
    return ModelEvent(
        occurred_at_us=round(at_s * 1e6),
        server_id=machine.id,
        server=machine.name,
        model=model,
        event="loaded" if size_bytes else "unloaded",
        size_bytes=size_bytes,
        vram_bytes=size_bytes,
    )


def absences(now_s: float, machines: Sequence[Machine]) -> Iterator[ServerEvent]:
    """When servers went away and came back."""
    for machine in machines:
        for hours, minutes in machine.away:
            left_s = now_s - hours * HOUR_S
            for event, at_s in (("offline", left_s), ("online", left_s + minutes * 60)):
                yield ServerEvent(
                    occurred_at_us=round(at_s * 1e6),
                    server_id=machine.id,
                    server=machine.name,
                    event="offline" if event == "offline" else "online",
                    detail="connection refused" if event == "offline" else None,
                )


def write(folder: Path, seed: int, now_s: float, machines: Sequence[Machine]) -> int:
    """Leave it all in the spool `folder`; how many rows."""
    encoder = msgspec.json.Encoder()
    rows: dict[str, Iterator[AuditRecord] | Iterator[Row]] = {
        "requests": requests(seed, now_s, machines),
        TABLES[ModelEvent]: models(seed, now_s, machines),
        TABLES[ServerEvent]: absences(now_s, machines),
    }
    written = 0
    for table, found in rows.items():
        spool = Spool(folder, table, "history", "demo")
        block = b"".join(encoder.encode(row) + b"\n" for row in found)
        spool.put(block)
        spool.rotate()
        written += block.count(b"\n")
    return written
