"""`python -m bench.analytics`: how quickly the dashboard's questions are answered over a long history, and how fast
rows are loaded meanwhile.

    just bench-analytics                      10 million requests of 31 days; about three minutes, 1.5 GB of disk
    just bench-analytics --rows 1000000       fewer
    just bench-analytics --check              exit code 1 when a limit is missed
    just bench-analytics --check --cpu        the same by CPU time, where others use the machine, too
    just bench-analytics --write docs/explanation/analytics-speed.md
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from bench import history
from bench.history import NOW_US
from fleetproxy.control.analytics.history import History
from fleetproxy.control.analytics.records import Records
from fleetproxy.control.analytics.series import METRICS, Question
from fleetproxy.control.analytics.store import Store
from fleetproxy.core.record import Attempt, AuditRecord
from fleetproxy.core.residency import intervals, stays
from fleetproxy.link.spool import Spool
from fleetproxy.settings import Analytics

NOW = datetime.datetime.fromtimestamp(NOW_US / 1e6, datetime.UTC)
HOUR_US = 3_600_000_000
#: Longest answers, milliseconds, by hours asked about; least rows loaded per second.
LIMITS_MS = {24: 300.0, 720: 2000.0}
LEAST_ROWS_S = 50_000.0
#: Each question is asked this often; the median counts.
TIMES = 5
SEGMENT_ROWS = 5000
#: Asked again and again while rows are loaded.
MEANWHILE = ("analytics", "requests", "series: requests by model")

Ask = Callable[[int], Awaitable[Any]]


class Timed(msgspec.Struct, frozen=True):
    question: str
    hours: int
    median_ms: float
    worst_ms: float
    #: CPU time of the whole process: what it would take with a core to itself.
    cpu_ms: float


class Loaded(msgspec.Struct, frozen=True):
    rows: int
    seconds: float
    #: CPU time of the thread that loads.
    cpu_s: float
    #: Questions answered meanwhile, and how long half of them took at most.
    answers: int
    median_ms: float

    @property
    def rows_s(self) -> float:
        return self.rows / self.seconds

    @property
    def rows_cpu_s(self) -> float:
        return self.rows / self.cpu_s


class Outcome(msgspec.Struct, frozen=True):
    rows: int
    days: int
    file_bytes: int
    made_s: float
    timed: list[Timed]
    loaded: Loaded


def questions(store: Store) -> dict[str, Ask]:
    """Everything the dashboard asks, by a name; each takes the hours to look back."""
    records = Records(store, lambda: {}, lambda: NOW_US)
    past = History(store)

    def since(hours: int) -> datetime.datetime:
        return NOW - datetime.timedelta(hours=hours)

    def series(**values: Any) -> Ask:
        return lambda hours: records.series(Question(since_us=NOW_US - hours * HOUR_US, until_us=NOW_US, **values))

    async def usage(hours: int) -> Any:
        return stays(await past.sightings(since(hours)), since(hours), NOW)

    async def residency(hours: int) -> Any:
        return intervals(await past.sightings(since(hours)), since(hours), NOW)

    return {
        "analytics": lambda hours: records.analytics(hours, fill=True),
        "requests": lambda hours: records.requests(hours, filters={}),
        "requests of a model": lambda hours: records.requests(hours, filters={"model": "model-3:8b"}),
        "requests that failed": lambda hours: records.requests(hours, filters={"status": "5xx"}),
        "series: requests": series(),
        "series: requests by model": series(group_by="model"),
        "series: tokens by user": series(group_by="user", metrics=("tokensIn", "tokensOut"), top=20),
        "series: time to first token": series(metrics=("ttftP50Ms", "ttftP95Ms", "ttftP99Ms")),
        "series: duration by source": series(group_by="source", metrics=("durationP50Ms", "durationP95Ms")),
        "series: everything by server": series(group_by="server", metrics=tuple(METRICS)),
        "series: everything of a model": series(filters={"model": "model-3:8b"}, metrics=tuple(METRICS)),
        "series: a model by server": series(
            filters={"model": "model-3:8b"}, group_by="server", metrics=("requests", "durationP95Ms")
        ),
        "usage": usage,
        "residency": residency,
        "events": lambda hours: past.model_events(since(hours), 500),
        "server-events": lambda hours: past.server_events(since(hours), 100),
        "system-metrics": lambda hours: past.system_metrics(3, since(hours)),
        "recommendations": lambda hours: past.request_counts(since(hours)),
    }


async def measure(
    folder: Path, rows: int, days: int, load_rows: int, settings: Analytics, *, times: int = TIMES
) -> Outcome:
    """Make the history in `folder`, ask everything, then load rows while asking."""
    began_s = time.perf_counter()
    if not (folder / "analytics.duckdb").exists():
        history.write(folder, rows, days, settings)
    made_s = time.perf_counter() - began_s
    file_bytes = (folder / "analytics.duckdb").stat().st_size
    async with _running(folder, settings) as store:
        asked = questions(store)
        timed = [await _time(name, ask, hours, times) for hours in LIMITS_MS for name, ask in asked.items()]
        loaded = await _load(store, folder, load_rows, [asked[name] for name in MEANWHILE])
    return Outcome(rows, days, file_bytes, made_s, timed, loaded)


@asynccontextmanager
async def _running(folder: Path, settings: Analytics) -> Any:
    store = Store(
        folder / "analytics.duckdb", folder / "spool", settings, feed=lambda records: None, wall_us=lambda: NOW_US
    )
    stop = asyncio.Event()
    task = asyncio.create_task(store.run(stop))
    try:
        await store.flush()
        yield store
    finally:
        stop.set()
        await task


async def _time(name: str, ask: Ask, hours: int, times: int) -> Timed:
    await ask(hours)
    took_ms, cpu_ms = [], []
    for _ in range(times):
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await ask(hours)
        took_ms.append((time.perf_counter() - began_s) * 1000)
        cpu_ms.append((time.process_time() - cpu_s) * 1000)
    return Timed(name, hours, statistics.median(took_ms), max(took_ms), statistics.median(cpu_ms))


async def _load(store: Store, folder: Path, rows: int, asked: list[Ask]) -> Loaded:
    """Put closed segments into the spool, as busy processes would, and wait until their rows are in the file."""
    waiting = folder / "waiting"
    await asyncio.to_thread(_write_segments, waiting, rows)
    took_ms: list[float] = []
    done = asyncio.Event()

    async def keep_asking(ask: Ask) -> None:
        while not done.is_set():
            began_s = time.perf_counter()
            await ask(24)
            took_ms.append((time.perf_counter() - began_s) * 1000)

    asking = [asyncio.create_task(keep_asking(ask)) for ask in asked]
    before = store.ingest.counters.loaded
    (loader,) = (thread.ident for thread in threading.enumerate() if thread.name.startswith("store-load"))
    assert loader
    clock = time.pthread_getcpuclockid(loader)
    began_s, cpu_s = time.perf_counter(), time.clock_gettime(clock)
    for segment in sorted(waiting.iterdir()):
        segment.rename(folder / "spool" / segment.name)
    while store.ingest.counters.loaded - before < rows:
        await asyncio.sleep(0.01)
        if not store.status.ok:
            raise RuntimeError(f"the store cannot be used: {store.status.detail}")
    seconds, cpu_s = time.perf_counter() - began_s, time.clock_gettime(clock) - cpu_s
    done.set()
    await asyncio.gather(*asking)
    return Loaded(rows, seconds, cpu_s, len(took_ms), statistics.median(took_ms))


def _write_segments(folder: Path, rows: int) -> None:
    """Rows of the last five minutes, as two processes write them."""
    encoder = msgspec.json.Encoder()
    first_us = NOW_US - 300_000_000
    for start in range(0, rows, SEGMENT_ROWS):
        spool = Spool(folder, "requests", f"bench{start:09d}", f"proxy-{start // SEGMENT_ROWS % 2}")
        for n in range(start, min(start + SEGMENT_ROWS, rows)):
            row = AuditRecord(
                request_id=f"{n:032x}",
                started_at_us=first_us + n * 200_000_000 // rows,
                process="proxy-0",
                sequence=10**9 + n,
                source=f"app-{n % 200}",
                user=f"user{n % 50}",
                user_id=n % 50,
                key_prefix="fp_12345",
                remote_ip="10.0.0.9",
                user_agent="ollama-python/0.6.1",
                endpoint="/api/chat",
                method="POST",
                path="/api/chat",
                model=f"model-{n % 24}:8b",
                model_served=f"model-{n % 24}:8b",
                backend=f"gpu{n % 12}",
                server_id=n % 12,
                route_reason="model_loaded",
                status=200,
                streamed=True,
                ttft_ms=120.5 + n % 900,
                overhead_ms=0.5,
                total_ms=1000.25 + n % 9000,
                bytes_in=300,
                bytes_out=9000,
                chunks_out=50,
                tokens_in=20,
                tokens_out=n % 500,
                eval_ms=1000.5 + n % 7000,
                attempts=(Attempt(backend=f"gpu{n % 12}", status=200, started_ms=0.4, total_ms=999.0),),
            )
            spool.put(encoder.encode(row) + b"\n")
        spool.rotate()


def markdown(outcome: Outcome, date: str) -> str:
    """The tables, for people and for docs."""
    by = {(one.question, one.hours): one for one in outcome.timed}
    lines = [
        f"{outcome.rows:,} requests of {outcome.days} days, {outcome.file_bytes / 1e6:,.0f} MB; times are medians of "
        f"{TIMES} in milliseconds, the worst of them in brackets, then the CPU time.",
        "",
        f"| question | 24 hours (< {LIMITS_MS[24]:g}) | CPU | 30 days (< {LIMITS_MS[720]:g}) | CPU |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(one.question for one in outcome.timed):
        times = [by[name, hours] for hours in LIMITS_MS]
        cells = [f"{one.median_ms:.0f} ({one.worst_ms:.0f}) | {one.cpu_ms:.0f}" for one in times]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    loaded = outcome.loaded
    lines += [
        "",
        f"Loading, with questions asked all the time: **{loaded.rows_s:,.0f} rows/s** (at least {LEAST_ROWS_S:,.0f}), "
        f"{loaded.rows_cpu_s:,.0f} for each second of CPU time of the thread that loads; "
        f"{loaded.answers} answers about 24 hours meanwhile, half of them within {loaded.median_ms:.0f} ms.",
        "",
        f"{date}, {os.cpu_count()} cores ({platform.machine()}), DuckDB {duckdb.__version__}, Python "
        f"{platform.python_version()}; making the file and its roll-ups took {outcome.made_s:.0f} s.",
        "",
    ]
    return "\n".join(lines)


_PAGE = """\
# How quickly the history answers

