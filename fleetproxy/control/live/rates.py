"""How busy everybody was in the last seconds: tokens, requests and failures by backend, second by second."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec

from fleetproxy.core.record import NOT_THE_BACKENDS, AuditRecord

#: Rates are over this long; failures are counted over that long.
RATE_S, FAILURES_S = 10, 60
#: Rows reach us up to this long after their request has ended.
LATE_S = 2
#: Backends counted; of more nothing is known.
MAX_BACKENDS = 4096
EVERYBODY = ""


class Pace(msgspec.Struct, frozen=True):
    """One backend's last seconds."""

    tokens_per_s: float = 0.0
    tokens_in_per_s: float = 0.0
    requests_per_s: float = 0.0
    failed_last_minute: int = 0


class Failure(msgspec.Struct, frozen=True):
    """The last attempt that failed."""

    code: str
    #: Seconds since the epoch.
    at_s: float


IDLE = Pace()


class _Second:
    __slots__ = ("failed", "requests", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.tokens_out = 0.0
        self.tokens_in = 0.0
        self.requests = 0
        self.failed = 0


class Rates:
    """`feed` runs in the store's thread, `pace` on the loop. `EVERYBODY` is the name for all of them together.

    Answer tokens count in the seconds in which they were written: spread evenly from an answer's first byte to its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, dict[int, _Second]] = {EVERYBODY: {}}
        self._failures: dict[str, Failure] = {}
        #: Rows of backends that no place was left for.
        self.left_out = 0

    def feed(self, records: Sequence[AuditRecord], now_s: float) -> None:
        """Rows that have just been written down. Those that ended long ago change nothing."""
        oldest = int(now_s) - FAILURES_S - LATE_S
        with self._lock:
            for record in records:
                began_s = record.started_at_us / 1e6
                ended_s = began_s + record.total_ms / 1000
                for attempt in record.attempts:
                    if attempt.error is not None and attempt.error not in NOT_THE_BACKENDS:
                        failed_s = began_s + (attempt.started_ms + attempt.total_ms) / 1000
                        self._fail(attempt.backend, attempt.error, failed_s, oldest)
                if ended_s < oldest or ended_s > now_s + FAILURES_S:
                    continue
                for name in (EVERYBODY, record.backend or EVERYBODY) if record.backend else (EVERYBODY,):
                    self._count(name, record, began_s, ended_s, oldest)

    def pace(self, backend: str, now_s: float) -> Pace:
        with self._lock:
            seconds = self._seconds.get(backend)
            if not seconds:
                return IDLE
            until = int(now_s) - LATE_S
            recent = [found for second, found in seconds.items() if until - RATE_S < second <= until]
            failed = sum(found.failed for second, found in seconds.items() if second > int(now_s) - FAILURES_S)
        return Pace(
            tokens_per_s=round(sum(one.tokens_out for one in recent) / RATE_S, 1),
            tokens_in_per_s=round(sum(one.tokens_in for one in recent) / RATE_S, 1),
            requests_per_s=round(sum(one.requests for one in recent) / RATE_S, 1),
            failed_last_minute=failed,
        )

    def failure(self, backend: str) -> Failure | None:
        return self._failures.get(backend)

    def _count(self, name: str, record: AuditRecord, began_s: float, ended_s: float, oldest: int) -> None:
        last = self._second(name, int(ended_s), oldest)
        if last is None:
            return
        last.requests += 1
        last.tokens_in += record.tokens_in or 0
        tokens = record.tokens_out or 0
        if not tokens:
            return
        first_s = began_s + (record.ttft_ms if record.ttft_ms is not None else record.total_ms) / 1000
        length_s = ended_s - first_s
        if length_s < 1.0:
            last.tokens_out += tokens
            return
        for second in range(max(int(first_s), oldest), int(ended_s) + 1):
            found = self._second(name, second, oldest)
            if found is not None:
                found.tokens_out += tokens * (min(ended_s, second + 1) - max(first_s, second)) / length_s

    def _fail(self, backend: str, code: str, at_s: float, oldest: int) -> None:
        known = self._failures.get(backend)
        if known is None and len(self._failures) >= MAX_BACKENDS:
            self.left_out += 1
        elif known is None or at_s >= known.at_s:
            self._failures[backend] = Failure(code, at_s)
        if at_s >= oldest:
            for name in (EVERYBODY, backend):
                second = self._second(name, int(at_s), oldest)
                if second is not None:
                    second.failed += 1

    def _second(self, name: str, second: int, oldest: int) -> _Second | None:
        seconds = self._seconds.get(name)
        if seconds is None:
            if len(self._seconds) > MAX_BACKENDS:
                self.left_out += 1
                return None
            seconds = self._seconds[name] = {}
        found = seconds.get(second)
        if found is None:
            for old in [known for known in seconds if known < oldest]:
                del seconds[old]
            found = seconds[second] = _Second()
        return found
