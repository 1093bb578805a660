"""`fleetproxy demo`"""

from __future__ import annotations

import argparse
import asyncio
import sys

from fleetproxy.cli import FAILED, OK
from fleetproxy.cli.browser import add_browser, show
from fleetproxy.cli.options import parser, port, seconds
from fleetproxy.testing.demo import Failed, Plan
from fleetproxy.testing.demo import run as run_demo

_EXAMPLES = """\
  fleetproxy demo
  fleetproxy demo --port 8080 --speed 3
  fleetproxy demo --no-traffic
  fleetproxy demo --seed 7 --duration 60"""

_SAYS = """\
Run fleetproxy in front of a made-up fleet (two Ollama servers, one like vLLM, one like
llama.cpp) under made-up traffic, with one server failing each minute. Needs no GPU, no
model and no network; writes nothing outside a temporary folder, which goes with Ctrl-C."""


def run(words: list[str]) -> int:
    """Exit code 0 after Ctrl-C or the duration, 1 when it cannot run."""
    options = parser("demo", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--port", type=port, help="port to listen on (11434, or any free one when that is taken)")
    options.add_argument("--seed", type=int, default=0, help="another seed, other answers and traffic (0)")
    options.add_argument("--speed", type=_speed, default=1.0, help="servers and traffic this many times as fast (1)")
    options.add_argument("--no-traffic", action="store_true", help="leave the asking to you")
    options.add_argument("--duration", type=seconds, metavar="S", help="end by itself after so many seconds")
    options.add_argument("--open", action="store_true", help="let other machines reach it, as in a container; no keys")
    add_browser(options)
    asked = options.parse_args(words)
    plan = Plan(
        port=asked.port,
        seed=asked.seed,
        speed=asked.speed,
        traffic=not asked.no_traffic,
        duration_s=asked.duration,
        open=asked.open,
    )
    try:
        asyncio.run(run_demo(plan, _say, show if asked.browser else lambda dashboard: None))
    except Failed as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return FAILED
    return OK


def _say(text: str) -> None:
    print(text, flush=True)


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"wants a number above 0, up to 1000, got {text!r}")
    return value
