"""`GET /api/analytics`."""

from __future__ import annotations

import msgspec

from fleetproxy.control.api.answers.base import Answer, At


class Shares(Answer):
    count: int
    percentage: float
    error_count: int
    median_ms: int
    p95_ms: int = msgspec.field(name="p95Ms")
    ttft_median_ms: int | None
    ttft_p95_ms: int | None = msgspec.field(name="ttftP95Ms")
    itl_median_ms: float | None
    itl_p95_ms: float | None = msgspec.field(name="itlP95Ms")
    queued_count: int
    queue_p95_ms: float | None = msgspec.field(name="queueP95Ms")
    retries: int
    tokens_in: int
    tokens_out: int
    tokens_per_second: float | None
    resident_percentage: float
    loads_avoided: int
    loads_forced: int


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
    retries: int
    resident_percentage: float
    loads_avoided: int
    loads_forced: int


class LatencyBucket(Answer):
    bucket: str
    at: At
    median_ms: int
    p95_ms: int = msgspec.field(name="p95Ms")
    ttft_median_ms: int | None
    ttft_p95_ms: int | None = msgspec.field(name="ttftP95Ms")
    itl_median_ms: float | None
    itl_p95_ms: float | None = msgspec.field(name="itlP95Ms")
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
    itl_median_ms: float | None
    itl_p95_ms: float | None = msgspec.field(name="itlP95Ms")
    itl_p99_ms: float | None = msgspec.field(name="itlP99Ms")
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
    loads_avoided: int
    loads_forced: int


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
