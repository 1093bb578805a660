"""`fleetproxy worker llm` that never offers our own protocol, so that the hub speaks nfrx's JSON with it.

    python -m bench.stock_agent llm --server-url ... (the words of `fleetproxy worker`)

What a chunk costs at a stock agent is its own affair; what the hub pays for the JSON is ours, and an agent written for
the occasion would be leaner than a real one.
"""

from __future__ import annotations

import sys

from fleetproxy.cli import main
from fleetproxy.worker import agent

if __name__ == "__main__":
    agent.SUBPROTOCOLS = ()
    sys.exit(main(["worker", *sys.argv[1:]]))
