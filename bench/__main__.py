"""`python -m bench`: see bench/README.md."""

from __future__ import annotations

import argparse
import datetime
import sys

from bench import profile, report
from bench.measure import QUICK, Plan, measure
from bench.programs import BenchError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="fleetproxy's costs as ratios to nginx")
    parser.add_argument("--check", action="store_true", help="compare with the limits; exit code 1 when one is missed")
    parser.add_argument("--quick", action="store_true", help="about one minute instead of four, less exact")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date printed below the table")  # noqa: DTZ011
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=URL,PID[,PID..]",
        help="another proxy that runs already in front of the mock (needs --mock-port); all its processes",
    )
    parser.add_argument("--mock-port", type=int, default=0, help="port of the mock, for the peers' configuration")
    parser.add_argument("--openai", action="store_true", help="use /v1/chat/completions instead of /api/chat")
    parser.add_argument("--only-peers", action="store_true", help="leave fleetproxy out")
    parser.add_argument(
        "--profile",
        nargs="?",
        const="http",
        choices=("http", "dial-in"),
        help="instead of measuring, show where the time goes (perf): to servers, or to workers that dial in",
    )
    options = parser.parse_args()
    if options.check and options.only_peers:
        parser.error("--check is about fleetproxy: leave out --only-peers")
    if options.peer and not options.mock_port:
        parser.error("--peer needs --mock-port, the port those proxies forward to")
    try:
        if options.profile:
            print(profile.profile(options.openai, dial_in=options.profile == "dial-in"))
            return 0
        plan = QUICK if options.quick else Plan()
        outcome = measure(plan, options.peer, options.mock_port, options.openai, ours=not options.only_peers)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print((report.markdown if options.markdown else report.plain)(outcome, options.date))
    if not options.check:
        return 0
    print()
    passed = True
    for holds, line in report.verdicts(outcome):
        passed = passed and holds
        print(line)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
