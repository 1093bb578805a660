from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fleetproxy.core.cron import BadCron, BadZone, Cron, describe, parse, zone

BERLIN, NEW_YORK, UTC_ZONE = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("UTC")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # its clocks move by half an hour
ZONES = [BERLIN, NEW_YORK, UTC_ZONE, LORD_HOWE]


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high).map(str)
    span = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: "-".join(map(str, sorted(pair))))
    step = st.tuples(st.one_of(st.just("*"), span), st.integers(1, high)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    item = st.one_of(number, span, step)
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


five = st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7)).map(" ".join)
expressions = st.one_of(five, st.tuples(field(0, 59), five).map(" ".join))
moments = st.integers(0, 6 * 365 * 86400).map(lambda s: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=s))


def parsed(text: str, where: ZoneInfo = UTC_ZONE) -> Cron:
    try:
        return parse(text, where)
    except BadCron:
        assume(False)
        raise


def allowed(text: str, low: int, high: int) -> set[int]:
    """What a field means, read a second time, plainly."""
    values: set[int] = set()
    for item in text.split(","):
        span, _, step = item.partition("/")
        if span == "*":
            values |= set(range(low, high + 1, int(step or 1)))
        elif "-" in span:
            first, last = map(int, span.split("-"))
            values |= set(range(first, last + 1, int(step or 1)))
        else:
            values.add(int(span))
    return values


@given(expressions, st.sampled_from(ZONES), moments)
def test_times_rise_and_lie_ahead(text: str, where: ZoneInfo, moment: datetime) -> None:
    times = parsed(text, where).next(moment, 20)
    assert all(one < other for one, other in pairwise([moment, *times]))
    assert all(due.tzinfo is UTC and due.microsecond == 0 for due in times)


@given(expressions, moments)
def test_every_time_fits_every_field(text: str, moment: datetime) -> None:
    cron = parsed(text)
    second, minute, hour, day, month, weekday = cron.fields
    for due in cron.next(moment, 10):
        assert due.second in allowed(second, 0, 59)
        assert due.minute in allowed(minute, 0, 59)
        assert due.hour in allowed(hour, 0, 23)
        assert due.month in allowed(month, 1, 12)
        fits = due.day in allowed(day, 1, 31), due.isoweekday() % 7 in {n % 7 for n in allowed(weekday, 0, 7)}
        assert all(fits) if day.startswith("*") or weekday.startswith("*") else any(fits)


@given(five, moments)
def test_no_time_that_fits_is_left_out(text: str, moment: datetime) -> None:
    cron = parsed(text)
    found = set(cron.next(moment, 400))
    horizon = max(found, default=moment)
    _, minute, hour, day, month, weekday = cron.fields
    probe = moment.replace(second=0, microsecond=0)
    for _ in range(3000):
        probe += timedelta(minutes=1)
        if probe > horizon:
            break
        day_fits = probe.day in allowed(day, 1, 31)
        week_fits = probe.isoweekday() % 7 in {n % 7 for n in allowed(weekday, 0, 7)}
        either = not (day.startswith("*") or weekday.startswith("*"))
        fits = (
            probe.minute in allowed(minute, 0, 59)
            and probe.hour in allowed(hour, 0, 23)
            and probe.month in allowed(month, 1, 12)
            and ((day_fits or week_fits) if either else (day_fits and week_fits))
        )
        assert (probe in found) == fits


@given(expressions, st.sampled_from(ZONES), moments, st.integers(1, 10**7))
def test_asking_later_gives_the_rest(text: str, where: ZoneInfo, moment: datetime, seconds: int) -> None:
    cron = parsed(text, where)
    later = moment + timedelta(seconds=seconds)
    times = cron.next(moment, 60)
    rest = [due for due in times if due > later]
    assert rest == cron.next(later, len(rest))


@given(st.integers(0, 23), st.integers(0, 59), st.sampled_from(ZONES), st.integers(2024, 2030))
def test_a_daily_time_comes_once_on_every_day_of_the_year(hour: int, minute: int, where: ZoneInfo, year: int) -> None:
    cron = parse(f"{minute} {hour} * * *", where)
    start = datetime(year, 1, 1, tzinfo=where) - timedelta(seconds=1)
    days = [due.astimezone(where).date() for due in islice(cron.after(start), 365)]
    assert [(late - early).days for early, late in pairwise(days)] == [1] * 364


