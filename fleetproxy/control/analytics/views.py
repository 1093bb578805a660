"""Views over the tables: the questions people ask most. And the SQL of words that have one meaning everywhere."""

# ruff: noqa: S608  (SQL here is made of our own tables' names)

from __future__ import annotations

from fleetproxy.control.analytics.shape import View

#: A request that went wrong: an error status, or an answer that broke. A caller who left is no error.
FAILED = (
    "(coalesce(status, 0) >= 400 OR outcome IN ('backend_error', 'truncated', 'aborted')) AND outcome <> 'client_gone'"
)

#: Milliseconds spent writing the answer: as the backend says, else what the stream took after its first byte.
GENERATION_MS = "CASE WHEN tokens_out > 0 THEN coalesce(eval_ms, CASE WHEN streamed THEN total_ms - ttft_ms END) END"
_GENERATED = f"FILTER (({GENERATION_MS}) > 0)"
TOKENS_PER_SECOND = f"round(1000 * sum(tokens_out) {_GENERATED} / sum({GENERATION_MS}) {_GENERATED}, 2)"

VIEWS: tuple[View, ...] = (
    View(
        "v_hourly_model",
        "Traffic, tokens, latency and errors of each model by hour.",
        f"""SELECT date_trunc('hour', started_at) AS hour, model, count(*) AS requests,
       count(*) FILTER ({FAILED}) AS errors, sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out,
       quantile_cont(total_ms, 0.5) AS total_p50_ms, quantile_cont(total_ms, 0.95) AS total_p95_ms,
       quantile_cont(ttft_ms, 0.5) AS ttft_p50_ms, quantile_cont(ttft_ms, 0.95) AS ttft_p95_ms,
       quantile_cont(queue_ms, 0.95) AS queue_p95_ms, sum(retries) AS retries
FROM requests WHERE model IS NOT NULL GROUP BY ALL ORDER BY hour DESC, requests DESC""",
    ),
    View(
        "v_hourly_backend",
        "Traffic, latency and errors of each server by hour.",
        f"""SELECT date_trunc('hour', started_at) AS hour, backend, count(*) AS requests,
       count(*) FILTER ({FAILED}) AS errors, sum(tokens_out) AS tokens_out,
       {TOKENS_PER_SECOND} AS tokens_per_second,
       quantile_cont(total_ms, 0.5) AS total_p50_ms, quantile_cont(total_ms, 0.95) AS total_p95_ms,
       quantile_cont(ttft_ms, 0.95) AS ttft_p95_ms
FROM requests WHERE backend IS NOT NULL GROUP BY ALL ORDER BY hour DESC, requests DESC""",
    ),
    View(
        "v_slowest",
        "The 100 slowest requests of the last 24 hours.",
        """SELECT started_at, request_id, source, model, backend, endpoint, status, outcome, total_ms, queue_ms,
       ttft_ms, load_ms, tokens_in, tokens_out, retries
FROM requests WHERE started_at >= (now() AT TIME ZONE 'UTC') - INTERVAL 24 HOUR
ORDER BY total_ms DESC LIMIT 100""",
    ),
    View(
        "v_key_cost",
        "What each user and key used, by day and model: requests and tokens.",
        """SELECT date_trunc('day', started_at) AS day, coalesce(user, source) AS who, key_prefix, model,
       count(*) AS requests, sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out,
       sum(total_ms) / 1000 AS busy_s
FROM requests GROUP BY ALL ORDER BY day DESC, tokens_out DESC NULLS LAST""",
    ),
    View(
        "v_errors",
        "What went wrong, by hour, with an example to look up.",
        f"""SELECT date_trunc('hour', started_at) AS hour, outcome, status, error, endpoint, model, backend,
       count(*) AS requests, any_value(request_id) AS example
FROM requests WHERE {FAILED} GROUP BY ALL ORDER BY hour DESC, requests DESC""",
    ),
    View(
        "v_routing",
        "Why requests went where they went, by day.",
        """SELECT date_trunc('day', started_at) AS day, route_reason, backend, count(*) AS requests,
       sum(retries) AS retries, quantile_cont(ttft_ms, 0.5) AS ttft_p50_ms
FROM requests WHERE route_reason IS NOT NULL GROUP BY ALL ORDER BY day DESC, requests DESC""",
    ),
    View(
        "v_model_residency",
        "Each stay of a model in a server's memory; `unloaded_at` is NULL while it lasts.",
        """SELECT server_id, server, model, occurred_at AS loaded_at,
       CASE WHEN next_event = 'unloaded' THEN next_at END AS unloaded_at, vram_bytes
FROM (SELECT *, lead(event) OVER stay AS next_event, lead(occurred_at) OVER stay AS next_at FROM model_events
      WINDOW stay AS (PARTITION BY server_id, model ORDER BY occurred_at, id))
WHERE event = 'loaded' AND (next_event = 'unloaded' OR next_event IS NULL)
ORDER BY loaded_at DESC""",
    ),
)
