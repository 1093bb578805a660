"""`python -m loadtests SCENARIO`: one scenario, headless, with its gates. See loadtests/README.md."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, NoReturn

from loadtests import fleet

HERE = Path(__file__).parent
#: Locust gives streams that run this long to end, before it ends.
STOP_S = 10
BROKEN = 2


class Scenario(NamedTuple):
    """What Locust is told, unless the command line says otherwise."""

    help: str
    users: int
    seconds: int
    #: A file of shapes; "" for all users from the start on.
    shape: str
    gates: tuple[str, ...]


SCENARIOS = {
    "smoke": Scenario(
        "everything once, 30 s",
        14,
        30,
        "",
        ("--fail-ratio", "0", "--p95-ttft-ms", "3000", "--min-streams", "40"),
    ),
    "steady": Scenario(
        "as many to the end, 2 minutes",
        30,
        120,
        "steady",
        ("--fail-ratio", "0", "--p95-ttft-ms", "2000", "--min-streams", "500"),
    ),
    "spike": Scenario(
        "four times as many at once, twice, 2 minutes",
        80,
        120,
        "spike",
        ("--fail-ratio", "0", "--p95-ttft-ms", "4000", "--min-streams", "500"),
    ),
    "soak": Scenario(
        "slow waves, an hour",
        30,
        3600,
        "soak",
        ("--fail-ratio", "0.0001", "--p95-ttft-ms", "2000", "--min-streams", "15000"),
    ),
}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description="Load tests with Locust. Words unknown here go on to Locust, and beat the scenario's.",
        epilog="exit codes: 0 all gates passed, 1 one was missed, 2 nothing could be measured",
    )
    parser.add_argument("scenario", choices=SCENARIOS, help="; ".join(f"{n}: {s.help}" for n, s in SCENARIOS.items()))
    parser.add_argument("--url", help="load what runs here, instead of a fake fleet started for it")
    parser.add_argument("--seconds", type=int, help="how long")
    parser.add_argument("--speed", type=float, default=1.0, help="pace of the fake servers; 1 is lifelike")
    parser.add_argument("--out", type=Path, help="folder for CSV files and a page with charts")
    given, more = parser.parse_known_args(words)
    signal.signal(signal.SIGTERM, _leave)
    scenario: Scenario = SCENARIOS[given.scenario]
    command = _command(given.scenario, scenario, given.seconds or scenario.seconds, given.out)
    try:
        with ExitStack() as stack:
            if given.url:
                return _run([*command, "--host", given.url, *more])
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fp-load-")))
            found = stack.enter_context(fleet.running(folder, given.speed))
            direct, key = ",".join(found.direct), fleet.CLIENT_KEY
            return _run([*command, "--host", found.url, "--direct", direct, "--client-key", key, *more])
    except AssertionError as error:
        print(f"load test: {error}", file=sys.stderr)
        return BROKEN


def _command(name: str, scenario: Scenario, seconds: int, out: Path | None) -> list[str]:
    files = [HERE / "locustfile.py"] + [HERE / f"{scenario.shape}.py"] * bool(scenario.shape)
    words = ["-f", ",".join(map(str, files)), "--headless", "--only-summary", "--stop-timeout", str(STOP_S)]
    words += ["--users", str(scenario.users), "--run-time", f"{seconds}s", "--chat-model", fleet.CHAT_MODEL]
    if not scenario.shape:
        words += ["--spawn-rate", str(scenario.users)]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        words += ["--csv", str(out / name), "--html", str(out / f"{name}.html")]
    return [sys.executable, "-m", "locust", *words, *scenario.gates]


def _run(command: list[str]) -> int:
    """Locust in a process of its own: gevent changes the one it is in. Its exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_S * 2)


def _leave(_number: int, _frame: object) -> NoReturn:
    """SIGTERM unwinds what was started."""
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
