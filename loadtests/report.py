"""Listens to Locust: keeps the samples of streams, and at the end prints the proxy's share and the gates' verdicts."""

from __future__ import annotations

import random
from typing import Any

from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtests import options
from loadtests.definitions import Reservoir
from loadtests.gates import GATES, Verdict, verdicts

#: Rows that are numbers of a stream, not requests.
SAMPLES = ("TTFT", "ITL", "TOKENS", "E2E")
#: Those that may be compared: TOKENS are the server's, and E2E is mostly their number.
COMPARED = ("TTFT", "ITL")
#: In front of the names of rows that did not go through the proxy.
DIRECT = "direct "
#: Kept exactly of each row; beyond it a fair sample. Locust itself rounds what it keeps.
MOST_SAMPLES = 50_000

_exact: dict[tuple[str, str], Reservoir] = {}
#: What is said when Locust has printed its tables.
_last_words: list[str] = []

events.init_command_line_parser.add_listener(options.add)


@events.test_start.add_listener
def _forget(environment: Environment, **_: Any) -> None:
    _exact.clear()


@events.request.add_listener
def _sample(request_type: str, name: str, response_time: float, exception: Any, **_: Any) -> None:
    if request_type in SAMPLES and exception is None:
        row = _exact.setdefault((request_type, name), Reservoir(MOST_SAMPLES, random.Random(0)))
        row.add(response_time)


@events.quitting.add_listener
def _verdict(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return  # the master has the numbers of all
    given = vars(environment.parsed_options) if environment.parsed_options else {}
    if given.get("direct"):
        _last_words.extend(overhead(distributed=isinstance(environment.runner, MasterRunner)))
    limits = {gate.name: given.get(gate.name.replace("-", "_")) for gate in GATES}
    if all(limit is None for limit in limits.values()):
        return  # Locust's own rule then: exit code 1 when any request failed
    found = list(verdicts(limits, numbers(environment)))
    if environment.runner is not None and environment.runner.exceptions:
        found.append(Verdict(False, "FAIL  users raised exceptions: they are listed above"))
    _last_words.extend(["", *(verdict.text for verdict in found)])
    environment.process_exit_code = 0 if all(verdict.holds for verdict in found) else 1


@events.quit.add_listener
def _say(**_: Any) -> None:
    if _last_words:
        print("\n".join(["", *_last_words]), flush=True)


def numbers(environment: Environment) -> dict[str, float | None]:
    """What the gates are about, over everything that went through the proxy."""
    rows = [entry for entry in environment.stats.entries.values() if not entry.name.startswith(DIRECT)]
    asked = [entry for entry in rows if entry.method not in SAMPLES]
    requests = sum(entry.num_requests for entry in asked)
    found: dict[str, float | None] = {
        "fail-ratio": sum(entry.num_failures for entry in asked) / requests if requests else None,
        "min-streams": float(sum(entry.num_requests for entry in rows if entry.method == "E2E")),
        "p50-overhead-ms": _overhead("TTFT", 0.5),
    }
    for kind in ("TTFT", "ITL", "E2E"):
        times: dict[float, int] = {}
        for entry in rows:
            if entry.method == kind:
                for time_ms, count in entry.response_times.items():
                    times[time_ms] = times.get(time_ms, 0) + count
        found[f"p95-{kind.lower()}-ms"] = _quantile(times, 0.95)
    return found


def overhead(*, distributed: bool) -> list[str]:
    """Lines: by the proxy, direct, and the difference, for each row there is of both."""
    if distributed:
        return ["proxy minus direct: only in one process, Locust rounds what it sends to its master"]
    title = "proxy minus direct, ms"
    lines = [f"{title:<36}" + "".join(f"{word:>10}" for word in ("proxy", "direct", "more p50", "more p95"))]
    for kind, name in sorted(_exact, key=lambda key: (key[1], SAMPLES.index(key[0]))):
        if kind not in COMPARED or (kind, DIRECT + name) not in _exact:
            continue
        ours, theirs = _exact[kind, name], _exact[kind, DIRECT + name]
        cells: list[float] = []
        for share in (0.5, 0.95):
            proxied, direct = ours.quantile(share), theirs.quantile(share)
            assert proxied is not None
            assert direct is not None
            cells += [proxied, direct] if share == 0.5 else []
            cells.append(proxied - direct)
        lines.append(f"  {kind + ' ' + name:<34}" + "".join(f"{cell:>10.2f}" for cell in cells))
    return lines if len(lines) > 1 else ["proxy minus direct: nothing was measured both ways"]


def _overhead(kind: str, share: float) -> float | None:
    """The largest difference of any row of this kind."""
    differences = []
    for (row, name), ours in _exact.items():
        theirs = _exact.get((row, DIRECT + name))
        if row == kind and theirs is not None:
            proxied, direct = ours.quantile(share), theirs.quantile(share)
            if proxied is not None and direct is not None:
                differences.append(proxied - direct)
    return max(differences, default=None)


def _quantile(times: dict[float, int], share: float) -> float | None:
    count = sum(times.values())
    passed = 0
    for time_ms in sorted(times):
        passed += times[time_ms]
        if passed >= share * count:
            return time_ms
    return None
