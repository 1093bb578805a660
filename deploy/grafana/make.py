"""Writes the Grafana dashboards: `python deploy/grafana/make.py`. The tables below are the dashboards.

A test sees that the files are fresh, and that every metric and label named here is one that fleetproxy exposes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
#: Columns of Grafana's grid.
WIDTH = 24

Panel = dict[str, Any]


def lines(title: str, *queries: tuple[str, str], unit: str = "short", width: int = 12, stack: bool = False) -> Panel:
    """Curves over time; each query is (expression, legend)."""
    custom: dict[str, Any] = {"fillOpacity": 20 if stack else 5, "lineWidth": 1, "showPoints": "never"}
    custom["stacking"] = {"mode": "normal" if stack else "none"}
    return {
        "type": "timeseries",
        "title": title,
        "targets": _targets(queries),
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "width": width,
        "height": 8,
    }


def number(
    title: str, expression: str, *, unit: str = "short", steps: tuple[tuple[float | None, str], ...] = ()
) -> Panel:
    """One number now; `steps` are (from, colour)."""
    thresholds = [{"value": value, "color": colour} for value, colour in steps or ((None, "text"),)]
    return {
        "type": "stat",
        "title": title,
        "targets": _targets(((expression, ""),), instant=True),
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": thresholds}},
            "overrides": [],
        },
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
        "width": 4,
        "height": 4,
    }


def heat(title: str, expression: str, *, width: int = 12) -> Panel:
    """A histogram over time; the expression gives buckets by `le`."""
    return {
        "type": "heatmap",
        "title": title,
        "targets": [{**_targets(((expression, "{{le}}"),))[0], "format": "heatmap"}],
        "fieldConfig": {"defaults": {"unit": "s"}, "overrides": []},
        "options": {"calculate": False, "yAxis": {"unit": "s"}, "color": {"scheme": "Oranges", "mode": "scheme"}},
        "width": width,
        "height": 8,
    }


def rows(title: str, *queries: tuple[str, str], unit: str = "short", width: int = 12) -> Panel:
    """A table of the values now; each query is (expression, name of its column)."""
    targets = _targets(queries, instant=True)
    for target in targets:
        target["format"] = "table"
    renamed = {f"Value #{target['refId']}": name for target, (_, name) in zip(targets, queries, strict=True)}
    return {
        "type": "table",
        "title": title,
        "targets": targets,
        "transformations": [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": renamed}},
        ],
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {"showHeader": True},
        "width": width,
        "height": 8,
    }


def words(title: str, text: str, *, width: int = WIDTH) -> Panel:
    return {
        "type": "text", "title": title, "options": {"mode": "markdown", "content": text}, "width": width, "height": 5,
    }  # fmt: skip


def _targets(queries: tuple[tuple[str, str], ...], *, instant: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "refId": chr(ord("A") + place),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend or "__auto",
            "instant": instant,
            "range": not instant,
        }
        for place, (expression, legend) in enumerate(queries)
    ]


BAD_ABOVE_0 = ((None, "green"), (1e-9, "red"))
MODELS, BACKENDS = 'model=~"$model"', 'backend=~"$backend"'
BOTH = f"{MODELS}, {BACKENDS}"
VRAM_USED = f'fleetproxy_backend_vram_bytes{{kind="used", {BACKENDS}}}'
VRAM_TOTAL = f'fleetproxy_backend_vram_bytes{{kind="total", {BACKENDS}}}'
REFUSALS = 'reason=~"unauthorized|forbidden|rate_limited"'
STARTS = "changes(fleetproxy_config_last_reload_success_timestamp_seconds[1m]) > 0"
#: From one dashboard to the others, time and choices kept.
LINK = {
    "type": "dashboards", "tags": ["fleetproxy"], "title": "fleetproxy", "asDropdown": False, "includeVars": True,
    "keepTime": True,
}  # fmt: skip


def quantile(share: float, metric: str, by: str = "", labels: str = BOTH) -> str:
    group = f"{by}, le" if by else "le"
    rates = f"rate(fleetproxy_{metric}_bucket{{{labels}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({group}) ({rates}))"


def rate(metric: str, by: str, labels: str = BOTH) -> str:
    return f"sum by ({by}) (rate(fleetproxy_{metric}{{{labels}}}[$__rate_interval]))"


OVERVIEW = (
    number("Requests", "sum(fleetproxy:requests:rate5m)", unit="reqps"),
    number(
        "Failing",
        "fleetproxy:errors:ratio5m",
        unit="percentunit",
        steps=((None, "green"), (0.01, "orange"), (0.05, "red")),
    ),
    number("Servers offline", "count(fleetproxy_backend_up == 0) or vector(0)", steps=BAD_ABOVE_0),
    number("Workers", "sum(fleetproxy_workers_connected)"),
    number("In flight", "sum(fleetproxy_inflight_requests)"),
    number("In line", "sum(fleetproxy_queue_waiting)", steps=((None, "green"), (1, "orange"), (100, "red"))),
    lines("Requests by status", (rate("requests_total", "status_class"), "{{status_class}}"), unit="reqps", stack=True),
    lines("Requests by model", (rate("requests_total", "model"), "{{model}}"), unit="reqps", stack=True),
    lines(
        "First token",
        (quantile(0.5, "time_to_first_token_seconds"), "p50"),
        (quantile(0.95, "time_to_first_token_seconds"), "p95"),
        (quantile(0.99, "time_to_first_token_seconds"), "p99"),
        unit="s",
    ),
    lines("Tokens", (rate("tokens_total", "direction"), "{{direction}}"), unit="short", stack=True),
    lines("Answers that are errors of our own", (rate("refused_total", "reason", ""), "{{reason}}"), unit="reqps"),
    lines(
        "Given to a further backend, and broken off",
        (rate("retries_total", "reason", ""), "retried: {{reason}}"),
        (rate("truncated_total", "reason", ""), "broken off: {{reason}}"),
        unit="reqps",
    ),
    rows(
        "Servers",
        (f"fleetproxy_backend_up{{{BACKENDS}}}", "up"),
        (f"fleetproxy_backend_usable{{{BACKENDS}}}", "usable"),
        (f"fleetproxy_inflight_requests{{{BACKENDS}}}", "in flight"),
        (f"fleetproxy_queue_depth{{{BACKENDS}}}", "in line"),
        (f"fleetproxy_backend_models_loaded{{{BACKENDS}}}", "models loaded"),
        width=WIDTH,
    ),
)

LATENCY = (
    lines("First token, p95 by model", (quantile(0.95, "time_to_first_token_seconds", "model"), "{{model}}"), unit="s"),
    lines(
        "First token, p95 by server",
        (quantile(0.95, "time_to_first_token_seconds", "backend"), "{{backend}}"),
        unit="s",
    ),
    heat("First token", rate("time_to_first_token_seconds_bucket", "le")),
    lines(
        "Per token of the answer, p95 by model",
        (quantile(0.95, "time_per_output_token_seconds", "model"), "{{model}}"),
        unit="s",
    ),
    lines(
        "Whole request",
        (quantile(0.5, "request_duration_seconds"), "p50"),
        (quantile(0.95, "request_duration_seconds"), "p95"),
        (quantile(0.99, "request_duration_seconds"), "p99"),
        unit="s",
    ),
    lines(
        "Whole request, p95 by server", (quantile(0.95, "request_duration_seconds", "backend"), "{{backend}}"), unit="s"
    ),
    lines(
        "Waiting in line",
        (quantile(0.5, "queue_wait_seconds", labels=""), "p50"),
        (quantile(0.95, "queue_wait_seconds", labels=""), "p95"),
        unit="s",
    ),
    lines(
        "The proxy's own share",
        (quantile(0.5, "overhead_seconds", labels=""), "p50"),
        (quantile(0.99, "overhead_seconds", labels=""), "p99"),
        unit="s",
    ),
    lines(
        "First tokens later than 5 s (objective: 5 %)",
        ("fleetproxy:ttft_slow:ratio5m", "5 minutes"),
        ("fleetproxy:ttft_slow:ratio1h", "1 hour"),
        ("fleetproxy:ttft_slow:ratio6h", "6 hours"),
        unit="percentunit",
        width=WIDTH,
    ),
)

CAPACITY = (
    lines("In flight", (f"fleetproxy_inflight_requests{{{BACKENDS}}}", "{{backend}}"), stack=True),
    lines("In line", (f"fleetproxy_queue_depth{{{BACKENDS}}}", "{{backend}}"), stack=True),
    lines(
        "Video memory used",
        (
            f"{VRAM_USED} / ignoring (kind) ({VRAM_TOTAL} > 0)",
            "{{backend}}",
        ),
        unit="percentunit",
    ),
    lines("Models loaded", (f"fleetproxy_backend_models_loaded{{{BACKENDS}}}", "{{backend}}")),
    lines(
        "Answer tokens by server",
        (rate("tokens_total", "backend", f'direction="output", {BOTH}'), "{{backend}}"),
        stack=True,
    ),
    lines(
        "Prompt tokens by server",
        (rate("tokens_total", "backend", f'direction="input", {BOTH}'), "{{backend}}"),
        stack=True,
    ),
    lines("What became of requests in line", (rate("queue_events_total", "event", ""), "{{event}}"), unit="reqps"),
    lines(
        "Workers, their sockets, proxies at the hub",
        ("fleetproxy_workers_connected", "workers"),
        ("fleetproxy_hub_sockets", "sockets at the hub"),
        ("fleetproxy_hub_tunnels", "through the public port"),
        ("fleetproxy_hub_proxies", "proxies"),
    ),
    lines(
        "Processor", ("sum by (process) (rate(fleetproxy_process_cpu_seconds_total[$__rate_interval]))", "{{process}}")
    ),
    lines("Memory", ("fleetproxy_process_resident_memory_bytes", "{{process}}"), unit="bytes"),
    lines("Open files", ("fleetproxy_process_open_fds", "{{process}}")),
    lines(
        "Held in memory",
        ("sum by (process) (fleetproxy_buffered_bytes)", "request bodies: {{process}}"),
        ("fleetproxy_hub_held_bytes", "the hub, for slow readers"),
        unit="bytes",
    ),
    lines(
        "Rows of the history",
        ("rate(fleetproxy_audit_rows_total[$__rate_interval])", "written"),
        ("rate(fleetproxy_store_rows_total[$__rate_interval])", "loaded"),
        ("sum by (reason) (rate(fleetproxy_audit_dropped_total[$__rate_interval]))", "lost: {{reason}}"),
    ),
    lines(
        "Rows waiting to be loaded",
        ("fleetproxy_spool_backlog_bytes", "bytes"),
        unit="bytes",
    ),
)

ACCESS = (
    lines("By dialect", (rate("requests_total", "dialect"), "{{dialect}}"), unit="reqps", stack=True),
    lines("By path", (rate("requests_total", "route"), "{{route}}"), unit="reqps", stack=True),
    lines(
        "Keys refused, limits reached",
        (
            rate("refused_total", "reason", REFUSALS),
            "{{reason}}",
        ),
        unit="reqps",
    ),
    lines(
        "Turned away at the gate, and at the dashboard",
        (rate("gate_refused_total", "reason", ""), "gate: {{reason}}"),
        (rate("state_refused_total", "reason", ""), "dashboard: {{reason}}"),
        unit="reqps",
    ),
    rows(
        "Models in 24 hours",
        (f"sum by (model) (increase(fleetproxy_requests_total{{{BOTH}}}[24h]))", "requests"),
        (f'sum by (model) (increase(fleetproxy_tokens_total{{direction="input", {BOTH}}}[24h]))', "prompt tokens"),
        (f'sum by (model) (increase(fleetproxy_tokens_total{{direction="output", {BOTH}}}[24h]))', "answer tokens"),
        width=WIDTH,
    ),
    lines("Answered from memory", (rate("memory_answers_total", "route", ""), "{{route}}"), unit="reqps"),
    lines(
        "Jobs and notices",
        ("sum by (result) (increase(fleetproxy_job_runs_total[1h]))", "jobs: {{result}}"),
        ("sum by (result) (increase(fleetproxy_notices_total[1h]))", "notices: {{result}}"),
    ),
    words(
        "By key and user",
        "Keys and users are no labels: there may be thousands. The history has them, row by row:\n\n"
        '```\nfleetproxy query "from v_key_cost"\n```\n\nor the analytics page of the dashboard.',
    ),
)

PAGES: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "overview": ("fleetproxy: overview", OVERVIEW),
    "latency": ("fleetproxy: latency", LATENCY),
    "capacity": ("fleetproxy: capacity", CAPACITY),
    "access": ("fleetproxy: keys and users", ACCESS),
}


def dashboard(name: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """A dashboard as Grafana imports it; panels flow from left to right."""
    placed, x, y, tallest = [], 0, 0, 0
    for place, panel in enumerate(panels):
        width, height = panel["width"], panel["height"]
        if x + width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        kept = {key: value for key, value in panel.items() if key not in ("width", "height")}
        grid = {"x": x, "y": y, "w": width, "h": height}
        placed.append({"id": place + 1, "datasource": SOURCE, **kept, "gridPos": grid})
        x, tallest = x + width, max(tallest, height)
    return {
        "uid": f"fleetproxy-{name}",
        "title": title,
        "tags": ["fleetproxy"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [LINK],
        "templating": {"list": [_source(), _choice("model", "requests_total"), _choice("backend", "backend_up")]},
        "annotations": {
            "list": [
                {
                    "name": "starts",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "blue",
                    "expr": STARTS,
                    "titleFormat": "configuration read",
                }
            ]
        },
        "panels": placed,
    }  # fmt: skip


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(label: str, metric: str) -> dict[str, Any]:
    query = f"label_values(fleetproxy_{metric}, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "choice"},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "sort": 1,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def files() -> dict[str, str]:
    """File name -> content."""
    return {
        f"{name}.json": json.dumps(dashboard(name, title, panels), indent=2, ensure_ascii=False) + "\n"
        for name, (title, panels) in PAGES.items()
    }


if __name__ == "__main__":
    for name, content in files().items():
        (DASHBOARDS / name).write_text(content)
