"""Where the processes that count spend their time, seen by `perf`.

cProfile would count calls in Python and miss Granian's threads, the kernel and every C extension, which is most of it;
`perf record` samples all of them.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import programs, targets
from bench.measure import SMALL_BYTES, Bench, Plan
from bench.programs import BUILD, BenchError, Load
from bench.targets import Target

_SECONDS = 5.0


def profile(openai: bool, *, dial_in: bool = False) -> str:
    """Sample unary requests, then streams; the heaviest symbols of each, and where the whole recordings are.

    `dial_in`: of proxy, hub and agent, with the agent before the mock.
    """
    perf = shutil.which("perf")
    if perf is None:
        raise BenchError("--profile needs `perf` (Debian: apt install linux-perf)")
    built = programs.build()
    texts = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fpbench-")))
        port, pid = stack.enter_context(programs.mock(built["mock"]))
        bench = Bench(Plan(), "/v1/chat/completions" if openai else "/api/chat", port, pid, built["load"])
        started = targets.dial_in(folder, port, stock=False) if dial_in else targets.fleetproxy(folder, port)
        target = stack.enter_context(started)
        bench.unary(target, SMALL_BYTES, 1.0)
        works: dict[str, Callable[[Target], Load]] = {
            "unary": lambda t: bench.unary(t, SMALL_BYTES, _SECONDS),
            "streams": lambda t: bench.streams(t, int(_SECONDS * 100), 0),
        }
        for name, work in works.items():
            data = BUILD / f"perf.{name}.data"
            _record(perf, target, data, work)
            texts.append(f"## {name}: {data}\n\n{_report(perf, data)}")
    return "\n\n".join(texts)


def _record(perf: str, target: Target, data: Path, work: Callable[[Target], Load]) -> None:
    pids = ",".join(str(pid) for pid, role in target.roles().items() if target.counts(role))
    command = (perf, "record", "-q", "-g", "-F", "1999", "-o", str(data), "-p", pids)
    recording = subprocess.Popen(programs.mortal(command), stderr=subprocess.PIPE, encoding="utf-8")
    work(target)
    recording.send_signal(signal.SIGINT)
    _, complaint = recording.communicate(timeout=60)
    if not data.exists() or not data.stat().st_size:
        raise BenchError(f"perf recorded nothing: {complaint.strip()}")


def _report(perf: str, data: Path) -> str:
    """Own time per thread and library, then per symbol with what it called."""
    views = (
        # perf's word for a thread's id is pid
        ("own time per thread and library", ("--no-children", "--sort", "pid,dso", "--percent-limit", "1")),
        ("symbols with what they called", ("--children", "--sort", "dso,sym", "--percent-limit", "2")),
    )
    texts = []
    for title, options in views:
        command = (perf, "report", "-i", str(data), "--stdio", "-g", "none", *options)
        done = subprocess.run(command, check=False, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise BenchError(f"perf cannot read its recording: {done.stderr.strip()}")
        lines = [line.rstrip() for line in done.stdout.splitlines() if line and not line.startswith("#")]
        texts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(texts)
