"""The catalogue's cases of the stores (D-*), and those of leaks and of the calendar that belong to them (X-*, I-*).

Most are tested where they are decided; the table says where. Here are those that need a whole service.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fleetproxy.testing.raw import request
from fleetproxy.testing.script import Keep, Send, response
from fleetproxy.testing.service import ADMIN_KEY
from fleetproxy.testing.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

_STORE, _FILE, _INGEST, _SANDBOX, _ROLLUPS = (
    f"tests/control/analytics/test_{name}.py"
    for name in ("analytics_store", "database", "ingest", "sandbox", "rollups")
)
_RECORDS, _STATE = "tests/control/api/test_records_api.py", "tests/control/state/test_store.py"

#: Case -> its tests: a function of this file, or `path::function`.
CASES: dict[str, tuple[str, ...]] = {
    "D-1": (
        f"{_INGEST}::test_exactly_once_when_killed_at",
        f"{_INGEST}::test_exactly_once_when_killed_at_any_instant",
        "tests/e2e/test_control_killed.py::test_no_row_no_user_and_no_half_of_a_change_is_lost",
    ),
    "D-2": (
        "test_d02_requests_go_on_while_control_stands_still",
        f"{_STORE}::test_a_spool_that_cannot_be_loaded_keeps_to_its_cap",
        "tests/link/test_spool.py::test_a_control_that_never_comes_costs_the_oldest_lines_and_they_are_counted",
    ),
    "D-3": (
        "tests/e2e/test_audit_exactly_once.py::test_a_thousand_requests_and_two_kills",
        f"{_INGEST}::test_a_killed_writer_loses_no_finished_line",
    ),
    "D-5": (
        f"{_STORE}::test_a_full_disk_costs_no_row_and_loading_resumes_by_itself",
        "tests/link/test_spool.py::test_a_full_disk_drops_the_line_whole_and_counts_it",
    ),
    "D-7": (
        f"{_FILE}::test_a_damaged_file_is_set_aside_and_recording_goes_on",
        f"{_FILE}::test_a_newer_schema_is_refused_and_left_as_it_is",
        f"{_FILE}::test_a_folder_in_its_place_is_refused",
        f"{_STATE}::test_a_damaged_state_is_set_aside_and_the_last_copy_used",
    ),
    "D-9": (
        f"{_FILE}::test_a_migration_killed_before_any_of_its_statements_is_finished_by_the_next_start",
        f"{_FILE}::test_a_migration_run_twice_is_run_once",
        f"{_FILE}::test_the_log_replays_after_a_kill",
        f"{_ROLLUPS}::test_a_file_of_before_the_rollups_gets_them",
        "tests/control/state/test_saved_queries.py::test_a_state_of_before_them_is_migrated_with_a_copy",
    ),
    "D-11": (
        "test_d11_heavy_questions_are_ended_or_refused_and_rows_come_in_meanwhile",
        f"{_STORE}::test_only_so_many_questions_at_once",
        f"{_STORE}::test_two_queries_of_people_at_once_and_the_dashboard_goes_on",
        "tests/bench/test_analytics_bench.py::test_the_dashboards_questions_stay_quick_and_rows_are_loaded_meanwhile",
    ),
    "D-12": (
        f"{_SANDBOX}::test_is_refused_and_changes_nothing",
        f"{_SANDBOX}::test_the_closed_instance_alone_reaches_no_file_either",
        "tests/control/analytics/test_queries.py::test_filters_narrow_rows_and_summary",
        "tests/control/analytics/test_series.py::test_filters_narrow",
        "tests/control/test_upkeep.py::test_files_are_written_nowhere_else",
    ),
    "D-15": (
        f"{_RECORDS}::test_without_its_file_the_store_says_so_and_the_rest_goes_on",
        "tests/e2e/test_control_killed.py::test_no_row_no_user_and_no_half_of_a_change_is_lost",
    ),
    "X-1": ("tests/e2e/test_pages.py::test_the_state_page_shows_everything_as_text",),
    "X-3": ("test_x03_a_servers_page_is_never_run_as_ours",),
    "X-4": ("tests/test_log.py::test_any_record_is_one_line_of_bounded_length_without_control_characters",),
    "X-7": ("test_x07_refusals_tell_strangers_nothing_of_the_inside",),
    "X-9": ("tests/control/metrics/test_exporter.py::test_no_name_breaks_the_exposition",),
    "X-15": ("tests/e2e/test_dashboard.py::test_no_secret_is_in_the_log_at_any_level",),
    "I-1": (
        "tests/core/test_cron.py::test_any_text_is_read_or_refused_with_words",
        "tests/core/test_cron.py::test_the_rarest_expression_is_found_in_bounded_work",
    ),
    "I-2": (
        "tests/core/test_jobs.py::test_ten_thousand_jobs_for_a_week_cost_little",
        "tests/control/api/test_jobs_api.py::test_durations_are_read_leniently",
    ),
    "I-4": ("tests/control/test_calendar.py::test_two_calendars_run_each_time_once",),
    "I-7": (
        "tests/control/test_notifier.py::test_what_telegram_says_is_heeded",
        "tests/control/test_notifier.py::test_hearing_never_waits_and_is_bounded",
        "tests/control/test_notifier.py::test_a_lane_that_hangs_holds_up_no_other",
        "tests/control/test_notifier.py::test_lanes_are_bounded",
    ),
}
#: The catalogue's cases of the first order; X and I are shared with `test_faults_access`.
FIRST_ORDER = {
    *(f"D-{number}" for number in (1, 2, 3, 5, 7, 9, 11, 12, 15)),
    *(f"X-{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 15, 18)),
    *(f"I-{number}" for number in (1, 2, 4, 5, 7)),
}
ENDLESS = "select count(*) from range(1000000000000)"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    stage = await Stage.open(
        tmp_path_factory.mktemp("stores"),
        processes=2,
        analytics={"query_timeout_s": 1.0},
        auth={"admin_key": ADMIN_KEY},
    )
    yield stage
    await stage.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(opened: Stage) -> AsyncIterator[Stage]:
    await opened.reset()
    yield opened
    await opened.settle()


async def test_every_case_of_the_first_order_has_its_test() -> None:
    from tests.e2e import test_faults_access

    assert CASES.keys() | test_faults_access.CASES.keys() >= FIRST_ORDER
    root = Path(__file__).parents[2]
    for case, names in CASES.items():
        for name in names:
            path, _, elsewhere = name.partition("::")
            found = f"def {elsewhere}(" in (root / path).read_text() if elsewhere else name in globals()
            assert found, f"{case}: {name}"


async def test_d02_requests_go_on_while_control_stands_still(stage: Stage) -> None:
    """Requests are answered as ever, and their rows are there once it goes on."""
    control = stage.service.pids()["control"]
    stage.service.allowed.append(re.compile("control|link"))
    os.kill(control, signal.SIGSTOP)
    try:
        answers = await asyncio.gather(*(stage.ask() for _ in range(40)))
    finally:
        os.kill(control, signal.SIGCONT)
    assert [answer.status for answer in answers] == [200] * 40
    assert len(await stage.records()) == 40


async def test_d11_heavy_questions_are_ended_or_refused_and_rows_come_in_meanwhile(stage: Stage) -> None:
    """Twenty heavy ones at once: 504 at their time limit, 429 beyond two; requests and dashboard go on."""

    async def endless() -> int:
        body = json.dumps({"sql": ENDLESS}).encode()
        headers = [("Authorization", f"Bearer {ADMIN_KEY}"), ("Content-Type", "application/json")]
        async with await stage.connect() as client:
            await client.send(request("POST", "/api/query", body, headers))
            return (await client.answer(within_s=20)).status

    async def year() -> int:
        async with await stage.connect() as client:
            headers = [("Authorization", f"Bearer {ADMIN_KEY}")]
            await client.send(request("GET", "/api/analytics?hours=8760", None, headers))
            return (await client.answer(within_s=20)).status

    heavy = [asyncio.create_task(endless()) for _ in range(20)]
    years = [asyncio.create_task(year()) for _ in range(8)]
    answers = [await stage.ask() for _ in range(30)]
    assert {answer.status for answer in answers} == {200}
    told = await asyncio.gather(*heavy)
    assert len(await stage.records()) == 30
    assert set(told) == {504, 429}
    assert told.count(504) >= 2
    assert set(await asyncio.gather(*years)) <= {200, 429, 504}


HTML = b"<html><script>document.title='pwned'</script></html>"
TYPES = ["text/html", "text/html; charset=utf-8", "image/svg+xml", "application/xhtml+xml", "text/javascript", ""]


@pytest.mark.parametrize("kind", TYPES)
async def test_x03_a_servers_page_is_never_run_as_ours(stage: Stage, kind: str) -> None:
    """Whatever type a server says: no sniffing, no scripts, and none of its own rules for our origin."""
    headers = (
        ("Content-Security-Policy", "default-src *"),
        ("X-Content-Type-Options", "maybe"),
        ("Set-Cookie", "fleet_session=stolen"),
        ("Access-Control-Allow-Origin", "*"),
        ("Service-Worker-Allowed", "/"),
        ("Clear-Site-Data", '"*"'),
        *((("Content-Type", kind),) if kind else ()),
    )
    for upstream in stage.upstreams.values():
        upstream.script = (Send(response(body=HTML, headers=headers)), Keep())
    for path in ("/api/chat", "/api/unheard-of"):
        answer = await stage.ask(path)
        assert answer.status == 200
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("content-security-policy") == "sandbox"
        for name in ("set-cookie", "access-control-allow-origin", "service-worker-allowed", "clear-site-data"):
            assert not answer.header(name), name


#: What a stranger need not know: places in the file system, our parts and their versions, addresses of servers, code.
INSIDE = re.compile(
    rb"Traceback|File \"|\.py\b|/tmp/|/home/|/usr/|site-packages|duckdb|sqlite|sqlalchemy|litestar|granian|httptools|"
    rb"SELECT |control\.sock|link\.sock|127\.0\.0\.1:\d+|localhost:\d+|Errno|0x[0-9a-f]{6}|python/?3|object at",
    re.IGNORECASE,
)
PROXIED: dict[str, tuple[str, str, bytes | None]] = {
    "no JSON, Anthropic": ("POST", "/v1/messages", b"{"),
    "no JSON, OpenAI": ("POST", "/v1/chat/completions", b"\xff"),
    "no JSON": ("POST", "/api/chat", b"{"),
    "a list": ("POST", "/v1/embeddings", b"[]"),
    "unknown pin": ("POST", "/api/chat", b'{"model":"m"}'),
    "broken server": ("POST", "/api/generate", b'{"model":"solo"}'),
}
CONTROLS = [
    ("GET", "/api/users"), ("GET", "/api/servers"), ("GET", "/api/query/tables"), ("GET", "/statements"),
    ("POST", "/api/query"), ("POST", "/api/auth/login"), ("PUT", "/api/settings/fleet"), ("DELETE", "/api/users/1"),
    ("GET", "/nothing"), ("GET", "/dashboard/../../etc/passwd"), ("GET", "/api/analytics/series?bucket=x"),
    ("GET", "/api/query/export/requests"), ("TRACE", "/api/users"), ("GET", "/api/scheduled-jobs/%00"),
]  # fmt: skip


@pytest.mark.parametrize("case", PROXIED)
async def test_x07_refusals_of_requests_tell_strangers_nothing_of_the_inside(stage: Stage, case: str) -> None:
    method, path, body = PROXIED[case]
    if case == "broken server":
        for upstream in stage.upstreams.values():
            upstream.script = ()
    headers = (("X-Ollama-Pin-Server", "nowhere"),) if case == "unknown pin" else ()
    answer = await stage.ask(path, body, headers, method=method)
    assert answer.status >= 400, case
    assert not (found := INSIDE.search(answer.body)), (case, found)
    assert answer.header("x-request-id")


async def test_x07_refusals_tell_strangers_nothing_of_the_inside(stage: Stage) -> None:
    for method, path in CONTROLS:
        for body in (None, b"{", b'{"sql":"select x from y"}') if method in ("POST", "PUT") else (None,):
            async with await stage.connect() as client:
                await client.send(request(method, path, body, [("Content-Type", "application/json")]))
                answer = await client.answer(method=method)
            assert 400 <= answer.status < 500 or answer.status == 501, (method, path, answer.status)
            assert not (found := INSIDE.search(answer.body)), (method, path, found)
    await stage.recount()
