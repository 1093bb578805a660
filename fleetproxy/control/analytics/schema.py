"""The tables of the store: columns, types, meaning. DDL, loading SQL, comments in the file and docs come from here.

Rules users may lean on: times are TIMESTAMP in UTC; units are in the names (`_ms`, `_bytes`, `_percent`); columns are
added, never renamed or given another meaning, inside a major version. NULL means "not known" or "does not apply".
"""

# ruff: noqa: S608  (SQL here is made of our own tables' names)

from __future__ import annotations

import msgspec

#: Raised by every change below: `database.py` adds missing tables and columns, and runs MIGRATIONS for the rest.
SCHEMA_VERSION = 1

#: Statements that `CREATE`/`ADD COLUMN` cannot express: version reached -> statements, each version one transaction.
MIGRATIONS: dict[int, tuple[str, ...]] = {}

_LAST_US = 253_402_300_799_999_999  # year 9999: what JSON and Python can still write


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str
    doc: str
    #: Key in the spool's JSON lines; None: the column's name (with `_us` for times); "": made by the store.
    source: str | None = None
    #: Longer text is cut to this many characters; 0: never.
    cut: int = 0

    @property
    def key(self) -> str:
        if self.source is not None:
            return self.source
        return f"{self.name}_us" if self.type == "TIMESTAMP" else self.name

    @property
    def json_type(self) -> str:
        return "BIGINT" if self.type == "TIMESTAMP" else self.type

    @property
    def expression(self) -> str:
        """The column's value, given its JSON key as a column."""
        if self.type == "TIMESTAMP":
            return f"CASE WHEN {self.present} THEN make_timestamp({self.key}) END"
        return f"left({self.key}, {self.cut})" if self.cut else self.key

    @property
    def present(self) -> str:
        """Whether a line has a usable value for it."""
        return f"{self.key} BETWEEN 0 AND {_LAST_US}" if self.type == "TIMESTAMP" else f"{self.key} IS NOT NULL"


