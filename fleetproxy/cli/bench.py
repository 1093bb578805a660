"""`fleetproxy bench`"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import msgspec

from fleetproxy.cli import FAILED, NOT_FOUND, OK
from fleetproxy.cli.fleet import Mistake, add_target, asking
from fleetproxy.cli.options import count, parser
from fleetproxy.cli.output import one_line, print_json, talk
from fleetproxy.cli.wording import milliseconds
from fleetproxy.remote.address import find
from fleetproxy.remote.call import Fleet
from fleetproxy.remote.measure import Plan, Report, Spread, measure
from fleetproxy.remote.models import listed

_EXAMPLES = """\
  fleetproxy bench --model llama3.2:3b
  fleetproxy bench --model llama3.2:3b -n 200 -c 16
  fleetproxy bench --model llama3.2:3b --direct http://10.0.0.5:11434
  fleetproxy bench --model llama3.2:3b --server gpu1 --json"""

_SAYS = """\
Measure a running fleet from here: time to the first token (TTFT), between tokens (ITL),
tokens a second. With --direct the same is asked of a server itself, and the difference is
the proxy's. It makes the servers work: these are real requests."""

_PROMPT = "Write a short story about a lighthouse and the people who keep it."


def run(words: list[str]) -> int:
    options = parser("bench", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--model", help="the model (the smallest of the fleet)")
    options.add_argument("-n", "--requests", type=count, default=20, metavar="N", help="requests in all (20)")
    options.add_argument("-c", "--concurrency", type=count, default=2, metavar="N", help="requests at once (2)")
    options.add_argument("--tokens", type=count, default=64, metavar="N", help="tokens of an answer, at most (64)")
    options.add_argument("--prompt", default=_PROMPT, metavar="TEXT", help="what to ask")
    options.add_argument("--server", metavar="NAME", help="pin the requests to this server")
    options.add_argument("--dialect", choices=("ollama", "openai"), help="path to ask at (Ollama's where it can be)")
    options.add_argument("--direct", metavar="URL", help="measure this server itself as well, and the difference")
    options.add_argument("--direct-key", metavar="KEY", help="key for that server")
    options.add_argument("--json", action="store_true", help="print JSON")
    add_target(options, timeout_s=120.0)
    asked = options.parse_args(words)
    return asking("bench", asked, lambda fleet: _work(fleet, asked))


def _work(fleet: Fleet, asked: argparse.Namespace) -> int:
    fleet.ask("GET", "/healthz")  # nobody there is told at once, not as so many failed requests
    plan = Plan(
        model=asked.model or _smallest(fleet),
        requests=asked.requests,
        at_once=asked.concurrency,
        prompt=asked.prompt,
        most_tokens=asked.tokens,
        server=asked.server,
        dialect=asked.dialect,
    )
    sides: dict[str, tuple[Fleet, Plan]] = {"fleet": (fleet, plan)}
    if asked.direct:
        target = find(asked.direct, asked.direct_key, environment={})
        sides["direct"] = (
            Fleet(target, timeout_s=asked.timeout, bearer=True),
            msgspec.structs.replace(plan, server=None),
        )
    reports = {name: _measured(name, *side) for name, side in sides.items()}
    if asked.json:
        print_json({"model": plan.model, **reports})
    else:
        _print(plan, reports)
    for found in reports.values():
        for text, times in found.errors.items():
            talk(one_line(f"failed {times}x: {text}"))
    return FAILED if any(found.failed for found in reports.values()) else OK


def _measured(name: str, fleet: Fleet, plan: Plan) -> Report:
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def told(done: int, of_all: int) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[K{name}: {done}/{of_all}")
            sys.stderr.flush()

    found = measure(fleet, plan, told)
    if live:
        sys.stderr.write("\r\x1b[K")
    return found


def _smallest(fleet: Fleet) -> str:
    models = [model for model in listed(fleet) if "embed" not in model.name]
    if not models:
        raise Mistake("the fleet has no model to ask", NOT_FOUND)
    return min(models, key=lambda model: model.size_bytes or float("inf")).name


def _print(plan: Plan, reports: dict[str, Report]) -> None:
    print(f"{plan.model}: {plan.requests} requests, {plan.at_once} at once, {plan.most_tokens} tokens at most\n")
    print(f"{'':<8} {'':<6} {'p50':>10} {'p95':>10} {'p99':>10} {'mean':>10}")
    for name, found in reports.items():
        for label, spread in (("TTFT", found.ttft_ms), ("ITL", found.itl_ms), ("total", found.total_ms)):
            print(f"{name:<8} {label:<6} {_cells(spread)}")
        print(f"{name:<8} {found.tokens_per_s:g} tokens/s, {found.requests_per_s:g} requests/s, {found.failed} failed")
        if found.servers:
            print(f"{name:<8} " + ", ".join(f"{server} {times}" for server, times in found.servers.items()))
        print()
    if len(reports) == 2:
        ours, theirs = reports["fleet"], reports["direct"]
        for label, here, there in (
            ("TTFT", ours.ttft_ms, theirs.ttft_ms),
            ("ITL", ours.itl_ms, theirs.itl_ms),
            ("total", ours.total_ms, theirs.total_ms),
        ):
            if here and there:
                half, most = here.p50 - there.p50, here.p95 - there.p95
                print(f"overhead {label:<6}{half:>+9.2f} ms at p50, {most:>+.2f} ms at p95")


def _cells(spread: Spread | None) -> str:
    if spread is None:
        return " ".join(["-".rjust(10)] * 4)
    values: tuple[Any, ...] = (spread.p50, spread.p95, spread.p99, spread.mean)
    return " ".join(milliseconds(value).rjust(10) for value in values)
