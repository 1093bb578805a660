"""Cron expressions: what they say, when they are due, what they mean in words.

Five fields (minute hour day-of-month month day-of-week), or six with seconds first, or a word:

    * , - /           everything, lists, ranges, steps        JAN-DEC, SUN-SAT    names, any case; Sunday is 0 or 7
    L                 last day of the month                   5L                  last Friday
    LW                last working day of the month           1#2                 second Monday
    ?                 any, in the two day fields              H, H/15, H(1-5)     a fixed time drawn from the job's seed
    @hourly @daily @midnight @weekly @monthly @yearly @annually @minutely @weekdays @weekends

Day-of-month and day-of-week: when neither begins with `*`, either is enough; else both must fit (crontab(5)).

Time zones: an expression whose hour is given names wall-clock times; each such time is run once: one that the clocks
jump over is run as much later as they jump (02:30 -> 03:30), one that comes twice is run the first time. With every
hour meant (`*`), runs follow the time that passes: none in the gap, all in the hour that comes twice.

`cronsim` does the searching; this module adds what it lacks, and bounds it: no expression is searched further than
HORIZON_YEARS, and one that is never due within it is not valid.
"""

from __future__ import annotations

import heapq
import re
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

MAX_CHARACTERS = 256
#: Long enough for the 29th of February around a year that is no leap year.
HORIZON_YEARS = 9

_WORDS = {
    "@minutely": "* * * * *",
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@weekdays": "0 0 * * 1-5",
    "@weekends": "0 0 * * 0,6",
}
#: Lowest and highest value of each field as `H` may draw them; the 29th and later do not come every month.
_DRAWN = {"second": (0, 59), "minute": (0, 59), "hour": (0, 23), "day": (1, 28), "month": (1, 12), "weekday": (0, 6)}
_FIELDS = tuple(_DRAWN)
_HASH = re.compile(r"H(?:\((\d{1,2})-(\d{1,2})\))?(?:/(\d{1,2}))?", re.ASCII)
_ONE_VALUE = re.compile(r"\b(\w{1,3})-\1/\d{1,5}\b", re.ASCII)
_CHARACTERS = re.compile(r"[0-9A-Z*,/#?()-]+", re.ASCII)


class BadCron(ValueError):
    """Not a cron expression we can run; the text says why."""


class BadZone(ValueError):
    """Not the name of a time zone."""


class Cron(msgspec.Struct, frozen=True):
    """A valid expression in six plain fields, in a time zone."""

    fields: tuple[str, str, str, str, str, str]
    zone: ZoneInfo
    #: As it was written.
    text: str

    @property
    def plain(self) -> str:
        """What cronsim and aiocron understand: `second minute hour day month weekday`."""
        return " ".join(self.fields)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Every time it is due after `moment`, in UTC, rising, at most HORIZON_YEARS on."""
        moment = moment.astimezone(UTC)
        return self._passing(moment) if self._every_hour else self._wall(moment)

    def next(self, moment: datetime, count: int = 1) -> list[datetime]:
        """The next times it is due after `moment`."""
        return list(islice(self.after(moment), count))

    @property
    def _every_hour(self) -> bool:
        return self.fields[2] in ("*", "*/1", "0-23")

    def _passing(self, moment: datetime) -> Iterator[datetime]:
        # cronsim rolls an aware time in UTC, which is what passes.
        for due in _Search(self.plain, moment.astimezone(self.zone)):
            yield due.astimezone(UTC)

    def _wall(self, moment: datetime) -> Iterator[datetime]:
        """Wall-clock times, each once. Those in a gap come later than the ones behind it: held back in order."""
        held: list[datetime] = []
        last = moment
        local = moment.astimezone(self.zone)
        jump = _offset(local) - _offset((moment - timedelta(days=1)).astimezone(self.zone))
        # The clocks jumped within the last day: times of that gap may still be due.
        start = local.replace(tzinfo=None) - max(jump, timedelta())
        for wall in _Search(self.plain, start):
            due = wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
            heapq.heappush(held, due)
            if due.astimezone(self.zone).replace(tzinfo=None) != wall:
                continue  # in a gap: what lies behind it may come first
            while held and held[0] <= due:
                first = heapq.heappop(held)
                if first > last:
                    last = first
                    yield first
        yield from sorted(late for late in set(held) if late > last)


class _Search(CronSim):
    """cronsim that gives up at our horizon."""

    def __init__(self, expression: str, start: datetime) -> None:
        super().__init__(expression, start)
        self._end_year = start.year + HORIZON_YEARS

    def advance_month(self) -> None:
        super().advance_month()
        if self.dt.year > self._end_year:
            raise StopIteration


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises BadZone."""
    if not name or len(name) > 64 or not re.fullmatch(r"[A-Za-z0-9_+/-]+", name, re.ASCII) or name.startswith("/"):
        raise BadZone(f"Invalid time zone {name[:64]!r}: use a name such as UTC or Europe/Berlin")
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise BadZone(f"Unknown time zone {name!r}: use a name such as UTC or Europe/Berlin") from None


