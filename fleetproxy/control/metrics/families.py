"""Every metric of `/metrics`, once: name, kind, labels, meaning, and its share of the cap on series.

Names follow Prometheus' rules: prefix, base units, `_total` on counters. Nothing a caller sends becomes a label unless
it is known to the fleet; the rest is counted under `other`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "fleetproxy_"
#: Where names we do not know, or have no room for, are counted.
OTHER = "other"

#: Upper bounds of buckets in seconds. An LLM may load for a minute before its first token.
DURATION_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_TOKEN_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
PER_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
QUEUE_S = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


class Family(msgspec.Struct, frozen=True):
    #: Without prefix; counters without `_total`.
    name: str
    kind: Kind
    labels: tuple[str, ...]
    doc: str
    #: Combinations of labels it may have when 2 000 series are allowed in all.
    share: int = 1
    buckets: tuple[float, ...] = ()
    #: Its series go into the table `metric_samples`: what `requests` cannot tell.
    sampled: bool = True

    @property
    def exposed(self) -> str:
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"

    @property
    def series_each(self) -> int:
        """Lines of one combination of labels: a histogram has its buckets, `+Inf`, `_sum` and `_count`."""
        return len(self.buckets) + 3 if self.kind == "histogram" else 1


_EXCHANGE = (
    Family(
        "requests", "counter", ("route", "model", "backend", "status_class", "dialect"),
        "Finished requests.", 340, sampled=False,
    ),
    Family(
        "request_duration_seconds", "histogram", ("model", "backend"),
        "First byte of the request in to last byte of the answer out.", 20, DURATION_S,
    ),
    Family(
        "time_to_first_token_seconds", "histogram", ("model", "backend"),
        "First byte of the request in to first byte of a streamed answer out.", 20, FIRST_TOKEN_S,
    ),
    Family(
        "time_per_output_token_seconds", "histogram", ("model", "backend"),
        "Time the backend took for each token of the answer.", 20, PER_TOKEN_S,
    ),
    Family(
        "queue_wait_seconds", "histogram", (),
        "Time in line, of requests that had to wait for a busy server.", 1, QUEUE_S,
    ),
    Family(
        "overhead_seconds", "histogram", (),
        "The proxy's own share of a request: until the backend had it, less waiting in line.", 1, OVERHEAD_S,
    ),
    Family(
        "tokens", "counter", ("model", "backend", "direction"),
        "Tokens of prompts (input) and answers (output), as backends count them.", 60, sampled=False,
    ),
)  # fmt: skip

_FLEET = (
    Family("inflight_requests", "gauge", ("backend",), "Requests a backend is serving now.", 40),
    Family("queue_depth", "gauge", ("backend",), "Requests waiting in line for a backend.", 40),
    Family("backend_up", "gauge", ("backend",), "1: online as the last polls say.", 40),
    Family("backend_usable", "gauge", ("backend",), "1: may be given new requests.", 40),
    Family("backend_models_loaded", "gauge", ("backend",), "Models held in a backend's memory.", 40),
    Family(
        "backend_vram_bytes", "gauge", ("backend", "kind"),
        "Video memory of a backend: used by models, and total where it is configured.", 80,
    ),
)  # fmt: skip

_STORE = (
    Family("audit_rows", "counter", (), "Audit rows written by the proxy processes."),
    Family("audit_dropped", "counter", ("reason",), "Audit rows lost, by reason.", 8),
    Family("store_rows", "counter", (), "Rows loaded into the analytics store."),
    Family("store_up", "gauge", (), "1: the analytics store takes rows and answers questions."),
    Family("store_failures", "counter", ("trouble",), "Failures of the analytics store's file.", 10),
    Family("store_queries", "counter", ("result",), "Questions to the analytics store.", 6),
    Family("store_lost_loads", "counter", (), "Loads that were committed once and are no longer in the file."),
    Family("spool_backlog_segments", "gauge", (), "Files of rows waiting to be loaded."),
    Family("spool_backlog_bytes", "gauge", (), "Size of the files of rows waiting to be loaded."),
)

_OURS = (
    Family("build_info", "gauge", ("version", "python"), "1; what runs, in the labels.", sampled=False),
    Family("config_last_reload_successful", "gauge", (), "1: the settings read last were good."),
    Family("config_last_reload_success_timestamp_seconds", "gauge", (), "When good settings were read last."),
    Family(
        "tls_certificate_expiry_timestamp_seconds", "gauge", (),
        "When the certificate of the public port ends, in seconds since 1970; absent without one.",
    ),
    Family("process_up", "gauge", ("process",), "1: the process is connected to control.", 16),
    Family("process_cpu_seconds", "counter", ("process",), "CPU time of a process; starts at 0 with it.", 16),
    Family("process_resident_memory_bytes", "gauge", ("process",), "Resident memory of a process.", 16),
    Family("process_open_fds", "gauge", ("process",), "Open file descriptors of a process.", 16),
    Family("metrics_overflow", "counter", (), "Observations counted under `other`, or left out, for want of room."),
)  # fmt: skip

#: Counters and gauges the processes report over the link, by the name they use there. A label's value follows a colon
#: ("retries:connect_failed"). Names not listed are exposed too, with a general help text.
LINKED: dict[str, Family] = {
    "audit_rows": _STORE[0],
    "audit_dropped": _STORE[1],
    "retries": Family("retries", "counter", ("reason",), "Requests given to a further backend, by cause.", 16),
    "truncated": Family("truncated", "counter", ("reason",), "Answers that broke after they had begun.", 16),
    "refused": Family("refused", "counter", ("reason",), "Requests answered with an error of our own.", 32),
    "gate_refused": Family("gate_refused", "counter", ("reason",), "Malformed requests turned away at the gate.", 16),
    "memory_answers": Family("memory_answers", "counter", ("route",), "Requests answered from memory.", 16),
    "control_requests": Family("control_requests", "counter", (), "Requests passed on to control."),
    "overloaded": Family("overloaded", "counter", (), "Requests refused because too many bodies were held in memory."),
    "link_dropped": Family("link_dropped", "counter", (), "Messages to control that were dropped unsent."),
    "exchanges": Family("exchanges", "gauge", ("process",), "Requests a process is working on.", 16),
    "buffered_bytes": Family("buffered_bytes", "gauge", ("process",), "Request bodies a process holds in memory.", 16),
    "draining": Family("draining", "gauge", ("process",), "1: a process takes no new requests.", 16),
    "queue_events": Family("queue_events", "counter", ("event",), "What became of requests in line.", 12),
    "queue_waiting": Family("queue_waiting", "gauge", (), "Requests in line, all backends together."),
    "transfer_bytes": Family("transfer_bytes", "counter", (), "Bytes passed through transfer channels."),
    "transfer_channels": Family("transfer_channels", "gauge", (), "Open transfer channels."),
    "tunnels_refused": Family("tunnels_refused", "counter", (), "Sockets turned away because there were too many."),
    "job_runs": Family("job_runs", "counter", ("result",), "Times of scheduled jobs, by what became of them.", 6),
    "notices": Family("notices", "counter", ("result",), "Notices to people and webhooks.", 5),
    "state_refused": Family("state_refused", "counter", ("reason",), "Calls of the dashboard API turned away.", 3),
    "hub_proxies": Family("hub_proxies", "gauge", (), "Proxy processes connected to the hub."),
    "hub_workers": Family("workers_connected", "gauge", (), "Dial-in workers connected now."),
    "hub_sockets": Family("hub_sockets", "gauge", (), "Sockets open at the hub's own address."),
    "hub_tunnels": Family("hub_tunnels", "gauge", (), "Sockets that reach the hub through the public port."),
    "hub_held_bytes": Family("hub_held_bytes", "gauge", (), "Bytes the hub holds for slow readers."),
    "hub_resident_bytes": Family("hub_resident_bytes", "gauge", (), "The hub's resident memory, as it limits itself."),
}
#: Series for names of the link that are not listed above.
UNLISTED_SHARE = 40

FAMILIES: tuple[Family, ...] = (*_EXCHANGE, *_FLEET, *_STORE, *_OURS)
BY_NAME: dict[str, Family] = {family.name: family for family in (*FAMILIES, *LINKED.values())}
#: The cap the shares are made for; they grow with it.
SHARES_FOR = 2000


def series_in_all() -> int:
    """Series there can be at most when `SHARES_FOR` are allowed."""
    return UNLISTED_SHARE + sum(family.share * family.series_each for family in BY_NAME.values())