class Table(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    doc: str
    columns: tuple[Column, ...]
    #: The column retention goes by; also the order rows arrive in.
    time: str
    #: Columns without which a line is no row.
    required: tuple[str, ...] = ()
    #: JSON key of this list inside lines of `parent`; None: the table has spool segments of its own.
    nested: str | None = None
    parent: str | None = None
    #: Counts rows for the `id` column.
    sequence: str | None = None


class View(msgspec.Struct, frozen=True):
    name: str
    doc: str
    sql: str


def _id(table: str) -> Column:
    return Column("id", f"BIGINT DEFAULT nextval('{table}_id')", "Number of the row, in order of arrival.", "")


_NAME, _TEXT, _LONG = 128, 256, 512

REQUESTS = Table(
    name="requests",
    doc="One row per finished exchange: answered, refused and broken ones alike.",
    time="started_at",
    required=("request_id", "started_at"),
    sequence="requests_id",
    columns=(
        _id("requests"),
        Column("request_id", "VARCHAR", "Id given to the caller as `x-request-id`.", cut=_NAME),
        Column("started_at", "TIMESTAMP", "First byte of the request received."),
        Column("process", "VARCHAR", "The process that served it.", cut=_NAME),
        Column("sequence", "BIGINT", "Place within its process: (process, sequence) orders rows of one microsecond."),
        Column("source", "VARCHAR", "Who asked: user, name for the address, or address.", cut=_TEXT),
        Column("user", "VARCHAR", "User the API key belongs to.", cut=_TEXT),
        Column("user_id", "BIGINT", "Number of that user."),
        Column("key_prefix", "VARCHAR", "First characters of the API key.", cut=_NAME),
        Column("key_unknown", "BOOLEAN", "A key was sent that nobody has."),
        Column("remote_ip", "VARCHAR", "Address of the caller.", cut=_NAME),
        Column("user_agent", "VARCHAR", "User-Agent header.", cut=_TEXT),
        Column("family", "VARCHAR", "Plugin that served the path: llm, asr, mcp, transfer.", cut=_NAME),
        Column("dialect", "VARCHAR", "Wire language: ollama, openai, anthropic.", cut=_NAME),
        Column("endpoint", "VARCHAR", "Path template, such as `/api/blobs/{digest}`.", cut=_TEXT),
        Column("method", "VARCHAR", "HTTP method.", cut=32),
        Column("path", "VARCHAR", "Path as asked, without the query.", cut=_TEXT),
        Column("model", "VARCHAR", "Model as asked.", cut=_TEXT),
        Column("model_served", "VARCHAR", "What the backend calls that model.", cut=_TEXT),
        Column("backend", "VARCHAR", "Server or worker that answered.", cut=_TEXT),
        Column("server_id", "BIGINT", "Number of that server."),
        Column("route_reason", "VARCHAR", "Why that server: `model_loaded`, `pinned_by_header`, ...", cut=_NAME),
        Column("status", "INTEGER", "HTTP status given to the caller; NULL: the caller left before one was sent."),
        Column("outcome", "VARCHAR", "ok, refused, backend_error, truncated, client_gone or aborted.", cut=32),
        Column("error", "VARCHAR", "Code word of what went wrong.", cut=_TEXT),
        Column("retries", "INTEGER", "Attempts after the first."),
        Column("streamed", "BOOLEAN", "The caller asked for a stream."),
        Column("queue_ms", "DOUBLE", "Time spent waiting in line for a busy server."),
        Column("ttft_ms", "DOUBLE", "Until the caller was handed the first byte of the answer (time to first token)."),
        Column("overhead_ms", "DOUBLE", "Our own share: until the backend had the request, less waiting in line."),
        Column("total_ms", "DOUBLE", "Until the last byte of the answer."),
        Column("bytes_in", "BIGINT", "Body bytes received from the caller."),
        Column("bytes_out", "BIGINT", "Body bytes sent to the caller."),
        Column("chunks_out", "BIGINT", "Pieces the answer came in."),
        Column("tokens_in", "BIGINT", "Prompt tokens, as the backend counts them."),
        Column("tokens_out", "BIGINT", "Answer tokens, as the backend counts them."),
        Column("load_ms", "DOUBLE", "Loading the model, as Ollama says."),
        Column("prompt_eval_ms", "DOUBLE", "Reading the prompt, as Ollama says."),
        Column("eval_ms", "DOUBLE", "Writing the answer, as Ollama says."),
    ),
)

ATTEMPTS = Table(
    name="attempts",
    doc="One row per try at one backend; a request that was retried has several.",
    time="started_at",
    nested="attempts",
    parent="requests",
    columns=(
        Column("request_id", "VARCHAR", "The exchange it belongs to."),
        Column("started_at", "TIMESTAMP", "Start of the exchange (not of the attempt)."),
        Column("n", "INTEGER", "1 for the first attempt."),
        Column("backend", "VARCHAR", "Server or worker tried.", cut=_TEXT),
        Column("status", "INTEGER", "Its HTTP status; NULL: it did not answer."),
        Column("error", "VARCHAR", "Code word of what went wrong.", cut=_TEXT),
        Column("started_ms", "DOUBLE", "From the start of the exchange to the start of this attempt."),
        Column("connect_ms", "DOUBLE", "Opening the connection; NULL: one was kept alive."),
        Column("first_byte_ms", "DOUBLE", "From the start of the attempt to the first byte of its answer."),
        Column("total_ms", "DOUBLE", "Length of the attempt."),
    ),
)

MODEL_EVENTS = Table(
    name="model_events",
    doc="A model came into a server's memory, or left it, as the poller saw it.",
    time="occurred_at",
    required=("occurred_at", "server_id"),
    sequence="model_events_id",
    columns=(
        _id("model_events"),
        Column("occurred_at", "TIMESTAMP", "When the poller saw it."),
        Column("server_id", "BIGINT", "Number of the server."),
        Column("server", "VARCHAR", "Name of the server.", cut=_TEXT),
        Column("model", "VARCHAR", "Name of the model.", cut=_TEXT),
        Column("event", "VARCHAR", "loaded or unloaded.", cut=32),
        Column("size_bytes", "BIGINT", "Size of the model; 0 when unloaded."),
        Column("vram_bytes", "BIGINT", "Its share in video memory; 0 when unloaded."),
        Column("parameter_size", "VARCHAR", "Such as `8.0B`.", cut=_NAME),
        Column("quantization", "VARCHAR", "Such as `Q4_K_M`.", cut=_NAME),
    ),
)

SERVER_EVENTS = Table(
    name="server_events",
    doc="A server went away, came back, or its machine was started anew.",
    time="occurred_at",
    required=("occurred_at", "server_id"),
    sequence="server_events_id",
    columns=(
        _id("server_events"),
        Column("occurred_at", "TIMESTAMP", "When it was noticed; of a reboot: when the machine booted."),
        Column("server_id", "BIGINT", "Number of the server."),
        Column("server", "VARCHAR", "Name of the server.", cut=_TEXT),
        Column("event", "VARCHAR", "offline, online or reboot.", cut=32),
        Column("detail", "VARCHAR", "What is known of the cause.", cut=_LONG),
    ),
)

SYSTEM_METRICS = Table(
    name="system_metrics",
    doc="What the metrics agent on a server's machine said at each poll.",
    time="polled_at",
    required=("polled_at", "server_id"),
    columns=(
        Column("polled_at", "TIMESTAMP", "When it was asked."),
        Column("server_id", "BIGINT", "Number of the server."),
        Column("server", "VARCHAR", "Name of the server.", cut=_TEXT),
        Column("cpu_temp_c", "DOUBLE", "Processor, degrees Celsius."),
        Column("gpu_temp_c", "DOUBLE", "Graphics card, degrees Celsius."),
        Column("cpu_percent", "DOUBLE", "Processor use, 0 to 100."),
        Column("gpu_percent", "DOUBLE", "Graphics card use, 0 to 100."),
        Column("mem_total_mb", "DOUBLE", "Memory."),
        Column("mem_used_mb", "DOUBLE", "Memory in use."),
        Column("mem_available_mb", "DOUBLE", "Memory free for new work."),
        Column("swap_total_mb", "DOUBLE", "Swap space."),
        Column("swap_used_mb", "DOUBLE", "Swap space in use."),
        Column("load_avg_1", "DOUBLE", "Load average over 1 minute."),
        Column("load_avg_5", "DOUBLE", "Load average over 5 minutes."),
        Column("load_avg_15", "DOUBLE", "Load average over 15 minutes."),
        Column("uptime_s", "DOUBLE", "Seconds since the machine booted."),
        Column("disk_total_gb", "DOUBLE", "Disk."),
        Column("disk_used_gb", "DOUBLE", "Disk in use."),
        Column("recent_boots", "VARCHAR[]", "Latest boots, as the agent writes them."),
    ),
)

METRIC_SAMPLES = Table(
    name="metric_samples",
    doc="Gauges and counters of `/metrics`, every 15 s. What can be told from `requests` is not repeated here.",
    time="sampled_at",
    required=("sampled_at", "name"),
    columns=(
        Column("sampled_at", "TIMESTAMP", "When."),
        Column("name", "VARCHAR", "Name of the metric.", cut=_TEXT),
        Column("labels", "JSON", "Its labels: `labels->>'backend'`."),
        Column("value", "DOUBLE", "Its value; counters start at 0 with control."),
    ),
)

JOB_RUNS = Table(
    name="job_runs",
    doc="Runs of scheduled jobs and of our own housekeeping.",
    time="started_at",
    required=("started_at", "job"),
    columns=(
        Column("started_at", "TIMESTAMP", "When it began."),
        Column("job", "VARCHAR", "Name of the job.", cut=_TEXT),
        Column("job_id", "BIGINT", "Number of the scheduled job; NULL for housekeeping."),
        Column("planned_at", "TIMESTAMP", "When it should have begun."),
        Column("duration_ms", "DOUBLE", "How long it took."),
        Column("result", "VARCHAR", "ok, failed, skipped or cancelled.", cut=32),
        Column("detail", "VARCHAR", "What it did, or why not.", cut=_LONG),
    ),
)

SEGMENTS = Table(
    name="segments",
    doc="Spool files that have been loaded: what makes loading exactly-once. Kept for two days.",
    time="loaded_at",
    columns=(
        Column("name", "VARCHAR", "Name of the file."),
        Column("batch", "BIGINT", "Number of the transaction that loaded it."),
        Column("loaded_at", "TIMESTAMP", "When."),
        Column("rows", "BIGINT", "Rows loaded from it."),
        Column("malformed", "BIGINT", "Lines of it that were no rows."),
    ),
)

META = Table(
    name="meta",
    doc="Facts about this file: schema_version, store_id, created_at, created_by.",
    time="",
    columns=(Column("key", "VARCHAR", "What."), Column("value", "VARCHAR", "Its value.")),
)

#: Tables that rows are loaded into, by the first word of their spool segments.
SPOOLED: dict[str, Table] = {
    table.name: table for table in (REQUESTS, MODEL_EVENTS, SERVER_EVENTS, SYSTEM_METRICS, METRIC_SAMPLES, JOB_RUNS)
}
TABLES: tuple[Table, ...] = (
    REQUESTS, ATTEMPTS, MODEL_EVENTS, SERVER_EVENTS, SYSTEM_METRICS, METRIC_SAMPLES, JOB_RUNS, SEGMENTS, META,
)  # fmt: skip

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


def columns_from_spool(table: Table) -> tuple[Column, ...]:
    """The columns that lines of the table's segments carry."""
    return tuple(column for column in table.columns if column.key)


def child_of(table: Table) -> Table | None:
    return next((child for child in TABLES if child.parent == table.name), None)


def load_statements(table: Table) -> tuple[str, ...]:
    """SQL that loads segment files, given as the one parameter (a list of paths); the first says how many rows.

    The files must hold whole JSON objects only (`ingest.py` sees to it): DuckDB's reader, told to ignore errors, can
    swallow the line after an unfinished one. `ignore_errors` is for values out of a column's range; they become NULL.
    """
    columns = columns_from_spool(table)
    needed = " AND ".join(column.present for column in columns if column.name in table.required)
    statements = [
        f"INSERT INTO {table.name} ({_names(columns)}) SELECT {', '.join(c.expression for c in columns)} "
        f"FROM {_reader(columns)} WHERE {needed}"
    ]
    child = child_of(table)
    if child is not None:
        own = tuple(column for column in child.columns if column.name not in ("request_id", "started_at", "n"))
        struct = f"STRUCT({', '.join(f'{column.name} {column.type}' for column in own)})[]"
        keys = tuple(column for column in columns if column.name in ("request_id", "started_at"))
        statements.append(
            f"INSERT INTO {child.name} ({_names(child.columns)}) "
            f"SELECT request_id, started_at, n, {', '.join(f'item.{column.name}' for column in own)} FROM ("
            f"SELECT {', '.join(f'{column.expression} AS {column.name}' for column in keys)}, "
            f"unnest({child.nested}) AS item, generate_subscripts({child.nested}, 1) AS n "
            f"FROM {_reader((*keys, Column(child.nested or '', struct, '')))} WHERE {needed})"
        )
    return tuple(statements)


def _names(columns: tuple[Column, ...]) -> str:
    return ", ".join(f'"{column.name}"' for column in columns)


def _reader(columns: tuple[Column, ...]) -> str:
    typed = ", ".join(f"'{column.key}': '{column.json_type}'" for column in columns)
    return f"read_json(?, format='newline_delimited', ignore_errors=true, columns={{{typed}}})"
