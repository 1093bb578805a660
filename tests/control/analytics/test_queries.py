from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetproxy.control.analytics import queries
from fleetproxy.control.analytics.queries import Window
from fleetproxy.core.record import AuditRecord
from tests.control.analytics.analytics_kit import NOON_US, line, load, opened, put, record

HOUR_US = 3_600_000_000
HOSTS = {"gpu1": "10.0.0.1:11434"}


def filled(folder: Path, rows: list[AuditRecord]) -> Any:
    ingest, connection = opened(folder)
    put(folder / "spool", map(line, rows))
    load(ingest, connection)
    return connection


def listed(cursor: Any, hours: int = 24, **options: Any) -> dict[str, Any]:
    return queries.requests(cursor, Window(hours, NOON_US + HOUR_US), HOSTS, **options)


def test_a_request_is_listed_with_the_fleet_managers_fields_first(tmp_path: Path) -> None:
    cursor = filled(tmp_path, [record(1, total_ms=1119.5, user="anna", retries=1, queue_ms=3.0)])
    assert listed(cursor) == {
        "requests": [
            {
                "id": 1,
                "sourceIp": "10.0.0.9",
                "model": "llama3:8b",
                "endpoint": "/api/chat",
                "method": "POST",
                "targetHost": "10.0.0.1:11434",
                "statusCode": 200,
                "durationMs": 1120,
                "createdAt": "2026-11-21T12:00:00.001Z",
                "requestId": record(1).request_id,
                "user": "anna",
                "serverName": "gpu1",
                "serverId": 1,
                "routingReason": "model_loaded",
                "outcome": "ok",
                "error": None,
                "retries": 1,
                "streamed": True,
                "queueMs": 3.0,
                "ttftMs": 120.0,
                "overheadMs": 0.5,
                "bytesIn": 300,
                "bytesOut": 9000,
                "tokensIn": 20,
                "tokensOut": 50,
                "family": "llm",
                "dialect": "ollama",
                "route": "/api/chat",
                "modelServed": "llama3:8b",
            }
        ],
        "summary": [
            {
                "sourceIp": "10.0.0.9",
                "model": "llama3:8b",
                "targetHost": "10.0.0.1:11434",
                "count": 1,
                "avgDuration": 1120,
            }
        ],
    }
    cursor.close()


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    cursor = filled(tmp_path, [record(1, model=None, backend=None, status=None, ttft_ms=None, server_id=None)])
    found = listed(cursor)
    row = found["requests"][0]
    assert [row[name] for name in ("model", "targetHost", "statusCode", "ttftMs", "serverId")] == [None] * 5
    assert (found["summary"][0]["model"], found["summary"][0]["targetHost"]) == (None, None)
    cursor.close()


def test_a_server_that_left_the_fleet_is_shown_by_name(tmp_path: Path) -> None:
    cursor = filled(tmp_path, [record(1, backend="gone")])
    assert listed(cursor)["requests"][0]["targetHost"] == "gone"
    cursor.close()


def test_the_list_is_newest_first_500_at_most_and_the_summary_counts_all(tmp_path: Path) -> None:
    cursor = filled(tmp_path, [record(n, source=f"s{n % 150}") for n in range(700)])
    found = listed(cursor)
    assert [row["id"] for row in found["requests"]] == list(range(700, 200, -1))
    assert len(found["summary"]) == 100
    counts = [row["count"] for row in found["summary"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 5
    cursor.close()


def test_the_window_ends_now_and_begins_hours_ago(tmp_path: Path) -> None:
    ages = {"old": -3 * HOUR_US, "young": -HOUR_US, "future": 2 * HOUR_US}
    rows = [record(n, source=name, started_at_us=NOON_US + age) for n, (name, age) in enumerate(ages.items())]
    cursor = filled(tmp_path, rows)
    assert [row["sourceIp"] for row in listed(cursor, 3)["requests"]] == ["young"]
    assert [row["sourceIp"] for row in listed(cursor, 5)["requests"]] == ["young", "old"]
    cursor.close()


def test_pages_cover_every_row_once(tmp_path: Path) -> None:
    # Many rows of one instant, and arrival in another order than time.
    rows = [record(n, started_at_us=NOON_US + (n * 7919) % 5) for n in range(100)]
    cursor = filled(tmp_path, rows)
    seen: list[int] = []
    before = None
    while True:
        page = listed(cursor, limit=13, before=before)["requests"]
        if not page:
            break
        seen += [row["id"] for row in page]
        before = page[-1]["id"]
    assert sorted(seen) == list(range(1, 101))
    assert seen == [row["id"] for row in listed(cursor)["requests"]]
    cursor.close()


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"model": "b"}, [3]),
        ({"server": "GPU2"}, [2]),
        ({"source": "ben"}, [1]),
        ({"user": "anna"}, [4]),
        ({"outcome": "refused"}, [2]),
        ({"status": "404"}, [2]),
        ({"status": "4xx"}, [2]),
        ({"status": "2XX"}, [4, 3, 1]),
        ({"status": "2xx", "model": "b"}, [3]),
        ({"request_id": record(2).request_id}, [3]),
        ({"model": "' OR 1=1 --"}, []),
        ({"source": "%"}, []),
    ],
)
def test_filters_narrow_rows_and_summary(tmp_path: Path, filters: dict[str, str], ids: list[int]) -> None:
    rows = [
        record(0, source="ben"),
        record(1, backend="gpu2", status=404, outcome="refused"),
        record(2, model="b"),
        record(3, user="anna"),
    ]
    cursor = filled(tmp_path, rows)
    found = listed(cursor, filters=filters)
    assert [row["id"] for row in found["requests"]] == ids
    assert sum(row["count"] for row in found["summary"]) == len(ids)
    cursor.close()


