"""How fast a fleet answers, seen from here: first token, between tokens, tokens a second.

The words are the field's: TTFT runs from the request sent to the first piece with content, ITL is the time between two
pieces, and overhead is what the same requests take less when a server is asked directly.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from fleetproxy.remote.call import CallError, Fleet
from fleetproxy.remote.chat import Dialect, Piece, Totals, Wish, chat


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, how often, how many at once."""

    model: str
    requests: int
    at_once: int
    prompt: str
    most_tokens: int
    server: str | None = None
    dialect: Dialect | None = None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    total_ms: float
    ttft_ms: float | None = None
    #: Between two pieces of the answer.
    gaps_ms: tuple[float, ...] = ()
    tokens: int = 0
    server: str = ""
    error: str = ""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    p50: float
    p95: float
    p99: float
    mean: float
    most: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    requests: int
    failed: int
    seconds: float
    requests_per_s: float
    tokens_per_s: float
    ttft_ms: Spread | None
    itl_ms: Spread | None
    total_ms: Spread | None
    servers: dict[str, int]
    #: Text -> how often; ten at most.
    errors: dict[str, int]


def measure(fleet: Fleet, plan: Plan, told: Callable[[int, int], None]) -> Report:
    """Ask `plan.requests` times. `told` hears (done, of all), from this thread alone."""
    began_s = time.monotonic()
    samples: list[Sample] = []
    left = itertools.count()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set() and next(left) < plan.requests:
            samples.append(once(fleet, plan))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(plan.at_once, plan.requests))]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            told(len(samples), plan.requests)
            threads[0].join(0.1) if threads[0].is_alive() else time.sleep(0.05)
    finally:
        stop.set()
    told(len(samples), plan.requests)
    return report(samples, time.monotonic() - began_s)


def once(fleet: Fleet, plan: Plan) -> Sample:
    """One request, timed; its failure is a sample too."""
    wish = Wish(model=plan.model, messages=({"role": "user", "content": plan.prompt},), most_tokens=plan.most_tokens)
    began_s = time.perf_counter()
    moments: list[float] = []
    tokens, server = 0, ""
    try:
        with chat(fleet, wish, server=plan.server, dialect=plan.dialect, silence_s=fleet.timeout_s) as talking:
            server = talking.server
            for part in talking.parts:
                if isinstance(part, Piece):
                    moments.append(time.perf_counter())
                elif isinstance(part, Totals):
                    tokens = part.tokens_out if part.tokens_out is not None else len(moments)
    except CallError as error:
        return Sample(total_ms=(time.perf_counter() - began_s) * 1000, server=server, error=str(error))
    return Sample(
        total_ms=(time.perf_counter() - began_s) * 1000,
        ttft_ms=(moments[0] - began_s) * 1000 if moments else None,
        gaps_ms=tuple((later - earlier) * 1000 for earlier, later in itertools.pairwise(moments)),
        tokens=tokens,
        server=server,
    )


def report(samples: Sequence[Sample], seconds: float) -> Report:
    """The samples, summed up. Failed ones count in nothing but `failed`."""
    good = [sample for sample in samples if not sample.error]
    errors: dict[str, int] = {}
    servers: dict[str, int] = {}
    for sample in samples:
        if sample.error:
            known = sample.error if sample.error in errors or len(errors) < 10 else "others"
            errors[known] = errors.get(known, 0) + 1
        elif sample.server:
            servers[sample.server] = servers.get(sample.server, 0) + 1
    return Report(
        requests=len(samples),
        failed=len(samples) - len(good),
        seconds=round(seconds, 3),
        requests_per_s=round(len(good) / seconds, 2) if seconds else 0.0,
        tokens_per_s=round(sum(sample.tokens for sample in good) / seconds, 1) if seconds else 0.0,
        ttft_ms=spread([sample.ttft_ms for sample in good if sample.ttft_ms is not None]),
        itl_ms=spread([gap for sample in good for gap in sample.gaps_ms]),
        total_ms=spread([sample.total_ms for sample in good]),
        servers=dict(sorted(servers.items())),
        errors=errors,
    )


def spread(values: Sequence[float]) -> Spread | None:
    """None of nothing. Percentiles are values there were (nearest rank)."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(share: float) -> float:
        return round(ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)], 3)

    return Spread(
        p50=rank(0.5),
        p95=rank(0.95),
        p99=rank(0.99),
        mean=round(sum(ordered) / len(ordered), 3),
        most=round(ordered[-1], 3),
    )
