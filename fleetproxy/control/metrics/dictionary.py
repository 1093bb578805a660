"""The reference page of `/metrics`, made from `families.py`; `docs/generate.py` writes it."""

from __future__ import annotations

from fleetproxy.control.metrics.families import BY_NAME, OTHER, SHARES_FOR

_HEAD = f"""\
# Metrics

`GET /metrics` answers in Prometheus' text format, or in OpenMetrics when `Accept` asks for it. One exporter speaks for
all processes; a scrape is kept for a second. It needs no key; `metrics.listen` gives it an address of its own.

There are at most `metrics.max_series` ({SHARES_FOR}) series. Models and servers are labels when the fleet knows them;
everything else, and what finds no room, is counted under `{OTHER}`, and `fleetproxy_metrics_overflow_total` counts how
often. Every 15 s all gauges, and the counters that [`requests`](tables.md) cannot tell, go into `metric_samples`.

| metric | kind | labels | meaning |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The page, in Markdown."""
    rows = []
    for family in sorted(BY_NAME.values(), key=lambda family: family.exposed):
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.exposed}` | {family.kind} | {labels} | {family.doc} |\n")
    return _HEAD + "".join(rows)