`just bench-analytics` makes a history of ten million requests, asks everything the dashboard asks, then loads rows
while asking. The limits are those of the project; `--check` fails where one is missed.

{tables}
How it is done, and what percentiles of long times are worth: [roll-ups](analytics.md).
"""


def misses(outcome: Outcome, *, by_cpu: bool = False) -> list[str]:
    """The limits that were missed, as sentences."""
    found = []
    for one in outcome.timed:
        took_ms = one.cpu_ms if by_cpu else one.median_ms
        if took_ms >= LIMITS_MS[one.hours]:
            found.append(f"{one.question}, {one.hours} h: {took_ms:.0f} ms, at most {LIMITS_MS[one.hours]:g}")
    rows_s = outcome.loaded.rows_cpu_s if by_cpu else outcome.loaded.rows_s
    if rows_s < LEAST_ROWS_S:
        found.append(f"loading: {rows_s:,.0f} rows/s, at least {LEAST_ROWS_S:,.0f}")
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.analytics", description="speed of the request history")
    parser.add_argument("--rows", type=int, default=10_000_000, help="requests in the history (10 million)")
    parser.add_argument("--days", type=int, default=31, help="days they are spread over (31)")
    parser.add_argument("--load", type=int, default=500_000, metavar="ROWS", help="rows loaded (500 000)")
    parser.add_argument("--folder", type=Path, help="where to make the file (a new temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the file there")
    parser.add_argument(
        "--use", type=Path, metavar="FOLDER", help="use the file that --keep left, instead of a new one"
    )
    parser.add_argument("--check", action="store_true", help="exit code 1 when a limit is missed")
    parser.add_argument("--cpu", action="store_true", help="judge by CPU time: others use this machine, too")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables to this page")
    options = parser.parse_args(words)
    folder = options.use or Path(tempfile.mkdtemp(prefix="fleetproxy-bench-", dir=options.folder))
    try:
        outcome = asyncio.run(measure(folder, options.rows, options.days, options.load, Analytics()))
    finally:
        if not options.keep and not options.use:
            shutil.rmtree(folder, ignore_errors=True)
    tables = markdown(outcome, datetime.datetime.now(datetime.UTC).date().isoformat())
    print(tables)
    if options.keep:
        print(f"kept: {folder}")
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(_PAGE.format(tables=tables))
    missed = misses(outcome, by_cpu=options.cpu)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
