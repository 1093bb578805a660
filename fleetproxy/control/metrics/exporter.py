"""The exporter: what the audit rows, the processes, the load board, the fleet and the store say, in Prometheus' words.

A scrape is made in a thread and kept for a second, whoever asks how often.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import fleetproxy
from fleetproxy.control.analytics.database import Trouble
from fleetproxy.control.analytics.rows import MetricSample
from fleetproxy.control.metrics.exchanges import Exchanges
from fleetproxy.control.metrics.families import BY_NAME, PREFIX, SHARES_FOR, Family
from fleetproxy.control.metrics.linked import Linked
from fleetproxy.control.metrics.processes import usage
from fleetproxy.control.metrics.series import Bins, Labels, Overflow
from fleetproxy.core.backend import BackendState
from fleetproxy.core.record import AuditRecord
from fleetproxy.core.table import RoutingTable
from fleetproxy.link.messages import Count

if TYPE_CHECKING:
    from fleetproxy.control.analytics.journal import Journal
    from fleetproxy.control.analytics.store import Store
    from fleetproxy.link.board import Board

#: How long a scrape is kept.
KEEP_S = 1.0
#: How often series go into `metric_samples`.
SAMPLE_S = 15.0

_Values = dict[Labels, float]


class Metrics:
    """One per control process. Fed from the store's thread, told of events from the loop, scraped from anywhere."""

    def __init__(
        self,
        max_series: int = SHARES_FOR,
        *,
        board: Board | None = None,
        certificate_ends_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._max_series = max_series
        self._board = board
        #: Since the epoch. Certificates are read at start, so it holds until the end.
        self._certificate_ends_s = certificate_ends_s
        self._clock = clock
        self._wall_us = wall_us
        self._overflow = Overflow()
        self._exchanges = Exchanges(max_series, self._overflow)
        self._linked = Linked(max_series, self._overflow)
        self._table = RoutingTable()
        self._states: Mapping[str, BackendState] = {}
        self._store: Store | None = None
        self._journal: Journal | None = None
        self._reload_ok = True
        self._reloaded_at_s = wall_us() / 1e6
        self._connected: frozenset[str] = frozenset()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(self._families))
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._scraping = asyncio.Lock()

    # --- what happens ----------------------------------------------------------------------------------------

    def feed(self, records: Sequence[AuditRecord]) -> None:
        """Audit rows, each once: the store's `feed`."""
        self._exchanges.feed(records)

    def count(self, process: str, message: Count) -> None:
        """A process's own counters, as they came over the link."""
        self._linked.count(process, message)

    def started(self, process: str, pid: int) -> None:
        """A process said hello."""
        self._linked.started(process, pid)
        self._connected |= {process}

    def left(self, process: str) -> None:
        """A process's connection ended."""
        self._linked.left(process)
        self._connected -= {process}

    def fleet(self, table: RoutingTable, states: Mapping[str, BackendState]) -> None:
        """A new snapshot was published: its table, and the state of each backend by name."""
        self._table = table
        self._states = states
        names = {name: name for name in (*table.unavailable, *table.aliases)}
        # As the first server spells it: comparing needs one spelling, reading the usual one.
        names |= {name: routes[0].model if routes else name for name, routes in table.models.items()}
        self._exchanges.know(names, (routed.backend.name for routed in table.backends))

    def reloaded(self, ok: bool) -> None:
        """The settings were read again, or could not be."""
        self._reload_ok = ok
        if ok:
            self._reloaded_at_s = self._wall_us() / 1e6

    def watch(self, store: Store, journal: Journal) -> None:
        """Show how the store is."""
        self._store = store
        self._journal = journal

    # --- what is asked ---------------------------------------------------------------------------------------

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics when asked for, else Prometheus' text format."""
        encoder, content_type = choose_encoder(accept[:1024])
        async with self._scraping:
            made_at_s, body = self._kept.get(content_type, (float("-inf"), b""))
            if self._clock() - made_at_s >= KEEP_S:
                body = await asyncio.to_thread(encoder, self._registry)
                if len(self._kept) >= 4:
                    self._kept.clear()
                self._kept[content_type] = (self._clock(), body)
        return body, content_type

    def samples(self) -> list[MetricSample]:
        """The series that go into `metric_samples`."""
        now_us = self._wall_us()
        return [
            MetricSample(
                sampled_at_us=now_us,
                name=family.exposed,
                labels=dict(zip(family.labels, labels, strict=True)),
                value=value,
            )
            for family, values in self._plain()
            if family.sampled
            for labels, value in values.items()
        ]

    async def sample(self, journal: Journal, stop: asyncio.Event, every_s: float = SAMPLE_S) -> None:
        """Write the samples every `every_s` seconds until `stop`."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(every_s):
                    await stop.wait()
            except TimeoutError:
                journal.put(*await asyncio.to_thread(self.samples))

    # --- putting it together ---------------------------------------------------------------------------------

    def _families(self) -> Iterator[Metric]:
        for capped in self._exchanges.histograms:
            yield _histogram(capped.family, capped.histograms())
        for family, values in self._plain():
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(f"{PREFIX}{family.name}", family.doc, labels=family.labels)
            for labels, value in sorted(values.items()):
                metric.add_metric(labels, value)
            yield metric

    def _plain(self) -> Iterator[tuple[Family, _Values]]:
        """Every counter and gauge, each family once."""
        shown: dict[Family, _Values] = {}
        sources: tuple[Iterable[tuple[Family, Mapping[Labels, float]]], ...] = (
            ((capped.family, dict(capped.tallies())) for capped in self._exchanges.counters),
            self._linked.counters().items(),
            self._linked.gauges().items(),
            self._fleet(),
            self._stored(),
            self._processes(),
            self._own(),
        )
        for family, values in chain.from_iterable(sources):
            into = shown.setdefault(family, {})
            for labels, value in values.items():
                into[labels] = into.get(labels, 0) + value
        overflow = BY_NAME["metrics_overflow"]
        shown[overflow] = {(): self._overflow.count}
        yield from shown.items()

    def _fleet(self) -> Iterator[tuple[Family, _Values]]:
        columns: dict[str, _Values] = {name: {} for name in _FLEET}
        board = self._board
        room = BY_NAME["backend_up"].share * self._max_series // SHARES_FOR
        backends = self._table.backends
        if len(backends) > room:
            self._overflow.count += len(backends) - room
        for routed in backends[:room]:
            backend = routed.backend
            state = self._states.get(backend.name) or BackendState()
            labels = (backend.name,)
            if board is not None:
                columns["inflight_requests"][labels] = board.load(backend.column)
                columns["queue_depth"][labels] = board.waiting(backend.column)
            columns["backend_up"][labels] = routed.online
            columns["backend_usable"][labels] = routed.usable
            columns["backend_models_loaded"][labels] = len(state.resident)
            columns["backend_vram_bytes"][backend.name, "used"] = state.vram_used_bytes
            if backend.vram_bytes is not None:
                columns["backend_vram_bytes"][backend.name, "total"] = backend.vram_bytes
        for name, values in columns.items():
            yield BY_NAME[name], values

    def _stored(self) -> Iterator[tuple[Family, _Values]]:
        store, journal = self._store, self._journal
        if store is None or journal is None:
            return
        counters, status = store.ingest.counters, store.status
        yield (
            BY_NAME["audit_dropped"],
            {
                ("disk",): journal.dropped,
                ("malformed",): counters.malformed,
                ("torn",): counters.torn,
                ("overflow",): counters.overflowed,
                ("rejected",): counters.rejected,
            },
        )
        yield BY_NAME["store_rows"], {(): counters.loaded}
        yield BY_NAME["store_up"], {(): status.ok}
        failures = store.failures.copy()
        # From 0 on: a counter that begins with 1 has never increased.
        yield BY_NAME["store_failures"], {(trouble,): failures[trouble] for trouble in get_args(Trouble)}
        yield BY_NAME["store_queries"], {(result,): n for result, n in store.queries.copy().items()}
        yield BY_NAME["store_lost_loads"], {(): store.lost_batches}
        yield BY_NAME["spool_backlog_segments"], {(): status.backlog_segments}
        yield BY_NAME["spool_backlog_bytes"], {(): status.backlog_bytes}

    def _processes(self) -> Iterator[tuple[Family, _Values]]:
        pids = {"control": os.getpid(), **self._linked.pids()}
        room = BY_NAME["process_up"].share * self._max_series // SHARES_FOR
        up: _Values = {}
        cpu: _Values = {}
        resident: _Values = {}
        fds: _Values = {}
        for process, pid in list(pids.items())[:room]:
            up[process,] = process == "control" or process in self._connected
            found = usage(pid) if pid else None
            if found is not None:
                cpu[process,], resident[process,], fds[process,] = found.cpu_s, found.resident_bytes, found.open_fds
        yield BY_NAME["process_up"], up
        yield BY_NAME["process_cpu_seconds"], cpu
        yield BY_NAME["process_resident_memory_bytes"], resident
        yield BY_NAME["process_open_fds"], fds

    def _own(self) -> Iterator[tuple[Family, _Values]]:
        yield BY_NAME["build_info"], {(fleetproxy.__version__, platform.python_version()): 1}
        yield BY_NAME["config_last_reload_successful"], {(): self._reload_ok}
        yield BY_NAME["config_last_reload_success_timestamp_seconds"], {(): self._reloaded_at_s}
        ends_s = self._certificate_ends_s
        yield BY_NAME["tls_certificate_expiry_timestamp_seconds"], {} if ends_s is None else {(): ends_s}


_FLEET = (
    "inflight_requests",
    "queue_depth",
    "backend_up",
    "backend_usable",
    "backend_models_loaded",
    "backend_vram_bytes",
)


class _Collector(Collector):
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _histogram(family: Family, histograms: Iterable[tuple[Labels, Bins]]) -> Metric:
    metric = HistogramMetricFamily(f"{PREFIX}{family.name}", family.doc, labels=family.labels)
    bounds = [*map(str, family.buckets), "+Inf"]
    for labels, bins in sorted(histograms, key=lambda pair: pair[0]):
        total = 0
        buckets = []
        # One copy: rows may be counted while we read.
        for bound, count in zip(bounds, bins.counts.copy(), strict=True):
            total += count
            buckets.append((bound, total))
        metric.add_metric(labels, buckets, sum_value=bins.sum_ms / 1000)
    return metric
