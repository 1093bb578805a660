"""What splitting embeddings over the fleet brings: `python -m bench.embeddings`.

One request with many inputs, through a real service, at one, two and four fake servers. A fake computes one batch at a
time, at a fixed pace per token, so the ideal speed-up is the number of servers; what is missing is our own share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess

MODEL = "bge-embed"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.embeddings", description=__doc__)
    parser.add_argument("--inputs", type=int, default=512, help="inputs of one request")
    parser.add_argument("--batch", type=int, default=32, help="embedding_batch_size of each server")
    parser.add_argument("--rounds", type=int, default=3, help="requests per number of servers; the median counts")
    parser.add_argument("--speed", type=float, default=0.4, help="pace of the fakes; 1 is lifelike")
    options = parser.parse_args()
    body = json.dumps({"model": MODEL, "input": [f"text number {n} of many" for n in range(options.inputs)]}).encode()
    print(f"{options.inputs} inputs, {options.batch} at once, median of {options.rounds}")
    print(f"{'servers':>8} {'seconds':>9} {'speed-up':>9} {'slices':>7}")
    alone = 0.0
    with tempfile.TemporaryDirectory(prefix="fp-bench-") as folder, ExitStack() as stack:
        fakes = [
            stack.enter_context(
                FakeProcess(Path(folder), f"fake{n}", kind="openai", models=MODEL, speed=options.speed, slots=1, seed=7)
            )
            for n in range(4)
        ]
        expected: object = None
        for count in (1, 2, 4):
            servers = {
                fake.name: {"url": fake.url, "kind": "openai", "embedding_batch_size": options.batch}
                for fake in fakes[:count]
            }
            with Service(Path(folder) / f"service{count}", servers) as service:
                times = []
                for _ in range(options.rounds + 1):  # the first one warms up
                    began = time.perf_counter()
                    status, headers, answer = service.fetch("POST", "/v1/embeddings", body)
                    times.append(time.perf_counter() - began)
                    assert status == 200, answer
                found = json.loads(answer)
                assert expected is None or found == expected, "another answer than with one server"
                expected = found
                took_s = statistics.median(times[1:])
                alone = alone or took_s
                print(f"{count:>8} {took_s:>9.3f} {alone / took_s:>8.2f}x {headers['x-fleet-slices']:>7}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