def parse(text: str, zone: ZoneInfo, seed: int = 0) -> Cron:
    """Read an expression. `seed` decides what `H` draws. Raises BadCron."""
    fields = _fields(text, seed)
    plain = " ".join(fields)
    # Searched once from a fixed time: whether it is ever due hangs on the calendar alone.
    if not _is_ever_due(plain):
        raise BadCron(f"{text.strip()!r} is never due within {HORIZON_YEARS} years")
    return Cron(fields, zone, text.strip())


def describe(cron: Cron) -> str:
    """The expression in plain words, as the dashboard shows it."""
    second, minute, hour, day, month, weekday = cron.fields
    if second == "0":
        for fits, phrase in _PHRASES:
            if fits(minute, hour, day, month, weekday):
                return phrase(minute, hour, day, month, weekday)
    words = _Search(cron.plain, datetime(2000, 1, 1)).explain()  # noqa: DTZ001  (only the fields are read)
    return words[0].upper() + words[1:]


# --- reading -------------------------------------------------------------------------------------------------------


def _fields(text: str, seed: int) -> tuple[str, str, str, str, str, str]:
    stripped = text.strip()
    if len(stripped) > MAX_CHARACTERS:
        raise BadCron(f"An expression has at most {MAX_CHARACTERS} characters")
    if stripped.startswith("@"):
        word = _WORDS.get(stripped.lower())
        if word is None:
            raise BadCron(f"{stripped!r} is no known word; known: {' '.join(_WORDS)}")
        stripped = word
    parts = stripped.upper().split()
    if len(parts) == 5:
        parts.insert(0, "0")
    if len(parts) != 6:
        raise BadCron("An expression has five fields, or six with seconds first")
    read = [_field(name, part, seed) for name, part in zip(_FIELDS, parts, strict=True)]
    plain = " ".join(read)
    try:
        CronSim(plain, datetime(2000, 1, 1))  # noqa: DTZ001  (only the fields are read)
    except CronSimError as error:
        raise BadCron(f"{error} in {text.strip()!r}") from None
    return (read[0], read[1], read[2], read[3], read[4], read[5])


def _field(name: str, part: str, seed: int) -> str:
    if not _CHARACTERS.fullmatch(part):
        raise BadCron(f"Bad {name}: {part!r}")
    if part == "?":
        if name not in ("day", "weekday"):
            raise BadCron("`?` stands for any day only: in day-of-month or day-of-week")
        return "*"
    # cronsim reads a range of one value with a step ("5-5/2") as that value onwards ("5/2").
    part = _ONE_VALUE.sub(r"\1", part)
    if "H" not in part.replace("THU", "").replace("MARCH", ""):
        return part
    return ",".join(_drawn(name, item, seed) if item.startswith("H") else item for item in part.split(","))


def _drawn(name: str, item: str, seed: int) -> str:
    """What `H` means for this job: the same at each reading, spread over jobs."""
    found = _HASH.fullmatch(item)
    if found is None:
        raise BadCron(f"Bad {name}: {item!r}; `H`, `H(2-5)`, `H/15` are forms of H")
    lowest, highest = _DRAWN[name]
    if found[1] is not None:
        low, high = int(found[1]), int(found[2])
        if not lowest <= low <= high <= 31:
            raise BadCron(f"Bad {name}: the range of {item!r} does not fit")
        lowest, highest = low, high
    # A stable hash; `hash()` differs between processes.
    draw = zlib.crc32(f"{name} {seed}".encode())
    if found[3] is None:
        return str(lowest + draw % (highest - lowest + 1))
    step = int(found[3])
    if step == 0 or step > highest - lowest + 1:
        raise BadCron(f"Bad {name}: the step of {item!r} does not fit")
    return f"{lowest + draw % step}-{highest}/{step}"


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta()


