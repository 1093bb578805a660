"""What each backend has done since control started: counted as audit rows pass on their way into the store."""

from __future__ import annotations

from collections.abc import Sequence

from fleetproxy.core.record import NOT_THE_BACKENDS, AuditRecord

#: Backends counted; of more the least is known anyway, and they are left out.
MAX_BACKENDS = 4096


class Tally:
    """One backend's numbers."""

    __slots__ = ("failures", "last_error", "left", "processed", "processing_ms", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        #: Attempts that have ended, of them those that failed, and those whose caller did not stay to the end.
        self.processed = 0
        self.failures = 0
        self.left = 0
        self.processing_ms = 0.0
        self.tokens_in = 0
        self.tokens_out = 0
        #: The code word of the last failure.
        self.last_error = ""

    @property
    def average_ms(self) -> float:
        return self.processing_ms / self.processed if self.processed else 0.0


_NOTHING = Tally()


class Tallies:
    """By backend name. `feed` runs in the store's thread, reading anywhere: numbers only grow."""

    def __init__(self) -> None:
        self._by_name: dict[str, Tally] = {}
        #: Rows of backends that no place was left for.
        self.left_out = 0

    def of(self, backend: str) -> Tally:
        return self._by_name.get(backend, _NOTHING)

    def feed(self, records: Sequence[AuditRecord]) -> None:
        for record in records:
            for attempt in record.attempts:
                tally = self._tally(attempt.backend)
                if tally is None:
                    continue
                tally.processed += 1
                tally.processing_ms += attempt.total_ms
                if attempt.error in NOT_THE_BACKENDS:
                    tally.left += 1
                elif attempt.error is not None:
                    tally.failures += 1
                    tally.last_error = attempt.error
            if record.backend and (record.tokens_in or record.tokens_out):
                tally = self._tally(record.backend)
                if tally is not None:
                    tally.tokens_in += record.tokens_in or 0
                    tally.tokens_out += record.tokens_out or 0

    def _tally(self, backend: str) -> Tally | None:
        tally = self._by_name.get(backend)
        if tally is None:
            if len(self._by_name) >= MAX_BACKENDS:
                self.left_out += 1
                return None
            tally = self._by_name[backend] = Tally()
        return tally