# --- analytics ---------------------------------------------------------------------------------------------------


def analysed(cursor: Any, hours: int = 24, fill: bool = False) -> dict[str, Any]:
    return queries.analytics(cursor, Window(hours, NOON_US + HOUR_US), fill=fill)


def test_nothing_is_shown_as_nothing(tmp_path: Path) -> None:
    cursor = filled(tmp_path, [])
    found = analysed(cursor)
    assert found.pop("routingReasons") is None
    assert found.pop("percentileError") == 0
    summary = found.pop("summary")
    fleet_manager = (
        "totalRequests", "successCount", "errorCount", "successRate", "medianLatencyMs", "p95LatencyMs", "uniqueModels",
        "uniqueSources",
    )  # fmt: skip
    assert [summary[name] for name in fleet_manager] == [0] * 8
    assert all(value == [] for value in found.values())
    cursor.close()


def test_the_fleet_managers_analytics(tmp_path: Path) -> None:
    durations = [100.0, 200.0, 300.0, 400.0]
    rows = [
        record(n, total_ms=durations[n % 4], source=f"s{n % 2}", backend="gpu1" if n % 4 else None,
               server_id=1 if n % 4 else None, status=404 if n == 7 else 200,
               route_reason="model_loaded" if n < 6 else None)
        for n in range(8)
    ]  # fmt: skip
    cursor = filled(tmp_path, rows)
    found = analysed(cursor)
    summary = found["summary"]
    assert (summary["totalRequests"], summary["successCount"], summary["errorCount"]) == (8, 7, 1)
    assert summary["successRate"] == 87.5
    assert (summary["medianLatencyMs"], summary["p95LatencyMs"]) == (250, 400)
    assert (summary["uniqueModels"], summary["uniqueSources"]) == (1, 2)
    assert found["requestsOverTime"] == [
        {"bucket": "2026-11-21 12:00:00", "at": "2026-11-21T12:00:00.000Z", "count": 8, "errorCount": 1,
         "tokensIn": 160, "tokensOut": 400, "retries": 0, "residentPercentage": 100.0, "loadsAvoided": 6,
         "loadsForced": 0}
    ]  # fmt: skip
    assert found["latencyOverTime"] == [
        {"bucket": "2026-11-21 12:00:00", "at": "2026-11-21T12:00:00.000Z", "medianMs": 250, "p95Ms": 400,
         "ttftMedianMs": 120, "ttftP95Ms": 120, "itlMedianMs": 20.0, "itlP95Ms": 20.0, "queueP95Ms": None}
    ]  # fmt: skip
    assert [(row["model"], row["count"], row["percentage"]) for row in found["modelDistribution"]] == [
        ("llama3:8b", 8, 100.0)
    ]
    assert [(row["source"], row["count"]) for row in found["sourceDistribution"]] == [("s0", 4), ("s1", 4)]
    servers = [
        (row["serverName"], row["serverId"], row["count"], row["percentage"]) for row in found["serverDistribution"]
    ]
    assert servers == [("gpu1", 1, 6, 75.0)]
    assert found["errorBreakdown"] == [{"statusCode": 404, "count": 1}]
    # Of the rows that have a reason.
    assert found["routingReasons"] == [{"reason": "model_loaded", "count": 6, "percentage": 100.0}]
    cursor.close()


