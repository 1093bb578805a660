"""The measurement: rounds in which every target has its turn, so that a noisy minute hits all of them alike."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench import processes, programs, targets
from bench.processes import Cores
from bench.programs import BenchError, Load
from bench.targets import Target

DIRECT = "direct"
SMALL_BYTES, BIG_BYTES, ANSWER_BYTES = 200, 45_000, 500
UNARY_CONNECTIONS, STREAMS, PACED_STREAMS = 32, 64, 8
GAP_US = 10_000
#: Roles whose share of the counted CPU time is told beside the sum.
PARTS = ("hub", "agent")


class Plan(msgspec.Struct, frozen=True):
    """How long to measure."""

    rounds: int = 5
    small_s: float = 1.5
    big_s: float = 0.8
    #: Pieces of each of the STREAMS streams.
    stream_chunks: int = 300
    #: Streams one after the other on each of the PACED_STREAMS connections, ten pieces each.
    paced_rounds: int = 16
    idle_streams: int = 1000
    #: Rounds, the last ones, in which whole trees are counted; and the wait that takes: until work done behind the
    #: answers (records on their way to the store) has been done too.
    tree_rounds: int = 2
    settle_s: float = 1.5


QUICK = Plan(2, 0.8, 0.5, 80, 8, 1000, 1, 1.2)

#: target -> metric (bench/report.py) -> one value per round
Values = dict[str, dict[str, list[float]]]
Work = Callable[[Target], Load]


class Outcome(msgspec.Struct, frozen=True):
    """What was measured, and how quiet the machine was."""

    targets: tuple[Target, ...]
    values: Values
    #: Share of all cores that other programs used meanwhile, and that the host took away; 0..1.
    others: float
    stolen: float
    seconds: float

    def median(self, target: str, metric: str) -> float | None:
        values = self.values.get(target, {}).get(metric)
        return statistics.median(values) if values else None

    def ratio(self, target: str, metric: str, base: str = "nginx") -> float | None:
        """Median of the rounds' ratios to another target."""
        ours, theirs = (self.values.get(name, {}).get(metric, []) for name in (target, base))
        ratios = [a / b for a, b in zip(ours, theirs, strict=False) if b]
        return statistics.median(ratios) if ratios else None


