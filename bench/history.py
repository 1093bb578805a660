"""A made-up request history, written by DuckDB itself: millions of rows in seconds, the same ones each time."""

from __future__ import annotations

from pathlib import Path

import duckdb

from fleetproxy.control.analytics import database, rollups
from fleetproxy.settings import Analytics

#: 2026-11-21 12:17 UTC: the last hour is one under way.
NOW_US = 1_795_262_400_000_000 + 17 * 60_000_000
DAY_US = 86_400_000_000
MODELS, SERVERS, SOURCES, USERS = 24, 12, 200, 50
#: Half a megabyte of SQL text would be needed for less regular traffic; this is skewed, queued and failing enough.
_REQUESTS = f"""
INSERT INTO requests (
    request_id, started_at, process, sequence, source, "user", user_id, key_prefix, key_unknown, remote_ip, user_agent,
    family, dialect, endpoint, method, path, model, model_served, backend, server_id, route_reason, status, outcome,
    error, retries, streamed, queue_ms, ttft_ms, overhead_ms, total_ms, bytes_in, bytes_out, chunks_out, tokens_in,
    tokens_out, eval_ms)
SELECT md5(i::VARCHAR), make_timestamp($first + (i * $step)::BIGINT), 'proxy-' || (i % 2), i,
    coalesce(who, 'app-' || source), who, user_id, CASE WHEN user_id IS NOT NULL THEN 'fp_' || user_id END, false,
    '10.0.' || (source % 4) || '.' || source, 'ollama-python/0.6.1', 'llm', dialect,
    CASE dialect WHEN 'ollama' THEN '/api/chat' WHEN 'openai' THEN '/v1/chat/completions' ELSE '/v1/messages' END,
    'POST', '/api/chat', model, model, CASE WHEN served THEN 'gpu' || server END, CASE WHEN served THEN server END,
    CASE WHEN served THEN CASE WHEN r6 < 0.7 THEN 'model_loaded' WHEN r6 < 0.9 THEN 'least_loaded'
        ELSE 'pinned_by_header' END END,
    status, CASE WHEN status < 400 THEN CASE WHEN r7 < 0.01 THEN 'client_gone' ELSE 'ok' END
        WHEN status = 502 THEN 'backend_error' ELSE 'refused' END,
    CASE status WHEN 404 THEN 'model_not_found' WHEN 429 THEN 'too_many' WHEN 502 THEN 'connect_failed' END,
    (r7 < 0.02)::INT, r3 < 0.7, CASE WHEN r7 < 0.1 THEN 5000 * r6 * r6 ELSE 0 END,
    CASE WHEN served THEN exp(4 + 2 * r6) END, 0.2 + r4, exp(4 + 2 * r6) + exp(5 + 4 * r5), (2000 * r1)::INT,
    (9000 * r5)::INT, (60 * r5)::INT, CASE WHEN served THEN (500 * r1)::INT END,
    CASE WHEN served THEN (300 * r5)::INT END, CASE WHEN dialect = 'ollama' THEN exp(5 + 4 * r5) END
FROM (
    SELECT i, r1, r3, r4, r5, r6, r7, status, status < 400 OR status = 502 AS served,
        'model-' || floor({MODELS} * r4 * r4)::INT || ':8b' AS model, 1 + floor({SERVERS} * r5)::INT AS server,
        floor({SOURCES} * r1 * r1 * r1)::INT AS source,
        CASE WHEN r2 < 0.6 THEN floor({USERS} * r2 / 0.6)::INT END AS user_id,
        CASE WHEN r2 < 0.6 THEN 'user' || floor({USERS} * r2 / 0.6)::INT END AS who,
        CASE WHEN r3 < 0.6 THEN 'ollama' WHEN r3 < 0.95 THEN 'openai' ELSE 'anthropic' END AS dialect
    FROM (
        SELECT i, random() AS r1, random() AS r2, random() AS r3, random() AS r4, random() AS r5, random() AS r6,
            random() AS r7, CASE WHEN r < 0.95 THEN 200 WHEN r < 0.97 THEN 404 WHEN r < 0.985 THEN 429 ELSE 502 END
            AS status
        FROM (SELECT i, random() AS r FROM range($rows) AS t (i))
    )
)"""
#: Each server loads and unloads a model every quarter of an hour.
_MODEL_EVENTS = f"""
INSERT INTO model_events (occurred_at, server_id, server, model, event, size_bytes, vram_bytes)
SELECT make_timestamp($first + (i * 900000000)::BIGINT + s * 1000000), s, 'gpu' || s,
    'model-' || ((i // 2 + s) % {MODELS}) || ':8b', CASE i % 2 WHEN 0 THEN 'loaded' ELSE 'unloaded' END, 5e9, 5e9
FROM range($days * 96) AS a (i), range(1, {SERVERS} + 1) AS b (s) ORDER BY i, s"""
_SERVER_EVENTS = f"""
INSERT INTO server_events (occurred_at, server_id, server, event)
SELECT make_timestamp($first + (i * 21600000000)::BIGINT), s, 'gpu' || s,
    CASE i % 2 WHEN 0 THEN 'offline' ELSE 'online' END
FROM range($days * 4) AS a (i), range(1, {SERVERS} + 1) AS b (s) ORDER BY i, s"""
#: A poll each 15 s.
_SYSTEM_METRICS = f"""
INSERT INTO system_metrics (polled_at, server_id, server, cpu_temp_c, gpu_temp_c, cpu_percent, mem_total_mb,
    mem_used_mb, swap_used_mb, load_avg_1, disk_total_gb, disk_used_gb, uptime_s)
SELECT make_timestamp($first + (i * 15000000)::BIGINT), s, 'gpu' || s, 50 + 20 * random(), 60 + 20 * random(),
    100 * random(), 65536, 65536 * random(), 0, 4 * random(), 2000, 1000, i * 15
FROM range($days * 5760) AS a (i), range(1, {SERVERS} + 1) AS b (s) ORDER BY i, s"""


def write(folder: Path, rows: int, days: int, settings: Analytics) -> None:
    """Make the file, its roll-ups with it. About a second for 100 000 rows."""
    spool = folder / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    connection = database.open_store(folder / "analytics.duckdb", spool, settings, NOW_US).connection
    try:
        _fill(connection, rows, days)
        rollups.bring_up_to_date(connection, NOW_US)
        rolling = rollups.Rollups()
        while rolling.step(connection, NOW_US):
            pass
        connection.execute("CHECKPOINT")
    finally:
        connection.close()


def _fill(connection: duckdb.DuckDBPyConnection, rows: int, days: int) -> None:
    first = NOW_US - days * DAY_US
    connection.execute("SELECT setseed(0.42)")
    connection.execute(_REQUESTS, {"first": first, "step": days * DAY_US / rows, "rows": rows})
    for statement in (_MODEL_EVENTS, _SERVER_EVENTS, _SYSTEM_METRICS):
        connection.execute(statement, {"first": first, "days": days})
