"""The two C programs: compiled on the spot, started, asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
BUILD = HERE / "build"


class BenchError(Exception):
    """The measurement cannot be made, or is worth nothing; the text says why."""


class Samples(msgspec.Struct, frozen=True):
    """Percentiles, microseconds."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


class Load(msgspec.Struct, frozen=True):
    """What the load client did (see bench/load.c)."""

    requests: int
    chunks: int
    errors: int
    seconds: float
    cpu_us: float
    ttft_us: Samples | None = None
    delay_us: Samples | None = None
    latency_us: Samples | None = None
    first_error: str = ""


def build() -> dict[str, Path]:
    """Compile what is older than its source; the paths of `mock` and `load`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("the mock and the load client are C programs: install gcc")
    BUILD.mkdir(exist_ok=True)
    programs = {name: BUILD / name for name in ("mock", "load")}
    for name, program in programs.items():
        sources = (HERE / f"{name}.c", HERE / "http.h")
        if program.exists() and all(source.stat().st_mtime < program.stat().st_mtime for source in sources):
            continue
        fresh = BUILD / f"{name}.{os.getpid()}"  # two runs may compile at once
        flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
        done = subprocess.run(
            (compiler, *flags, "-o", fresh, sources[0]), check=False, capture_output=True, encoding="utf-8"
        )
        if done.returncode:
            raise BenchError(f"{sources[0]} does not compile:\n{done.stderr}")
        fresh.replace(program)
    return programs


def mortal(command: Sequence[str | Path]) -> list[str | Path]:
    """The same command, ended by the kernel when we end, however that happens."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--", *command] if setpriv else list(command)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Children started in this block stay on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stop(process: subprocess.Popen[str], patience_s: float = 10.0) -> None:
    """End a child: politely, then not; close its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@contextmanager
def mock(program: Path, port: int = 0) -> Iterator[tuple[int, int]]:
    """A running mock: its port and its process id."""
    process = subprocess.Popen((program, "--port", str(port)), stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("port "):
            raise BenchError(f"the mock did not start on port {port}")
        yield int(line.split()[1]), process.pid
    finally:
        stop(process)


def load(command: Sequence[str | Path], cores: Sequence[int]) -> Load:
    """Run the load client to its end. An error in any answer ends the bench: numbers with errors mean nothing."""
    with on_cores(cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        text, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        raise BenchError(f"no end after 120 s: {' '.join(map(str, command))}") from None
    finally:
        stop(process)
    return _result(text, process.returncode, command)


@contextmanager
def held(command: Sequence[str | Path], cores: Sequence[int]) -> Iterator[Callable[[], Load]]:
    """Idle streams, open for the length of the block; the callable closes them and tells how they were."""
    with on_cores(cores):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if '"ready"' not in line:
            process.wait()
            _result(line, process.returncode, command)

        def close() -> Load:
            answer, _ = process.communicate(timeout=30)
            return _result(answer, process.returncode, command)

        yield close
    finally:
        stop(process)


def _result(text: str, code: int, command: Sequence[str | Path]) -> Load:
    try:
        result = msgspec.json.decode(text, type=Load)
    except msgspec.DecodeError:
        raise BenchError(f"the load client failed ({code}): {' '.join(map(str, command))}") from None
    if result.errors or code:
        raise BenchError(f"{result.errors} answers were wrong; the first: {result.first_error}")
    return result
