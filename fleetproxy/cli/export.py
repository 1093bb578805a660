"""`fleetproxy export`"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from fleetproxy.cli import FAILED, NOT_FOUND, OK, TIMEOUT, UNAUTHORIZED, UNREACHABLE, USAGE
from fleetproxy.cli.options import complain, parser
from fleetproxy.control.analytics.asking import AskError
from fleetproxy.control.analytics.fetching import Wanted, fetch
from fleetproxy.core.moments import moment
from fleetproxy.folders import FolderError
from fleetproxy.settings.load import load
from fleetproxy.settings.problems import ConfigError

_EXAMPLES = """\
  fleetproxy export -o requests.parquet
  fleetproxy export --format csv --since 30d --table requests_hourly -o hours.csv
  fleetproxy export --format ndjson --since 2026-11-01 --until 2026-11-08 -o - | jq .model
  duckdb -c "select model, count(*) from 'requests.parquet' group by all\""""

_SAYS = """\
Write rows of the request history to a file, in the order of time. A running fleetproxy is asked,
its newest rows included; without one its file is read. Times are UTC. The file appears when it is
whole. For files that are made regularly see scheduled jobs with the action `export`."""

_FORMATS = ("parquet", "csv", "ndjson")
_TABLES = (
    "requests", "attempts", "model_events", "server_events", "system_metrics", "metric_samples", "job_runs",
    "requests_hourly",
)  # fmt: skip
_EXITS = {
    "query": USAGE, "busy": FAILED, "missing": NOT_FOUND, "unreachable": UNREACHABLE, "refused": UNAUTHORIZED,
    "timeout": TIMEOUT,
}  # fmt: skip


def run(words: list[str]) -> int:
    options = parser("export", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write; - is standard output")
    options.add_argument("--table", choices=_TABLES, default="requests", metavar="TABLE", help=", ".join(_TABLES))
    options.add_argument("--format", choices=_FORMATS, help="parquet, csv or ndjson (what the file's name ends with)")
    options.add_argument("--since", default="7d", metavar="WHEN", help="7d, 12h, 2026-11-01, ... (7d)")
    options.add_argument("--until", metavar="WHEN", help="the same (now)")
    options.add_argument("--config", metavar="FILE", help="configuration that names the data folder")
    options.add_argument("--data-dir", metavar="FOLDER", help="data folder of the one to ask")
    asked = options.parse_args(words)
    form = asked.format or _by_name(asked.output)
    now = datetime.now(UTC)
    times = {}
    for name in ("since", "until"):
        try:
            times[name] = moment(getattr(asked, name), now) if getattr(asked, name) else None
        except ValueError as error:
            sys.stderr.write(f"fleetproxy export: --{name} {error}\n")
            return USAGE
    since, until = times["since"], times["until"]
    assert since is not None
    if until is not None and since >= until:
        sys.stderr.write("fleetproxy export: --since must be before --until\n")
        return USAGE
    if asked.output == "-" and form == "parquet" and sys.stdout.isatty():
        sys.stderr.write("fleetproxy export: Parquet is nothing for a terminal; name a file with -o, or --format csv\n")
        return USAGE
    try:
        settings = load({"data_dir": asked.data_dir} if asked.data_dir else {}, config=asked.config).settings
        target = None if asked.output == "-" else Path(asked.output)
        wanted = Wanted(table=asked.table, since=since, until=until, form=form)
        rows, remark = fetch(settings, wanted, target, sys.stdout.buffer)
    except (ConfigError, FolderError) as error:
        return complain(error)
    except AskError as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return _EXITS[error.kind]
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(f"fleetproxy: cannot write {asked.output}: {error.strerror or error}\n")
        return FAILED
    sys.stderr.write(f"{rows} rows of {asked.table}\n")
    if remark:
        sys.stderr.write(f"note: {remark}\n")
    return OK


def _by_name(name: str) -> str:
    suffix = Path(name).suffix.lower().removeprefix(".")
    return {"csv": "csv", "ndjson": "ndjson", "jsonl": "ndjson", "json": "ndjson"}.get(suffix, "parquet")