@given(st.sampled_from(ZONES), moments)
def test_every_hour_means_every_hour_that_passes(where: ZoneInfo, moment: datetime) -> None:
    times = parse("0 * * * *", where).next(moment, 24 * 30)
    if where is not LORD_HOWE:
        assert {late - early for early, late in pairwise(times)} == {timedelta(hours=1)}
    assert all(due.astimezone(where).minute == 0 for due in times)


@pytest.mark.parametrize(
    ("text", "where", "day", "times"),
    [
        # Clocks go forward.
        ("30 2 * * *", NEW_YORK, "2026-03-08", ["03:30-04:00"]),
        ("30 2 * * *", BERLIN, "2026-03-29", ["03:30+02:00"]),
        ("0 2,3 * * *", BERLIN, "2026-03-29", ["03:00+02:00"]),
        ("*/30 1-3 * * *", BERLIN, "2026-03-29", ["01:00+01:00", "01:30+01:00", "03:00+02:00", "03:30+02:00"]),
        ("15 2 * * *", LORD_HOWE, "2026-10-04", ["02:45+11:00"]),
        ("0 0 30 2 * *", NEW_YORK, None, None),
        # Clocks go back.
        ("30 1 * * *", NEW_YORK, "2026-11-01", ["01:30-04:00"]),
        ("*/30 1 * * *", NEW_YORK, "2026-11-01", ["01:00-04:00", "01:30-04:00"]),
        ("30 2 * * *", BERLIN, "2026-10-25", ["02:30+02:00"]),
        ("45 * * * *", NEW_YORK, "2026-11-01", None),
    ],
)
def test_clocks_that_move(text: str, where: ZoneInfo, day: str | None, times: list[str] | None) -> None:
    if day is None:
        with pytest.raises(BadCron):
            parse(text, where)
        return
    start = datetime.fromisoformat(day).replace(tzinfo=where)
    local = [due.astimezone(where) for due in islice(parse(text, where).after(start - timedelta(seconds=1)), 30)]
    today = [due.isoformat(timespec="minutes")[11:] for due in local if due.date() == start.date()]
    assert today == times if times is not None else len(today) == 25


def test_a_time_in_the_gap_is_still_due_when_asked_inside_its_delay() -> None:
    inside = datetime(2026, 3, 29, 3, 10, tzinfo=BERLIN)
    assert parse("30 2 * * *", BERLIN).next(inside) == [datetime(2026, 3, 29, 1, 30, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("@daily", "2026-11-02T00:00"),
        ("@Hourly", "2026-11-01T13:00"),
        ("@weekdays", "2026-11-02T00:00"),
        ("@weekends", "2026-11-07T00:00"),
        ("@yearly", "2027-01-01T00:00"),
        ("@minutely", "2026-11-01T12:01"),
        ("0 9 * * mon-fri", "2026-11-02T09:00"),
        ("0 9 * JAN Sun", "2027-01-03T09:00"),
        ("0 9 * * 7", "2026-11-08T09:00"),
        ("0 9 ? * 1#2", "2026-11-09T09:00"),
        ("0 9 * * 5L", "2026-11-27T09:00"),
        ("0 9 L * ?", "2026-11-30T09:00"),
        ("0 9 LW * *", "2026-11-30T09:00"),
        ("0 0 13 * FRI", "2026-11-06T00:00"),
        ("30 15 9 * * *", "2026-11-02T09:15:30"),
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("  0   9 * * *  ", "2026-11-02T09:00"),
        ("0 0 29 2 1#5", "2028-02-29T00:00"),
    ],
)
def test_what_is_understood(text: str, first: str) -> None:
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)
    assert parse(text, UTC_ZONE).next(now) == [datetime.fromisoformat(first).replace(tzinfo=UTC)]