class Bench:
    """One run: the mock, the load client, the targets."""

    def __init__(self, plan: Plan, path: str, mock_port: int, mock_pid: int, load: Path) -> None:
        self.plan = plan
        self.cores: Cores = processes.cores()
        self.values: Values = {}
        self.targets: list[Target] = []
        self._path = path
        self._mock_pid = mock_pid
        self._load = load
        self._direct = Target(name=DIRECT, url=f"http://127.0.0.1:{mock_port}")

    # --- what is asked of a target --------------------------------------------------------------------------------

    def _command(self, target: Target, mode: str, **options: float) -> list[str | Path]:
        words: list[str | Path] = [self._load, mode, "--url", target.url + (target.path or self._path)]
        for header in target.headers:
            words += ["--header", header]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words + ["--any-length"] * target.any_length

    def unary(self, target: Target, request_bytes: int, seconds: float) -> Load:
        command = self._command(
            target,
            "unary",
            connections=UNARY_CONNECTIONS,
            seconds=seconds,
            request_bytes=request_bytes,
            answer_bytes=ANSWER_BYTES,
        )
        return programs.load(command, self.cores.load)

    def streams(self, target: Target, chunks: int, spread_us: int) -> Load:
        """Streams that begin at once, so that their pieces come in step, or spread over a gap between pieces."""
        command = self._command(
            target, "stream", connections=STREAMS, rounds=1, chunks=chunks, gap_us=GAP_US, spread_us=spread_us
        )
        return programs.load(command, self.cores.load)

    def paced(self, target: Target) -> Load:
        """Few streams, nothing pinned: time, not CPU time."""
        command = self._command(
            target,
            "stream",
            connections=PACED_STREAMS,
            rounds=self.plan.paced_rounds,
            chunks=10,
            gap_us=GAP_US,
            spread_us=GAP_US,
        )
        return programs.load(command, self.cores.every)

    # --- phases -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for target in self.targets:
            self._warm(target)
        for target in self.targets:
            if "idle" in target.works:
                _say(f"idle streams: {target.name}")
                self._idle(target)
        for number in range(self.plan.rounds):
            for target in self.targets:
                _say(f"round {number + 1} of {self.plan.rounds}: {target.name}")
                self._pin(target)
                self._round(target, whole_tree=number >= self.plan.rounds - self.plan.tree_rounds)
        processes.pin([self._mock_pid], self.cores.every)
        for target in self.targets:
            processes.pin(target.roles(), self.cores.every)
        for number in range(self.plan.rounds):
            _say(f"delays, round {number + 1} of {self.plan.rounds}")
            self._delays()
        for target in self.targets:
            self._put_sizes(target, "rss")

    def _round(self, target: Target, whole_tree: bool) -> None:
        works: dict[str, Work] = {
            "unary": lambda t: self.unary(t, SMALL_BYTES, self.plan.small_s),
            "big": lambda t: self.unary(t, BIG_BYTES, self.plan.big_s),
            "step": lambda t: self.streams(t, self.plan.stream_chunks, 0),
            "spread": lambda t: self.streams(t, self.plan.stream_chunks, GAP_US),
        }
        for metric, work in works.items():
            if metric not in target.works:
                continue
            load = self._costs(target, metric, work, whole_tree)
            if metric == "unary":
                self._put(target, "requests_per_s", load.requests / load.seconds)

    def _warm(self, target: Target) -> None:
        self._pin(target)
        self.unary(target, SMALL_BYTES, 0.4)
        if "big" in target.works:
            self.unary(target, BIG_BYTES, 0.2)
        self.streams(target, 20, 0)

    def _pin(self, target: Target) -> None:
        """The counted processes alone on one core; the rest of the tree beside the mock and the load."""
        roles = target.roles()
        processes.pin([self._mock_pid], self.cores.load)
        processes.pin([pid for pid, role in roles.items() if target.counts(role)], self.cores.proxy)
        processes.pin([pid for pid, role in roles.items() if not target.counts(role)], self.cores.load)

    def _costs(self, target: Target, metric: str, work: Work, whole_tree: bool) -> Load:
        """CPU microseconds per piece of work: `<metric>_us` counted processes, `<metric>_tree_us` all of them."""
        roles, mock = target.roles(), {self._mock_pid: "mock"}
        before, mock_before = processes.cpu(roles), processes.cpu(mock)
        load = work(target)
        after, mock_after = processes.cpu(roles), processes.cpu(mock)
        count = load.chunks or load.requests
        if not count:
            raise BenchError(f"{target.name} answered nothing")
        parts = {role: us for role, us in _between(target, before, after).items() if target.counts(role)}
        counted = sum(parts.values())
        for part in PARTS:
            if part in target.counted:
                self._put(target, f"{metric}_{part}_us", parts.get(part, 0.0) / count)
        mock_us = sum(processes.cpu_between(mock_before, mock_after).values())
        self._put(target, f"{metric}_us", counted / count)
        self._put(target, f"{metric}_busy", counted / 1e6 / load.seconds)
        self._put(target, f"{metric}_load_busy", (load.cpu_us + mock_us) / 1e6 / load.seconds / len(self.cores.load))
        if whole_tree:
            beside = [pid for pid, role in roles.items() if not target.counts(role)]
            if beside:
                time.sleep(self.plan.settle_s)
            spent = _between(target, before, processes.cpu(roles))
            others = sum(us for role, us in spent.items() if not target.counts(role))
            self._put(target, f"{metric}_tree_us", (counted + others) / count)
        return load

    def _delays(self) -> None:
        """Time to the first piece and delay per piece, in milliseconds over what they are without a proxy."""
        base = self.paced(self._direct)
        self._put_delays(self._direct, base, None)
        for target in self.targets:
            self._put_delays(target, self.paced(target), base)

    def _put_delays(self, target: Target, load: Load, base: Load | None) -> None:
        for name in ("ttft", "delay"):
            for point in ("p50", "p99"):
                us = getattr(getattr(load, f"{name}_us"), point)
                if base is not None:
                    us -= getattr(getattr(base, f"{name}_us"), point)
                self._put(target, f"{name}_{point}_ms", us / 1e3)

    def _idle(self, target: Target) -> None:
        roles = target.roles()
        before = processes.rss_kib(roles)
        self._put_sizes(target, "rss_start")
        command = self._command(target, "idle", connections=self.plan.idle_streams)
        with programs.held(command, self.cores.load) as close:
            time.sleep(0.5)
            after = processes.rss_kib(roles)
            close()
        time.sleep(0.2)  # a thousand clients have just left: let that be seen to before the next phase
        for metric, counts in (("idle_kib", target.counts), ("idle_tree_kib", lambda _role: True)):
            grown = sum(after[role] - before.get(role, 0) for role in after if counts(role))
            self._put(target, metric, grown / self.plan.idle_streams)

    def _put_sizes(self, target: Target, metric: str) -> None:
        sizes = processes.rss_kib(target.roles())
        self._put(target, f"{metric}_mib", sum(kib for role, kib in sizes.items() if target.counts(role)) / 1024)
        self._put(target, f"{metric}_tree_mib", sum(sizes.values()) / 1024)

    def _put(self, target: Target, metric: str, value: float) -> None:
        self.values.setdefault(target.name, {}).setdefault(metric, []).append(value)