def test_tokens_waiting_retries_and_routing_quality(tmp_path: Path) -> None:
    rows = [
        record(0, user="anna", queue_ms=50.0, retries=2, route_reason="model_available"),
        record(1, user="anna", model="qwen3:4b", backend="gpu2", tokens_out=None, eval_ms=None),
        record(2, eval_ms=None, ttft_ms=120.0, total_ms=1120.0, route_reason=None),
    ]
    cursor = filled(tmp_path, rows)
    found = analysed(cursor)
    summary = found["summary"]
    assert (summary["tokensIn"], summary["tokensOut"]) == (60, 100)
    assert (summary["queuedCount"], summary["queueP95Ms"], summary["queueTotalMs"]) == (1, 50.0, 50.0)
    assert (summary["retriedCount"], summary["retries"]) == (1, 2)
    assert summary["tokensPerSecond"] == 50.0
    assert summary["residentPercentage"] == 50.0
    assert (summary["loadsAvoided"], summary["loadsForced"]) == (1, 1)
    # 1000 ms for 50 tokens, as the backend says; 1000 ms of the stream for the 49 after the first.
    assert (summary["itlMedianMs"], summary["itlP99Ms"]) == (
        pytest.approx(20.204, abs=0.001),
        pytest.approx(20.404, abs=0.001),
    )
    assert (summary["ttftMedianMs"], summary["uniqueUsers"]) == (120.0, 1)
    by_model = {row["model"]: row for row in found["modelDistribution"]}
    assert by_model["llama3:8b"]["tokensOut"] == 100
    assert by_model["qwen3:4b"]["residentPercentage"] == 100.0
    assert by_model["llama3:8b"]["residentPercentage"] == 0.0
    assert (by_model["llama3:8b"]["loadsForced"], by_model["qwen3:4b"]["loadsForced"]) == (1, 0)
    assert by_model["qwen3:4b"]["itlP95Ms"] is None
    (hour,), (times,) = found["requestsOverTime"], found["latencyOverTime"]
    assert (hour["retries"], hour["loadsAvoided"], hour["loadsForced"]) == (2, 1, 1)
    assert times["itlMedianMs"] == summary["itlMedianMs"]
    assert [(row["user"], row["count"]) for row in found["userDistribution"]] == [("anna", 2)]
    assert {row["serverName"]: row["retries"] for row in found["serverDistribution"]} == {"gpu1": 2, "gpu2": 0}
    cursor.close()


def test_a_broken_answer_is_an_error_and_a_caller_who_left_is_none(tmp_path: Path) -> None:
    rows = [
        record(0),
        record(1, outcome="truncated"),
        record(2, outcome="client_gone", status=499),
        record(3, outcome="client_gone", status=None),
        record(4, outcome="refused", status=429),
        record(5, outcome="aborted"),
    ]
    cursor = filled(tmp_path, rows)
    found = analysed(cursor)
    assert (found["summary"]["errorCount"], found["summary"]["successCount"]) == (3, 3)
    assert found["errorBreakdown"] == [{"statusCode": 429, "count": 1}]
    assert {row["outcome"]: row["count"] for row in found["outcomes"]} == {
        "ok": 1, "truncated": 1, "client_gone": 2, "refused": 1, "aborted": 1,
    }  # fmt: skip
    cursor.close()


@pytest.mark.parametrize(
    ("hours", "unit", "buckets"), [(24, "hour", 25), (168, "hour", 169), (169, "day", 8), (720, "day", 31)]
)
def test_buckets_are_hours_up_to_a_week_and_days_beyond(tmp_path: Path, hours: int, unit: str, buckets: int) -> None:
    cursor = filled(tmp_path, [record(0), record(1, started_at_us=NOON_US - 5 * HOUR_US)])
    assert len(analysed(cursor, hours)["requestsOverTime"]) == (2 if unit == "hour" else 1)
    full = analysed(cursor, hours, fill=True)
    assert len(full["requestsOverTime"]) == len(full["latencyOverTime"]) == buckets
    assert sum(row["count"] for row in full["requestsOverTime"]) == 2
    texts = [row["bucket"] for row in full["requestsOverTime"]]
    assert texts == sorted(set(texts))
    assert all(text.endswith(":00:00" if unit == "hour" else " 00:00:00") for text in texts)
    assert full["latencyOverTime"][0]["ttftMedianMs"] is None
    cursor.close()


def test_only_the_first_twenty_of_each_kind_are_shown(tmp_path: Path) -> None:
    rows = [record(n, model=f"m{n}", source=f"s{n}", backend=f"b{n}", user=f"u{n}") for n in range(30)]
    cursor = filled(tmp_path, rows)
    found = analysed(cursor)
    for name in ("modelDistribution", "sourceDistribution", "serverDistribution", "userDistribution"):
        assert len(found[name]) == 20
        assert all(row["percentage"] == 3.3 for row in found[name])
    cursor.close()


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([200, 404, 500, None]), st.floats(0, 1e5)),
        max_size=25,
    )
)
def test_the_parts_add_up(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str | None, int | None, float]]
) -> None:
    rows = [record(n, model=model, status=status, total_ms=ms) for n, (model, status, ms) in enumerate(asked)]
    cursor = filled(tmp_path_factory.mktemp("store"), rows)
    found = analysed(cursor)
    total = found["summary"]["totalRequests"]
    assert total == len(asked)
    assert found["summary"]["successCount"] + found["summary"]["errorCount"] == total
    assert sum(row["count"] for row in found["requestsOverTime"]) == total
    assert sum(row["errorCount"] for row in found["requestsOverTime"]) == found["summary"]["errorCount"]
    assert sum(row["count"] for row in found["errorBreakdown"]) == found["summary"]["errorCount"]
    assert sum(row["count"] for row in found["modelDistribution"]) == sum(model is not None for model, _, _ in asked)
    if asked:
        assert min(ms for *_, ms in asked) - 1 <= found["summary"]["medianLatencyMs"] <= max(ms for *_, ms in asked) + 1
    cursor.close()