REFUSED = [
    "",
    "   ",
    "* * * *",
    "* * * * * * *",
    "0 0 30 2 *",
    "0 0 31 4,6,9,11 *",
    "0 0 31 2 ?",
    "@reboot",
    "@every 5m",
    "60 * * * *",
    "* 24 * * *",
    "* * 0 * *",
    "* * * 13 *",
    "* * * * 8",
    "*/0 * * * *",
    "5-1 * * * *",
    "? * * * *",
    "a b c d e",
    "* * * * MON#6",
    "* * * * MON#0",
    "H(9-3) * * * *",
    "H/0 * * * *",
    "H/61 * * * *",
    "H(0-99) * * * *",
    "HH * * * *",
    "1,,2 * * * *",
    ", * * * *",
    "- * * * *",
    "/ * * * *",
    "*/* * * * *",
    "1W * * * *",
    "٣ * * * *",
    "² * * * *",
    "* * * * L",
    "0 0 * 2 MON#5",
    "1\x00 * * * *",
    "9" * 300 + " * * * *",
    "* " * 100_000,
    ",".join(["1"] * 5000) + " * * * *",
]


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:20]))
def test_what_is_refused(text: str) -> None:
    with pytest.raises(BadCron):
        parse(text, UTC_ZONE)


@given(st.text(alphabet="0123456789*,-/#LWH?@() MONFRI\n", max_size=60))
def test_any_text_is_read_or_refused_with_words(text: str) -> None:
    try:
        cron = parse(text, BERLIN)
    except BadCron:
        return
    assert cron.next(datetime(2026, 1, 1, tzinfo=UTC), 3)
    assert describe(cron)


@given(st.text(max_size=300))
def test_any_unicode_is_read_or_refused(text: str) -> None:
    try:
        parse(text, UTC_ZONE)
    except BadCron:
        pass


def test_the_rarest_expression_is_found_in_bounded_work() -> None:
    began = time.process_time()
    for text in ["0 0 29 2 MON", "0 0 29 2 1#5", "59 59 23 31 12 SUN", "0 0 * 2 MON#5", "0 0 31 * 1#5"]:
        try:
            parse(text, BERLIN).next(datetime(2026, 1, 1, tzinfo=UTC), 2)
        except BadCron:
            pass
    assert time.process_time() - began < 2


@given(st.integers(), st.sampled_from(["H H * * *", "H/15 * * * *", "H(10-20) 3 * * *", "H H H H H", "H 0,H * * *"]))
def test_a_drawn_time_is_the_same_at_each_reading(seed: int, text: str) -> None:
    once, again = parse(text, UTC_ZONE, seed), parse(text, UTC_ZONE, seed)
    assert once.fields == again.fields
    assert "H" not in once.plain


def test_drawn_times_are_spread_over_jobs() -> None:
    minutes = {parse("H * * * *", UTC_ZONE, seed).fields[1] for seed in range(500)}
    assert len(minutes) == 60
    assert {int(parse("H(10-20) * * * *", UTC_ZONE, n).fields[1]) for n in range(200)} == set(range(10, 21))
    quarter = parse("H/15 * * * *", UTC_ZONE, 7).next(datetime(2026, 1, 1, tzinfo=UTC), 9)
    assert {late - early for early, late in pairwise(quarter)} == {timedelta(minutes=15)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("* * * * *", "Every minute"),
        ("0 * * * *", "Every hour"),
        ("@daily", "Daily at midnight"),
        ("0 */6 * * *", "Every 6 hours"),
        ("*/5 * * * *", "Every 5 minutes"),
        ("30 3 * * *", "Daily at 03:30"),
        ("30 3 * * 1", "Every Monday at 03:30"),
        ("30 3 * * sun", "Every Sunday at 03:30"),
        ("0 9 * * 1-5", "Monday to Friday at 09:00"),
        ("0 9 1 * *", "On day 1 of every month at 09:00"),
        ("0 9 L * *", "On the last day of every month at 09:00"),
        ("*/10 * * * * *", "Every 10th second of every minute"),
    ],
)
def test_plain_words(text: str, words: str) -> None:
    assert describe(parse(text, UTC_ZONE)) == words


@given(expressions, st.sampled_from(ZONES))
def test_every_expression_has_words(text: str, where: ZoneInfo) -> None:
    words = describe(parsed(text, where))
    assert words[0].isupper()


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_zones_have_names(name: str) -> None:
    assert zone(name).key == name


@pytest.mark.parametrize(
    "name",
    ["", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe", "UTC\x00", "x" * 100, "Europe/Berlin ", "é"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadZone, match=re.compile("time zone", re.IGNORECASE)):
        zone(name)