def measure(plan: Plan, peers: Sequence[str], mock_port: int, openai: bool, *, ours: bool = True) -> Outcome:
    """Start everything, measure everything, stop everything.

    `peers`: NAME=URL,PID.. of proxies that run already, in front of a mock on `mock_port` (0: any).
    """
    built = programs.build()
    _raise_descriptor_limit()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fpbench-")))
        port, pid = stack.enter_context(programs.mock(built["mock"], mock_port))
        bench = Bench(plan, "/v1/chat/completions" if openai else "/api/chat", port, pid, built["load"])
        _say("starting the proxies")
        bench.targets.append(stack.enter_context(targets.nginx(folder, port)))
        if ours:
            bench.targets.append(stack.enter_context(targets.fleetproxy(folder, port)))
            for stock in (False, True):
                bench.targets.append(stack.enter_context(targets.dial_in(folder, port, stock=stock)))
        bench.targets += [targets.peer(argument) for argument in peers]
        begun, (busy, stolen), own = time.monotonic(), processes.machine_busy(), _own_s(bench, pid)
        bench.run()
        seconds = time.monotonic() - begun
        busy_now, stolen_now = processes.machine_busy()
        capacity = seconds * len(bench.cores.every)
        others = max(0.0, (busy_now - busy) - (_own_s(bench, pid) - own)) / capacity
        return Outcome(tuple(bench.targets), bench.values, others, (stolen_now - stolen) / capacity, seconds)


def _own_s(bench: Bench, mock_pid: int) -> float:
    """CPU seconds of this run's own processes so far."""
    roles = {mock_pid: "mock"}
    for target in bench.targets:
        roles |= target.roles()
    living = sum(sum(process.threads_ns.values()) for process in processes.cpu(roles).values()) / 1e9
    ended = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return living + sum(usage.ru_utime + usage.ru_stime for usage in ended)


def _between(target: Target, before: dict[int, processes.Cpu], after: dict[int, processes.Cpu]) -> dict[str, float]:
    try:
        return processes.cpu_between(before, after)
    except ProcessLookupError as error:
        raise BenchError(f"{target.name}: {error}") from None


def _raise_descriptor_limit() -> None:
    """A thousand streams take two descriptors each in a proxy; children inherit our limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
