"""Rules and dashboards name only metrics and labels that fleetproxy exposes; promtool finds the rules good."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from fleetproxy.control.metrics.families import BY_NAME

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))

_METRIC = re.compile(r"\b(fleetproxy_[a-z0-9_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_RECORDED = re.compile(r"\bfleetproxy:[a-z0-9_:]+")

#: Exposed name -> its labels.
EXPOSED: dict[str, set[str]] = {}
for family in BY_NAME.values():
    if family.kind == "histogram":
        EXPOSED |= {f"{family.exposed}_{part}": set(family.labels) for part in ("count", "sum")}
        EXPOSED[f"{family.exposed}_bucket"] = {*family.labels, "le"}
    else:
        EXPOSED[family.exposed] = set(family.labels)
BUCKETS = {f"{family.exposed}_bucket": {f"{bound}" for bound in family.buckets} for family in BY_NAME.values()}


def rules() -> list[dict[str, Any]]:
    return [
        rule for path in RULES for group in msgspec.yaml.decode(path.read_text())["groups"] for rule in group["rules"]
    ]


RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dashboards", DEPLOY / "grafana/make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expressions_of(value: Any) -> Iterator[str]:
    """Every PromQL expression below a dashboard."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ("expr", "definition") and isinstance(part, str):
                yield part
            else:
                yield from expressions_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from expressions_of(part)


DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
EXPRESSIONS = [
    (f"{path.stem}: {text}", text) for path in DASHBOARDS for text in expressions_of(json.loads(path.read_text()))
]
EXPRESSIONS += [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def mistakes(text: str) -> list[str]:
    """What an expression names and fleetproxy does not have."""
    found = []
    labels: set[str] = set()
    for name, matchers in _METRIC.findall(text):
        if name not in EXPOSED:
            found.append(f"no metric {name}")
            continue
        labels |= EXPOSED[name]
        found += [f"{name} has no label {label}" for label in _MATCHER.findall(matchers) if label not in EXPOSED[name]]
        for bound in re.findall(r'\ble="([^"]+)"', matchers):
            if bound not in BUCKETS[name]:
                found.append(f"{name} has no bucket {bound}")
    found += [f"no rule records {name}" for name in _RECORDED.findall(text) if name not in RECORDED]
    if "fleetproxy:" not in text:  # what rules record has the labels of its own `by`
        for grouping in _GROUPING.findall(text):
            wanted = {label.strip() for label in grouping.split(",") if label.strip()}
            found += [f"nothing in it has the label {label}" for label in wanted - labels]
    return found


def test_there_is_something_to_look_at() -> None:
    assert {path.stem for path in DASHBOARDS} == {"overview", "latency", "capacity", "access"}
    assert len(EXPRESSIONS) > 80
    assert len({name for _, text in EXPRESSIONS for name, _ in _METRIC.findall(text)}) > 35


@pytest.mark.parametrize(("where", "text"), EXPRESSIONS, ids=[where[:60] for where, _ in EXPRESSIONS])
def test_what_an_expression_names_exists(where: str, text: str) -> None:
    assert mistakes(text) == [], where


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("fleetproxy_nonsense_total", "no metric fleetproxy_nonsense_total"),
        ('fleetproxy_backend_up{model="x"}', "fleetproxy_backend_up has no label model"),
        ("sum by (user) (fleetproxy_backend_up)", "nothing in it has the label user"),
        ('fleetproxy_queue_wait_seconds_bucket{le="7.0"}', "fleetproxy_queue_wait_seconds_bucket has no bucket 7.0"),
        ("fleetproxy:nonsense:rate5m", "no rule records fleetproxy:nonsense:rate5m"),
    ],
)
def test_a_mistake_would_be_seen(text: str, mistake: str) -> None:
    assert mistakes(text) == [mistake]


def test_every_recorded_series_is_used() -> None:
    used = {name for _, text in EXPRESSIONS for name in _RECORDED.findall(text)}
    assert RECORDED - used <= {
        "fleetproxy:model_requests:rate5m", "fleetproxy:tokens:rate5m", "fleetproxy:ttft_seconds:p95_5m",
        "fleetproxy:duration_seconds:p95_5m", "fleetproxy:overhead_seconds:p99_5m",
    }  # for dashboards of one's own  # fmt: skip


def test_dashboards_are_fresh() -> None:
    for name, content in make().files().items():
        assert (DEPLOY / "grafana/dashboards" / name).read_text() == content, "run: python deploy/grafana/make.py"


def test_panels_of_a_dashboard_do_not_overlap() -> None:
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            grid = panel["gridPos"]
            cells = {
                (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
            }
            assert not cells & taken
            assert grid["x"] + grid["w"] <= 24
            taken |= cells


def test_every_alert_says_what_to_do_and_how_urgent_it_is() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["action"]


def test_every_alert_has_a_test() -> None:
    text = (PROMETHEUS / "tests.yml").read_text()
    for rule in rules():
        if "alert" in rule:
            assert f"alertname: {rule['alert']}\n" in text, rule["alert"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
@pytest.mark.parametrize(
    "words",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", *(f"rules/{path.name}" for path in RULES)],
        ["test", "rules", "tests.yml"],
    ],
    ids=["config", "rules", "tests"],
)
def test_promtool_is_content(words: list[str]) -> None:
    done = subprocess.run(["promtool", *words], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
