"""What was measured, as a table with ratios to nginx, and what is demanded of it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from bench.measure import BIG_BYTES, DIRECT, PACED_STREAMS, SMALL_BYTES, STREAMS, UNARY_CONNECTIONS, Outcome
from bench.processes import machine

OURS, BASE = "fleetproxy", "nginx"
DIAL_IN, STOCK = "dial-in", "dial-in, nfrx JSON"
TIMES = "\N{MULTIPLICATION SIGN} nginx"
#: Above this share of the machine used by others the numbers are marked.
NOISY = 0.05


class Metric(msgspec.Struct, frozen=True):
    key: str
    title: str
    digits: int = 1
    #: A ratio to nginx says something.
    compared: bool = True
    scale: float = 1.0


METRICS = (
    Metric("unary_us", f"CPU per unary request of {SMALL_BYTES} B, µs"),
    Metric("unary_tree_us", "… whole process tree, µs"),
    Metric("big_us", f"CPU per unary request of {BIG_BYTES // 1000} KB, µs"),
    Metric("big_tree_us", "… whole process tree, µs"),
    Metric("step_us", f"CPU per streamed chunk, {STREAMS} streams in step, µs"),
    Metric("step_hub_us", "… of it the hub, µs", compared=False),
    Metric("step_agent_us", "… of it the agent, µs", compared=False),
    Metric("step_tree_us", "… whole process tree, µs"),
    Metric("spread_us", f"CPU per streamed chunk, {STREAMS} streams out of step, µs"),
    Metric("spread_hub_us", "… of it the hub, µs", compared=False),
    Metric("spread_agent_us", "… of it the agent, µs", compared=False),
    Metric("spread_tree_us", "… whole process tree, µs"),
    Metric("requests_per_s", f"requests/s on one core ({UNARY_CONNECTIONS} connections)", 0),
    Metric("ttft_p50_ms", f"added time to first byte p50 ({PACED_STREAMS} streams), ms", 3, False),
    Metric("ttft_p99_ms", "added time to first byte p99, ms", 3, False),
    Metric("delay_p50_ms", "added delay per chunk p50, ms", 3, False),
    Metric("delay_p99_ms", "added delay per chunk p99, ms", 3, False),
    Metric("rss_start_mib", "memory (RSS) at first, MiB"),
    Metric("rss_start_tree_mib", "… whole process tree, MiB"),
    Metric("rss_mib", "memory (RSS) after the run, MiB"),
    Metric("rss_tree_mib", "… whole process tree, MiB"),
    Metric("idle_kib", "memory per idle stream (1 000 streams), KiB"),
    Metric("idle_tree_kib", "… whole process tree, KiB"),
    Metric("unary_busy", "its core busy, unary, %", 0, False, 100),
    Metric("unary_load_busy", "cores of mock and load client busy, unary, %", 0, False, 100),
    Metric("spread_busy", "its core busy, streams, %", 0, False, 100),
)


class Bar(msgspec.Struct, frozen=True):
    """A limit on one of fleetproxy's numbers, or on its ratio to nginx."""

    metric: str
    limit: float
    text: str
    ratio: bool = False
    goal: float | None = None
    target: str = OURS


BARS = (
    Bar("unary_us", 6.0, "CPU per unary request", True, 3.5),
    Bar("step_us", 2.0, "CPU per streamed chunk, streams in step", True, 1.5),
    Bar("spread_us", 2.0, "CPU per streamed chunk, streams out of step", True, 1.5),
    Bar("ttft_p50_ms", 1.5, "added time to first byte p50, ms"),
    Bar("delay_p50_ms", 0.3, "added delay per chunk p50, ms"),
    Bar("idle_kib", 48.0, "memory per idle stream, KiB"),
    Bar("step_us", 100.0, "dial-in: CPU per streamed chunk, in step, µs", goal=70.0, target=DIAL_IN),
    Bar("spread_us", 100.0, "dial-in: CPU per streamed chunk, out of step, µs", goal=70.0, target=DIAL_IN),
    Bar("step_us", 130.0, "dial-in by nfrx's JSON: CPU per streamed chunk, in step, µs", target=STOCK),
    Bar("spread_us", 130.0, "dial-in by nfrx's JSON: CPU per streamed chunk, out of step, µs", target=STOCK),
)


def table(outcome: Outcome) -> list[list[str]]:
    """Rows of cells, the first one the heading."""
    names = [target.name for target in outcome.targets]
    heading = [""]
    for name in names:
        heading += [name] if name == BASE else [name, TIMES]
    rows = [heading]
    parted = any(target.counted for target in outcome.targets)
    for metric in METRICS:
        if "tree" in metric.key and not parted:
            continue
        row = [metric.title]
        for name in names:
            row.append(_number(outcome.median(name, metric.key), metric))
            if name != BASE:
                ratio = outcome.ratio(name, metric.key) if metric.compared else None
                row.append("" if ratio is None else f"{ratio:.2f}")
        if any(row[1:]):
            rows.append(row)
    return rows


def notes(outcome: Outcome, date: str) -> list[str]:
    """What one must know to read the table."""
    named = [target for target in outcome.targets if target.name not in (DIAL_IN, STOCK)]
    versions = ", ".join(f"{target.name} {target.version}".strip() for target in named)
    base = ", ".join(
        f"{title} {_number(outcome.median(DIRECT, key), metric)} ms"
        for key, title in (("ttft_p50_ms", "first byte"), ("delay_p50_ms", "chunk"))
        for metric in METRICS
        if metric.key == key
    )
    lines = [
        f"{date}; {machine()}; {versions}.",
        f"Without any proxy, p50: {base}. Measured in {outcome.seconds:.0f} s.",
    ]
    quiet = f"Other programs used {outcome.others:.0%} of the machine meanwhile, its host took {outcome.stolen:.0%}"
    noisy = outcome.others + outcome.stolen > NOISY
    return [*lines, f"{quiet}: {'repeat this on a quiet machine' if noisy else 'quiet enough'}."]


def plain(outcome: Outcome, date: str) -> str:
    rows = table(outcome)
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([*lines, "", *notes(outcome, date)])


def markdown(outcome: Outcome, date: str) -> str:
    heading, *rows = table(outcome)
    rule = ["---", *["---:"] * (len(heading) - 1)]
    lines = [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]
    return "\n".join([*lines, "", *notes(outcome, date)])


def verdicts(outcome: Outcome) -> Iterator[tuple[bool, str]]:
    """Each bar: whether it holds, and a line that says so."""
    for bar in BARS:
        value = outcome.ratio(bar.target, bar.metric) if bar.ratio else outcome.median(bar.target, bar.metric)
        if value is None:
            yield False, f"FAIL  {bar.text}: not measured"
            continue
        unit = TIMES if bar.ratio else ""
        line = f"{bar.text}: {value:.2f}{unit} (limit {bar.limit:g}{unit})"
        if bar.goal is not None:
            line += f", goal {bar.goal:g}{unit} {'reached' if value <= bar.goal else 'not yet'}"
        holds = value <= bar.limit
        yield holds, f"{'pass' if holds else 'FAIL'}  {line}"


def _number(value: float | None, metric: Metric) -> str:
    return "" if value is None else f"{value * metric.scale:.{metric.digits}f}"
