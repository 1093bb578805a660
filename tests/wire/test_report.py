from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.usage import NOTHING, Usage
from fleetproxy.wire import report

NUMBERS = st.none() | st.integers(-5, 2**60) | st.floats(allow_nan=False, allow_infinity=False)
USAGES = st.builds(Usage, *[st.none() | st.integers(0, 9)] * 2, *[st.none() | st.floats(0, 9)] * 3)


@given(st.dictionaries(st.sampled_from(report.Report.__struct_fields__), NUMBERS | st.text(max_size=3) | st.booleans()))
def test_whatever_is_said_usage_is_a_count_or_nothing(fields: dict[str, Any]) -> None:
    said = report.read(json.dumps(fields).encode())
    if said is not None:
        found = report.usage(said)
        for count in (found.tokens_in, found.tokens_out):
            assert count is None or (isinstance(count, int) and 0 <= count <= 2**53)
        for measure in (found.load_ms, found.prompt_eval_ms, found.eval_ms):
            assert measure is None or (isinstance(measure, float) and 0 <= measure <= 2**53)


@given(st.binary(max_size=80))
def test_damage_is_no_report(text: bytes) -> None:
    for torn in (text, b'"usage":{' + text + b"}", b'{"error":' + text + b"}", b'data: {"usage":' + text):
        report.last_usage(torn)
        report.last_reported(torn)
        report.first_reported(torn)
        said = report.read(torn)
        if said is not None:
            error = report.error_text(said)
            assert error is None or len(error) <= report.MAX_TEXT_CHARACTERS


@given(USAGES, USAGES, USAGES)
def test_newer_reports_cover_older_ones(a: Usage, b: Usage, c: Usage) -> None:
    assert report.over(a, NOTHING) == report.over(NOTHING, a) == report.over(a, a) == a
    assert report.over(report.over(a, b), c) == report.over(a, report.over(b, c))


def test_the_report_nearest_to_the_end_counts() -> None:
    def chunk(usage: object) -> bytes:
        return b"data: " + json.dumps({"usage": usage}).encode() + b"\n\n"

    first, last = chunk({"prompt_tokens": 1}), chunk({"prompt_tokens": 2})
    assert report.last_reported(first + last + chunk(None) * 15) == Usage(2)
    assert report.last_reported(first + last + b'data: {"usage": torn') == Usage(2)
    assert report.last_reported(last + chunk(None) * 16) == NOTHING
    assert report.first_reported(first + last) == Usage(1)
    assert report.first_reported(chunk("none") + last) == NOTHING
    assert report.first_reported(b"data: {}\n\n") == NOTHING


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (b'{"error":"\xff"}', "error"),
        (b'{"error":{"message":"' + b"m" * 600 + b'"}}', "m" * 512),
        (b'{"error":{"message":5}}', "error"),
        (b'{"error":[]}', "error"),
        (b'{"error":null}', None),
        (b'{"type":"error"}', "error"),
        (b'{"type":"error","message":"late"}', "late"),
        (b'{"type":"other","message":"late"}', None),
    ],
)
def test_errors_are_texts(error: bytes, text: str | None) -> None:
    said = report.read(error)
    assert said is not None
    assert report.error_text(said) == text


@pytest.mark.parametrize(
    ("torn", "usage"),
    [
        (b'..."usage": {"prompt_tokens": 1, "x": {"y": 2}, "completion_tokens": 3}, "z": 1}', Usage(1, 3)),
        (b'"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}', Usage(2)),
        (b'"usage":{"prompt_tokens":{}},"eval_count":7', Usage(None, 7)),
        (b'"usage":{"a":{"b":{"c":1}}}', NOTHING),
        (b'"usage":{"prompt_tokens":1},"timings":{"predicted_ms":2}', Usage(1, None, None, None, 2.0)),
        (b'"load_duration":5000000,"eval_count": 2', Usage(None, 2, 5.0)),
        (b"nothing", NOTHING),
    ],
)
def test_torn_bodies_are_read_where_they_can_be(torn: bytes, usage: Usage) -> None:
    assert report.last_usage(torn) == usage
