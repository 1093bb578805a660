"""Rows of the store that control itself writes: what the poller, the calendar and the exporter saw.

They travel like audit rows: one JSON object per line in a spool segment of their table (`journal.py`). Each field is a
column of the table of the same name in `schema.py`, where its meaning is told; `*_us` are microseconds since the epoch.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class ModelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A model came into a server's memory, or left it."""

    occurred_at_us: int
    server_id: int
    server: str
    model: str
    event: Literal["loaded", "unloaded"]
    size_bytes: int = 0
    vram_bytes: int = 0
    parameter_size: str | None = None
    quantization: str | None = None


class ServerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A server went away, came back, or was started anew."""

    #: Of a reboot: when the machine booted.
    occurred_at_us: int
    server_id: int
    server: str
    event: Literal["offline", "online", "reboot", "deploy"]
    detail: str | None = None


class SystemMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What the metrics agent of one server's machine said, once."""

    polled_at_us: int
    server_id: int
    server: str
    cpu_temp_c: float | None = None
    gpu_temp_c: float | None = None
    cpu_percent: float | None = None
    gpu_percent: float | None = None
    mem_total_mb: float | None = None
    mem_used_mb: float | None = None
    mem_available_mb: float | None = None
    swap_total_mb: float | None = None
    swap_used_mb: float | None = None
    load_avg_1: float | None = None
    load_avg_5: float | None = None
    load_avg_15: float | None = None
    uptime_s: float | None = None
    disk_total_gb: float | None = None
    disk_used_gb: float | None = None
    recent_boots: tuple[str, ...] = ()


class MetricSample(msgspec.Struct, frozen=True, kw_only=True):
    """One series of the exporter at one moment."""

    sampled_at_us: int
    name: str
    labels: dict[str, str]
    value: float


class JobRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a scheduled job or of our own housekeeping."""

    started_at_us: int
    job: str
    job_id: int | None = None
    planned_at_us: int | None = None
    duration_ms: float = 0.0
    result: Literal["ok", "failed", "skipped", "cancelled"] = "ok"
    detail: str | None = None


Row = ModelEvent | ServerEvent | SystemMetrics | MetricSample | JobRun

#: Row type -> table, which is also the first word of its spool segments.
TABLES: dict[type[Row], str] = {
    ModelEvent: "model_events",
    ServerEvent: "server_events",
    SystemMetrics: "system_metrics",
    MetricSample: "metric_samples",
    JobRun: "job_runs",
}
