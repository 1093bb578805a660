"""The shapes of the dashboard API's answers, for its document: what a client may lean on.

Handlers build plain dictionaries; a test decodes what a whole control process answers into these, strictly, so that
neither a field more nor a field less goes unnoticed. Fields may be added, never taken away.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

At = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class Answer(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of all."""


class Ok(Answer):
    ok: Literal[True]


class Member(Answer):
    """A user as login and setup give it."""

    id: int
    username: str
    is_admin: bool


class LoggedIn(Answer):
    user: Member


class Me(Member):
    """`apiKey`: the beginning of the default key; null: there is none."""

    api_key: str | None
    created_at: At


class MeAnswer(Answer):
    """`user` is null while there are no users; then `needsSetup` is there."""

    user: Me | None
    needs_setup: Literal[True] | None = None
    #: Setting up from here needs the one-time token of the log.
    needs_token: bool | None = None


class User(Member):
    created_at: At


class Key(Answer):
    id: int
    user_id: int
    prefix: str
    label: str
    scopes: list[str]
    models: list[str] | None
    max_in_flight: int | None
    requests_per_minute: int | None
    created_at: At
    expires_at: At | None


class IssuedKey(Answer):
    """`apiKey` is shown this once."""

    api_key: str
    key: Key


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


class Story(Answer):
    request: WholeRequest
    why: Why
    attempts: list[AttemptTold]
    timeline: list[Phase]
    now: Explanation | None


class Shares(Answer):
    count: int
    percentage: float
    error_count: int
    median_ms: int
    p95_ms: int = msgspec.field(name="p95Ms")
    ttft_median_ms: int | None
    ttft_p95_ms: int | None = msgspec.field(name="ttftP95Ms")
    queued_count: int
    queue_p95_ms: float | None = msgspec.field(name="queueP95Ms")
    retries: int
    tokens_in: int
    tokens_out: int
    tokens_per_second: float | None
    resident_percentage: float


class ModelShares(Shares):
    model: str


class SourceShares(Shares):
    source: str


class ServerShares(Shares):
    server_name: str
    server_id: int | None


class UserShares(Shares):
    user: str


class TrafficBucket(Answer):
    bucket: str
    at: At
    count: int
    error_count: int
    tokens_in: int
    tokens_out: int


class LatencyBucket(Answer):
    bucket: str
    at: At
    median_ms: int
    p95_ms: int = msgspec.field(name="p95Ms")
    ttft_median_ms: int | None
    ttft_p95_ms: int | None = msgspec.field(name="ttftP95Ms")
    queue_p95_ms: float | None = msgspec.field(name="queueP95Ms")


class AnalyticsSummary(Answer):
    total_requests: int
    success_count: int
    error_count: int
    success_rate: float
    median_latency_ms: int
    p95_latency_ms: int = msgspec.field(name="p95LatencyMs")
    unique_models: int
    unique_sources: int
    p99_latency_ms: int = msgspec.field(name="p99LatencyMs")
    unique_users: int
    ttft_median_ms: float | None
    ttft_p95_ms: float | None = msgspec.field(name="ttftP95Ms")
    ttft_p99_ms: float | None = msgspec.field(name="ttftP99Ms")
    overhead_median_ms: float | None
    overhead_p95_ms: float | None = msgspec.field(name="overheadP95Ms")
    queued_count: int
    queue_p95_ms: float | None = msgspec.field(name="queueP95Ms")
    queue_total_ms: float
    retried_count: int
    retries: int
    tokens_in: int
    tokens_out: int
    bytes_in: int
    bytes_out: int
    tokens_per_second: float | None
    resident_percentage: float


class StatusCount(Answer):
    status_code: int
    count: int


class ReasonShare(Answer):
    reason: str
    count: int
    percentage: float


class OutcomeShare(Answer):
    outcome: str
    count: int
    percentage: float


