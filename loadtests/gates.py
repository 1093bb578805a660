"""What a run must reach. Numbers of the run in, verdicts out; `report.py` reads the numbers off Locust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Gate(NamedTuple):
    """One demand: its option, the number it is about, what the number is counted in."""

    name: str
    unit: str
    help: str
    #: The number must not be below the limit, instead of not above it.
    at_least: bool = False


GATES = (
    Gate("p95-ttft-ms", "ms", "time to first token, 95th percentile over all streams, at most"),
    Gate("p95-itl-ms", "ms", "time between tokens, 95th percentile over all streams, at most"),
    Gate("p95-e2e-ms", "ms", "whole answers, 95th percentile over all streams, at most"),
    Gate("p50-overhead-ms", "ms", "time to first token by the proxy minus direct (needs --direct), median, at most"),
    Gate("fail-ratio", "ratio", "share of requests that failed, 0 to 1, at most"),
    Gate("min-streams", "streams", "whole streams, at least", at_least=True),
)


class Verdict(NamedTuple):
    holds: bool
    text: str


def verdicts(limits: Mapping[str, float | None], numbers: Mapping[str, float | None]) -> Iterator[Verdict]:
    """Each gate that was asked for. A number nobody measured passes no gate."""
    for gate in GATES:
        limit = limits.get(gate.name)
        if limit is None:
            continue
        number = numbers.get(gate.name)
        if number is None:
            yield Verdict(False, f"FAIL  {gate.name}: not measured (limit {limit:g})")
            continue
        holds = number >= limit if gate.at_least else number <= limit
        yield Verdict(holds, f"{'pass' if holds else 'FAIL'}  {gate.name}: {number:.4g} (limit {limit:g})")
