from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.moments import EPOCH, microseconds, moment

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
years = st.datetimes(datetime(1970, 1, 2), datetime(8999, 1, 1))  # noqa: DTZ001  (zones are added)


@given(years, st.integers(-14 * 60, 14 * 60))
def test_an_instant_with_a_zone_is_read_back(at: datetime, minutes: int) -> None:
    there = at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert moment(there.isoformat(), NOW) == there
    # The plus sign was not encoded in an address.
    assert moment(there.isoformat().replace("+", " "), NOW) == there


@given(years)
def test_without_a_zone_it_is_utc(at: datetime) -> None:
    assert moment(at.isoformat(), NOW) == moment(at.isoformat(" "), NOW) == at.replace(tzinfo=UTC)
    assert moment(at.date().isoformat(), NOW) == datetime(at.year, at.month, at.day, tzinfo=UTC)


@given(st.integers(0, 10**10))
def test_seconds_since_the_epoch_are_read(seconds: int) -> None:
    assert moment(str(seconds), NOW) == EPOCH + timedelta(seconds=seconds)
    assert microseconds(moment(f"{seconds}.25", NOW)) == seconds * 1_000_000 + 250_000


@pytest.mark.parametrize(
    ("text", "ago"),
    [("90s", timedelta(seconds=90)), ("5m", timedelta(minutes=5)), ("24h", timedelta(days=1)), (" 7d ", timedelta(7))],
)
def test_how_long_ago_is_read(text: str, ago: timedelta) -> None:
    assert moment(text, NOW) == NOW - ago


@pytest.mark.parametrize(
    "text",
    [
        "", "yesterday", "-5d", "7 d", "1.5d", "d", "999999999w", "1e5", "99999999999999", "9999-12-31", "٣d",
        "0001-01-01T00:00:00+14:00", "2026-13-01", "nan", "inf", "2026-11-21T25:00:00", "x" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wants an instant"):
        moment(text, NOW)


@given(st.text(max_size=30))
def test_no_text_does_anything_else(text: str) -> None:
    try:
        found = moment(text, NOW)
    except ValueError:
        return
    assert found.tzinfo is UTC
