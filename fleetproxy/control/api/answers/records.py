"""Requests, events and what follows from them."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetproxy.control.api.answers.base import Answer, At
from fleetproxy.control.api.answers.fleet import Explanation


class ModelEvent(Answer):
    id: int
    server_id: int
    server_name: str | None
    model_name: str | None
    event_type: str | None
    model_size: int
    vram_size: int
    parameter_size: str | None
    quantization: str | None
    occurred_at: At


class ServerEvent(Answer):
    id: int
    server_id: int
    server_name: str | None
    event_type: str | None
    detail: str | None
    occurred_at: At


class Usage(Answer):
    server_name: str
    server_id: int
    model_name: str
    total_loaded_seconds: float
    load_count: int
    last_seen: At


class MachineRow(Answer):
    cpu_temp_c: float | None = msgspec.field(name="cpuTempC")
    gpu_temp_c: float | None = msgspec.field(name="gpuTempC")
    cpu_percent: float | None
    gpu_percent: float | None
    mem_used_mb: float | None
    mem_total_mb: float | None
    swap_used_mb: float | None
    load_avg1: float | None
    disk_total_gb: float | None
    disk_used_gb: float | None
    uptime_seconds: float | None
    polled_at: At


class RequestRow(Answer):
    id: int | None
    source_ip: str | None
    model: str | None
    endpoint: str | None
    method: str | None
    target_host: str | None
    status_code: int | None
    duration_ms: int | None
    created_at: At
    request_id: str
    user: str | None
    server_name: str | None
    server_id: int | None
    routing_reason: str | None
    outcome: str | None
    error: str | None
    retries: int | None
    streamed: bool | None
    queue_ms: float | None
    ttft_ms: float | None
    overhead_ms: float | None
    bytes_in: int | None
    bytes_out: int | None
    tokens_in: int | None
    tokens_out: int | None
    family: str | None
    dialect: str | None
    route: str | None
    model_served: str | None


class RequestSum(Answer):
    source_ip: str | None
    model: str | None
    target_host: str | None
    count: int
    avg_duration: int | None


class Requests(Answer):
    """Newest first."""

    requests: list[RequestRow]
    summary: list[RequestSum]


class WholeRequest(RequestRow):
    remote_ip: str | None
    user_agent: str | None
    key_prefix: str | None
    key_unknown: bool | None
    process: str | None
    chunks_out: int | None
    load_ms: float | None
    prompt_eval_ms: float | None
    eval_ms: float | None


class Why(Answer):
    reason: str | None
    words: str
    outcome: str | None
    error: str | None


class AttemptTold(Answer):
    n: int
    server_name: str
    status: int | None
    error: str | None
    words: str | None
    started_ms: float
    connect_ms: float | None
    first_byte_ms: float | None
    total_ms: float


class Phase(Answer):
    phase: Literal["overhead", "queue", "connect", "wait", "stream", "failed"]
    label: str
    server_name: str | None
    start_ms: float
    duration_ms: float


class Story(Answer):
    request: WholeRequest
    why: Why
    attempts: list[AttemptTold]
    timeline: list[Phase]
    now: Explanation | None


class Placement(Answer):
    model_name: str
    server_name: str
    server_id: int
    load_count: int
    unload_count: int
    request_count: int
    churn_score: float
    available_on: list[str]
    total_servers: int
    total_request_count: int


class Oversized(Answer):
    model_name: str
    server_name: str
    server_id: int
    model_size_gb: float
    server_ram_gb: float
    usage_percent: float
    available_on: list[str]


class Recommendations(Answer):
    consider_removing: list[Placement]
    consider_adding: list[Placement]
    oversized_models: list[Oversized]
    period_hours: int
    server_names: list[str]


class ServiceAffinity(Answer):
    source: str
    current_model: str
    request_count: int
    family_match: str


class Discovery(Answer):
    id: int
    model_name: str
    model_family: str | None
    families: list[str] | None
    parameter_size: str | None
    quantization: str | None
    model_size: int | None
    description: None
    capabilities: list[str]
    pull_count: None
    registry_exists: None
    first_seen_server_name: str | None
    info_fetch_status: Literal["success", "partial"]
    info_fetched_at: At
    discovered_at: At
    service_affinities: list[ServiceAffinity]


class Discoveries(Answer):
    discoveries: list[Discovery]
    period_hours: int
