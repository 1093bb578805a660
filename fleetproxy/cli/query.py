"""`fleetproxy query`"""

from __future__ import annotations

import json
import sys

from fleetproxy.cli import FAILED, NOT_FOUND, OK, TIMEOUT, UNAUTHORIZED, UNREACHABLE, USAGE
from fleetproxy.cli.options import complain, parser
from fleetproxy.control.analytics.answers import Answer, as_csv, as_table
from fleetproxy.control.analytics.asking import AskError, ask
from fleetproxy.folders import FolderError
from fleetproxy.settings.load import load
from fleetproxy.settings.problems import ConfigError

_EXAMPLES = """\
  fleetproxy query "select model, count(*) n from requests group by all order by n desc"
  fleetproxy query "select * from v_slowest" --json
  fleetproxy query "describe requests"
  echo "from v_hourly_model limit 20" | fleetproxy query -"""

_SAYS = """\
Ask the request history in SQL (DuckDB's): one SELECT or EXPLAIN, read only. A running
fleetproxy is asked, its newest rows included; without one the file is read. Times are UTC.
Tables: requests, attempts, model_events, server_events, system_metrics, metric_samples,
job_runs; views: v_hourly_model, v_hourly_backend, v_slowest, v_key_cost, v_errors,
v_routing, v_model_residency."""

_EXITS = {
    "query": FAILED, "busy": FAILED, "missing": NOT_FOUND, "unreachable": UNREACHABLE, "refused": UNAUTHORIZED,
    "timeout": TIMEOUT,
}  # fmt: skip


def run(words: list[str]) -> int:
    options = parser("query", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("sql", help="the statement; - reads it from standard input")
    shape = options.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print a JSON array of objects")
    shape.add_argument("--csv", action="store_true", help="print comma-separated values")
    options.add_argument("--config", metavar="FILE", help="configuration that names the data folder")
    options.add_argument("--data-dir", metavar="FOLDER", help="data folder of the one to ask")
    asked = options.parse_args(words)
    sql = sys.stdin.read() if asked.sql == "-" else asked.sql
    if not sql.strip():
        sys.stderr.write('fleetproxy query: no statement; try `fleetproxy query "from v_slowest"`\n')
        return USAGE
    try:
        settings = load({"data_dir": asked.data_dir} if asked.data_dir else {}, config=asked.config).settings
        answer, remark = ask(settings, sql)
    except (ConfigError, FolderError) as error:
        return complain(error)
    except AskError as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return _EXITS[error.kind]
    _print(answer, asked.json, asked.csv)
    if answer.truncated:
        sys.stderr.write(f"note: only the first {len(answer.rows)} rows are shown; narrow the query or add LIMIT\n")
    if remark:
        sys.stderr.write(f"note: {remark}\n")
    return OK


def _print(answer: Answer, as_json: bool, comma: bool) -> None:
    if as_json:
        json.dump(answer.objects(), sys.stdout, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
        sys.stdout.write("\n")
    elif comma:
        sys.stdout.write(as_csv(answer))
    elif sys.stdout.isatty():
        sys.stdout.write(as_table(answer))
    else:
        sys.stdout.write(as_table(answer, cell_characters=10_000))
