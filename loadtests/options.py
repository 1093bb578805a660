"""Our words on Locust's command line, and in its web page."""

from __future__ import annotations

import argparse
from typing import Any

from loadtests.gates import GATES


def add(parser: argparse.ArgumentParser) -> None:
    """Called by Locust with its parser (a configargparse one: options may come from the environment too)."""
    # Secrets are known to the parser alone, not to its groups.
    given: Any = parser.add_argument
    given("--api-key", env_var="FLEETPROXY_API_KEY", default="", is_secret=True, help="callers' key")
    given("--client-key", env_var="FLEETPROXY_CLIENT_KEY", default="", is_secret=True, help="workers' key")
    given("--chat-model", default="llama3.2:3b", help="model to chat with")
    given("--embed-model", default="nomic-embed-text", help="model to embed with")
    given(
        "--direct",
        default="",
        metavar="URL[,URL..]",
        help="servers behind the proxy: a third of the streams goes to one of them, and the difference is printed",
    )
    given(
        "--pace",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="each user begins a task every so often, however long answers take; 0: half a second after the last",
    )
    gates = parser.add_argument_group("gates, checked at the end (exit code 1 when one is missed)")
    for gate in GATES:
        gates.add_argument(f"--{gate.name}", type=float, default=None, metavar=gate.unit.upper(), help=gate.help)