@lru_cache(4096)
def _is_ever_due(plain: str) -> bool:
    # From the year after a leap year: nothing can hide behind a lucky start.
    return next(_Search(plain, datetime(2097, 1, 1)), None) is not None  # noqa: DTZ001  (wall-clock times)


# --- in words ------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d{1,2}", re.ASCII)
_STEP = re.compile(r"\*/(\d{1,2})", re.ASCII)
_DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAY_NAMES = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


def _time(minute: str, hour: str) -> str:
    return f"{int(hour):02d}:{int(minute):02d}"


def _is_time(minute: str, hour: str) -> bool:
    return bool(_NUMBER.fullmatch(minute) and _NUMBER.fullmatch(hour))


def _step_of(field: str) -> int:
    found = _STEP.fullmatch(field)
    return int(found[1]) if found else 0


def _day_of(weekday: str) -> str | None:
    if weekday in _DAY_NAMES:
        return _DAYS[_DAY_NAMES.index(weekday)]
    return _DAYS[int(weekday)] if re.fullmatch(r"[0-7]", weekday) else None


def _plural(count: int, noun: str) -> str:
    return f"Every {noun}" if count == 1 else f"Every {count} {noun}s"


_Fits = Callable[[str, str, str, str, str], bool]
_Phrase = Callable[[str, str, str, str, str], str]
#: First that fits speaks: (minute, hour, day, month, weekday) -> words. What none fits, cronsim explains.
_PHRASES: tuple[tuple[_Fits, _Phrase], ...] = (
    (lambda m, h, d, mo, w: (m, h, d, mo, w) == ("*",) * 5, lambda m, h, d, mo, w: "Every minute"),
    (lambda m, h, d, mo, w: (m, h, d, mo, w) == ("0", "*", "*", "*", "*"), lambda m, h, d, mo, w: "Every hour"),
    (
        lambda m, h, d, mo, w: (m, h, d, mo, w) == ("0", "0", "*", "*", "*"),
        lambda m, h, d, mo, w: "Daily at midnight",
    ),
    (
        lambda m, h, d, mo, w: m == "0" and bool(_step_of(h)) and (d, mo, w) == ("*", "*", "*"),
        lambda m, h, d, mo, w: _plural(_step_of(h), "hour"),
    ),
    (
        lambda m, h, d, mo, w: bool(_step_of(m)) and (h, d, mo, w) == ("*", "*", "*", "*"),
        lambda m, h, d, mo, w: _plural(_step_of(m), "minute"),
    ),
    (
        lambda m, h, d, mo, w: _is_time(m, h) and (d, mo, w) == ("*", "*", "*"),
        lambda m, h, d, mo, w: f"Daily at {_time(m, h)}",
    ),
    (
        lambda m, h, d, mo, w: _is_time(m, h) and (d, mo) == ("*", "*") and _day_of(w) is not None,
        lambda m, h, d, mo, w: f"Every {_day_of(w)} at {_time(m, h)}",
    ),
    (
        lambda m, h, d, mo, w: _is_time(m, h) and (d, mo) == ("*", "*") and w in ("1-5", "MON-FRI"),
        lambda m, h, d, mo, w: f"Monday to Friday at {_time(m, h)}",
    ),
    (
        lambda m, h, d, mo, w: _is_time(m, h) and bool(_NUMBER.fullmatch(d)) and (mo, w) == ("*", "*"),
        lambda m, h, d, mo, w: f"On day {int(d)} of every month at {_time(m, h)}",
    ),
    (
        lambda m, h, d, mo, w: _is_time(m, h) and d == "L" and (mo, w) == ("*", "*"),
        lambda m, h, d, mo, w: f"On the last day of every month at {_time(m, h)}",
    ),
)
