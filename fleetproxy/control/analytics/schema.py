"""The tables of the store: columns, types, meaning. DDL, loading SQL, comments in the file and docs come from here.

Rules users may lean on: times are TIMESTAMP in UTC; units are in the names (`_ms`, `_bytes`, `_percent`); columns are
added, never renamed or given another meaning, inside a major version. NULL means "not known" or "does not apply".
"""

# ruff: noqa: S608  (SQL here is made of our own tables' names)

from __future__ import annotations

from fleetproxy.control.analytics.measures import COUNTS, HISTOGRAMS
from fleetproxy.control.analytics.shape import Column, Table, View
from fleetproxy.control.analytics.views import VIEWS

__all__ = [
    "ATTEMPTS",
    "META",
    "MIGRATIONS",
    "REQUESTS",
    "REQUESTS_HOURLY",
    "SCHEMA_VERSION",
    "SEGMENTS",
    "SPOOLED",
    "TABLES",
    "VIEWS",
    "Column",
    "Table",
    "View",
    "child_of",
    "columns_from_spool",
    "load_statements",
]

#: Raised by every change below: `database.py` adds missing tables and columns, and runs MIGRATIONS for the rest.
SCHEMA_VERSION = 3

#: Statements that `CREATE`/`ADD COLUMN` cannot express: version reached -> statements, each version one transaction.
MIGRATIONS: dict[int, tuple[str, ...]] = {}


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
    doc="A server went away, came back, runs a new version, or its machine was started anew.",
    time="occurred_at",
    required=("occurred_at", "server_id"),
    sequence="server_events_id",
    columns=(
        _id("server_events"),
        Column("occurred_at", "TIMESTAMP", "When it was noticed; of a reboot: when the machine booted."),
        Column("server_id", "BIGINT", "Number of the server; 0: fleetproxy itself."),
        Column("server", "VARCHAR", "Name of the server.", cut=_TEXT),
        Column("event", "VARCHAR", "offline, online, reboot or deploy (another version than before).", cut=32),
        Column("detail", "VARCHAR", "What is known of the cause; of a deploy, both versions.", cut=_LONG),
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

REQUESTS_HOURLY = Table(
    name="requests_hourly",
    doc=(
        "`requests` by hour, once for each dimension: what long times are told from, and what stays when the rows have "
        "gone. Times are counted by size: bucket k holds those from 0.01 * 2^((k-1)/8) to 0.01 * 2^(k/8) ms, so that a "
        "percentile is known to 9 %. Hours in `rollup_pending` are not in here yet, or not whole."
    ),
    time="hour",
    columns=(
        Column("hour", "TIMESTAMP", "Start of the hour."),
        Column("dimension", "VARCHAR", "What its rows are told apart by: all, model, server, source, user, ..."),
        Column("value", "VARCHAR", "The model, server, ...; NULL: the requests that had none."),
        Column(
            "folded", "BIGINT", "Names added up in this row, each too rare in its hour for a row of its own; else 0."
        ),
        Column("server_id", "BIGINT", "Number of the server, where the dimension is server."),
        *(Column(name, count.type, count.doc) for name, count in COUNTS.items()),
        *(Column(name, "MAP(UTINYINT, UBIGINT)", histogram.doc) for name, histogram in HISTOGRAMS.items()),
    ),
)

ROLLUP_PENDING = Table(
    name="rollup_pending",
    doc="Hours with rows that `requests_hourly` does not know of yet.",
    time="",
    columns=(
        Column("hour", "TIMESTAMP", "Start of the hour."),
        Column("marked_at", "TIMESTAMP", "When the rows were loaded."),
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
    doc="Facts about this file: schema_version, store_id, created_at_us, created_by, rollup_version, raw_since_us.",
    time="",
    columns=(Column("key", "VARCHAR", "What."), Column("value", "VARCHAR", "Its value.")),
)

#: Tables that rows are loaded into, by the first word of their spool segments.
SPOOLED: dict[str, Table] = {
    table.name: table for table in (REQUESTS, MODEL_EVENTS, SERVER_EVENTS, SYSTEM_METRICS, METRIC_SAMPLES, JOB_RUNS)
}
TABLES: tuple[Table, ...] = (
    REQUESTS, ATTEMPTS, MODEL_EVENTS, SERVER_EVENTS, SYSTEM_METRICS, METRIC_SAMPLES, JOB_RUNS, REQUESTS_HOURLY,
    ROLLUP_PENDING, SEGMENTS, META,
)  # fmt: skip


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
