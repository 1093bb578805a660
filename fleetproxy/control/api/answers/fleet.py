"""Servers, workers, models, and how requests find them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fleetproxy.control.api.answers.base import Answer, At


class Machine(Answer):
    """The latest words of the metrics agent."""

    cpu_temp_c: int | None = msgspec.field(name="cpuTempC")
    gpu_temp_c: int | None = msgspec.field(name="gpuTempC")
    cpu_percent: int | None
    gpu_percent: int | None
    mem_total_mb: int | None
    mem_used_mb: int | None
    mem_available_mb: int | None
    swap_total_mb: int | None
    swap_used_mb: int | None
    load_avg: list[float | None]
    uptime_seconds: int | None
    disk_total_gb: int | None
    disk_used_gb: int | None
    recent_boots: list[str]
    gpu_mem_total_mb: int | None
    gpu_mem_used_mb: int | None


class ServerFacts(Answer):
    id: int
    name: str
    host: str
    total_ram_gb: int
    is_online: bool
    ollama_version: str | None
    total_vram_used: int
    polled_at: At | None
    model_load_times: dict[str, At]
    system_metrics: Machine | None
    backend_type: Literal["ollama", "vllm", "generic"]
    is_disabled: bool
    version: str | None
    url: str
    origin: Literal["file", "api"]
    is_draining: bool
    is_leaving: bool
    in_flight: int
    waiting: int
    max_concurrent: int | None
    embedding_batch_size: int | None
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    failed_polls: int
    last_error: str | None


class Server(ServerFacts):
    """The models are the server's own objects (`/api/ps`, `/api/tags`)."""

    loaded_models: list[dict[str, Any]]
    available_models: list[dict[str, Any]]


class AddedServer(Answer):
    id: int
    name: str
    origin: Literal["file", "api"]
    url: str | None
    kind: str | None
    is_disabled: bool
    is_draining: bool


class TrialStep(Answer):
    name: Literal["address", "connect", "models", "answer"]
    ok: bool
    ms: float
    detail: str


class Trial(Answer):
    ok: bool
    steps: list[TrialStep]
    kind: str | None
    version: str | None
    models: list[str]
    answer: str | None


class Resident(Answer):
    name: str
    size_bytes: int
    vram_bytes: int
    context_length: int | None
    expires_at: str | None
    loaded_at: At | None
    parameter_size: str | None
    quantization: str | None


class Failure(Answer):
    code: str
    words: str
    at: At


class Worker(Answer):
    id: int
    worker_id: str
    name: str
    family: str
    protocol: str
    version: str
    remote: str
    connected_at: At
    last_heartbeat: At
    host: str
    backend_family: str
    backend_version: str
    state: Literal["idle", "working", "not_ready", "draining"]
    is_draining: bool
    drained_here: bool
    models: list[str]
    model_count: int
    cpu_percent: float
    ram_percent: float
    processed: int
    failed: int
    embedding_batch_size: int | None
    in_flight: int
    slots: int | None
    waiting: int
    breaker: Literal["closed", "open", "half_open"]
    tokens_per_second: float
    requests_per_second: float
    failed_last_minute: int
    last_failure: Failure | None
    vram_used_bytes: int
    vram_total_bytes: int | None
    resident: list[Resident]
    resident_count: int
    disk_count: int


class RelayCall(Answer):
    id: str
    method: str
    started_at: At


class Relay(Answer):
    id: int
    relay_id: str
    name: str
    version: str
    remote: str
    connected_at: At
    last_heartbeat: At
    in_flight: int
    is_draining: bool
    drained_here: bool
    functions: dict[str, int]
    calls: list[RelayCall]


class Workers(Answer):
    workers: list[Worker]
    relays: list[Relay]


class Considered(Answer):
    server_id: int
    server_name: str
    place: int | None
    verdict: str
    words: str
    tier: Literal["resident", "on_disk", "not_listed"]
    model: str | None
    in_flight: int
    slots: int | None
    waiting: int
    free_vram_bytes: int | None
    tripped: bool


class Explanation(Answer):
    model: str | None
    path: str
    outcome: Literal["candidates", "wait", "refuse"]
    reason: str
    words: str
    message: str
    pin_ignored: bool
    at: At
    considered: list[Considered]


class RegistryCheck(Answer):
    model_name: str
    exists_on_ollama: bool | None
    exists_on_hugging_face: bool | None
    is_custom: bool
    checked_at: At


class Begun(Answer):
    action_id: int
    status: Literal["pending"]


class Done(Answer):
    action_id: int
    status: Literal["success", "failed"]
    detail: str | None


class Progress(Answer):
    status: str
    completed_bytes: int
    total_bytes: int


class Action(Answer):
    id: int
    action: str
    model_name: str
    server_id: int
    server_name: str | None
    status: str
    detail: str | None
    triggered_by: str | None
    created_at: At
    finished_at: At | None
    progress: Progress | None


class Plugin(Answer):
    id: str
    name: str
    kind: Literal["agent", "hook", "family"]
    type: Literal["agent", "hook", "family"]
    version: str
    description: str
    enabled: bool
    default_port: int | None = None
    endpoint: str | None = None
    config_key: str | None = None


class Health(Answer):
    status: str
    failed: list[str] | None = None