class Analytics(Answer):
    summary: AnalyticsSummary
    requests_over_time: list[TrafficBucket]
    latency_over_time: list[LatencyBucket]
    model_distribution: list[ModelShares]
    source_distribution: list[SourceShares]
    server_distribution: list[ServerShares]
    user_distribution: list[UserShares]
    error_breakdown: list[StatusCount]
    routing_reasons: list[ReasonShare] | None
    outcomes: list[OutcomeShare]
    percentile_error: float


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


class Job(Answer):
    id: int
    name: str
    description: str | None
    source_identifier: str
    cron_expression: str
    timezone: str
    target_model: str
    preferred_server_id: int | None
    preferred_server_name: str | None
    expected_duration_ms: int
    is_enabled: bool
    next_executions: list[At]
    created_at: At
    updated_at: At
    cron_description: str | None
    action: str
    action_options: dict[str, Any]
    overlap: Literal["skip", "wait", "allow"]
    misfire_grace_seconds: int


class ConflictJob(Answer):
    job_id: int
    job_name: str
    target_model: str


class Conflict(Answer):
    start_time: At
    end_time: At
    jobs: list[ConflictJob]
    conflict_type: str


class NewJob(Job):
    conflicts: list[Conflict]


class DeletedJob(Answer):
    success: Literal[True]
    id: int


class StartedRun(Answer):
    run_id: int
    status: Literal["running"]


class Run(Answer):
    id: int
    job_id: int
    scheduled_for: At | None
    started_at: At
    finished_at: At | None
    outcome: str
    detail: str | None
    triggered_by: str | None


class Execution(Answer):
    job_id: int
    job_name: str
    source_identifier: str
    target_model: str
    start_time: At
    end_time: At
    is_conflict: bool


class Timeline(Answer):
    """`completeUntil`: later runs may be missing, for there are too many; null: none is."""

    executions: list[Execution]
    conflicts: list[Conflict]
    complete_until: At | None


class Slot(Answer):
    start_time: At
    end_time: At
    duration_ms: int


class Suggestions(Answer):
    open_slots: list[Slot]


class Validation(Answer):
    valid: bool
    error: str | None
    description: str | None
    next_executions: list[At]


class FoundJob(Answer):
    name: str
    source_identifier: str
    cron_expression: str
    target_model: str
    description: str | None


class Found(Answer):
    """`reason`: why nothing could be looked at."""

    containers: int
    jobs: list[FoundJob]
    reason: str | None


class Imported(Answer):
    discovered: int
    added: int
    skipped: int
    added_jobs: list[str]
    skipped_jobs: list[str]
    reason: str | None


class Chat(Answer):
    chat_id: str
    bot_token: str
    is_enabled: bool


class Subscription(Answer):
    id: int
    server_id: int
    server_name: str | None
    notify_offline: bool
    notify_online: bool
    notify_reboot: bool


class Hook(Answer):
    url: str
    secret: str | None
    events: list[str]
    is_enabled: bool


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
    name: str
    type: Literal["agent", "hook", "family"]
    version: str = ""
    description: str = ""
    default_port: int | None = None
    endpoint: str | None = None
    config_key: str | None = None
    enabled: bool | None = None


class Health(Answer):
    status: str
    failed: list[str] | None = None


#: Call -> shape of its answer.
ANSWERS: dict[str, Any] = {
    "POST /api/auth/login": LoggedIn,
    "POST /api/auth/logout": Ok,
    "GET /api/auth/me": MeAnswer,
    "POST /api/auth/setup": LoggedIn,
    "GET /api/servers": list[Server],
    "POST /api/servers": AddedServer,
    "POST /api/servers/test": Trial,
    "POST /api/servers/{server_id}/test": Trial,
    "PATCH /api/servers/{server_id}": Ok,
    "DELETE /api/servers/{server_id}": Ok,
    "GET /api/workers": Workers,
    "PATCH /api/workers/{worker_id}": Ok,
    "POST /api/workers/{worker_id}/drain": Ok,
    "POST /api/workers/{worker_id}/undrain": Ok,
    "GET /api/events": list[ModelEvent],
    "GET /api/server-events": list[ServerEvent],
    "GET /api/usage": list[Usage],
    "GET /api/system-metrics": list[MachineRow],
    "GET /api/requests": Requests,
    "GET /api/requests/{request_id}": Story,
    "GET /api/analytics": Analytics,
    "GET /api/recommendations": Recommendations,
    "GET /api/discoveries": Discoveries,
    "GET /api/plugins": list[Plugin],
    "POST /api/poll": Ok,
    "GET /api/scheduled-jobs": list[Job],
    "POST /api/scheduled-jobs": NewJob,
    "GET /api/scheduled-jobs/{job_id}": Job,
    "PUT /api/scheduled-jobs/{job_id}": Job,
    "DELETE /api/scheduled-jobs/{job_id}": DeletedJob,
    "POST /api/scheduled-jobs/{job_id}/run": StartedRun,
    "GET /api/scheduled-jobs/{job_id}/runs": list[Run],
    "GET /api/scheduled-jobs/timeline": Timeline,
    "GET /api/scheduled-jobs/suggestions": Suggestions,
    "GET /api/scheduled-jobs/validate": Validation,
    "GET /api/scheduled-jobs/discover": Found,
    "POST /api/scheduled-jobs/discover": Imported,
    "GET /api/users": list[User],
    "POST /api/users": User,
    "PUT /api/users/{user_id}": Ok,
    "PATCH /api/users/{user_id}": Ok,
    "DELETE /api/users/{user_id}": Ok,
    "POST /api/users/{user_id}/api-key": IssuedKey,
    "GET /api/users/{user_id}/api-keys": list[Key],
    "DELETE /api/users/{user_id}/api-keys/{key_id}": Ok,
    "GET /api/settings/telegram": Chat | None,
    "PUT /api/settings/telegram": Ok,
    "DELETE /api/settings/telegram": Ok,
    "GET /api/settings/subscriptions": list[Subscription],
    "PUT /api/settings/subscriptions": Ok,
    "GET /api/settings/fleet": dict[str, bool],
    "PUT /api/settings/fleet": Ok,
    "GET /api/settings/webhook": Hook | None,
    "PUT /api/settings/webhook": Ok,
    "DELETE /api/settings/webhook": Ok,
    "GET /api/models/explain": Explanation,
    "GET /api/models/registry-check": RegistryCheck,
    "POST /api/models/pull": Begun,
    "POST /api/models/actions/{action_id}/cancel": Ok,
    "POST /api/models/delete": Done,
    "POST /api/models/load": Done,
    "POST /api/models/unload": Done,
    "GET /api/models/actions": list[Action],
    "GET /healthz": Health,
    "GET /livez": Health,
    "GET /health": Health,
    "GET /readyz": Health,
}
#: Calls whose answers are not JSON: call -> media types.
MEDIA: dict[str, tuple[str, ...]] = {
    "GET /api/state/stream": ("text/event-stream",),
    "GET /api/state/live": ("text/event-stream",),
    "GET /api/state/view/{name}": ("text/html",),
    "GET /state": ("text/html",),
    "GET /state/{name}": ("text/html", "text/css", "text/javascript"),
    "GET /dashboard": ("text/html",),
    "GET /dashboard/{path}": ("*/*",),
    "GET /api/client": ("text/html",),
    "GET /api/client/{path}": ("*/*",),
    "GET /metrics": ("text/plain", "application/openmetrics-text"),
    "POST /api/query": ("application/json", "text/csv"),
    "GET /api/analytics/series": ("application/json", "text/csv"),
    "GET /api/analytics/residency": ("application/json", "text/csv"),
    "GET /api/requests": ("application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.parquet"),
}
#: Further statuses that are no refusals: call -> status -> words.
FURTHER: dict[str, dict[str, str]] = {
    "GET /api/state/view/{name}": {"204": "There is no such view."},
    "GET /readyz": {"503": "What is missing is in `failed`."},
    "GET /dashboard": {"304": "As the caller has it.", "503": "No dashboard was built."},
    "GET /dashboard/{path}": {"304": "As the caller has it.", "503": "No dashboard was built."},
}
