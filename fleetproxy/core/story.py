"""One exchange's time, told in order: what it waited for, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from fleetproxy.core.record import Attempt

Part = Literal[
    "overhead",  # our own share: reading, choosing, passing on
    "queue",  # in line for a busy server
    "connect",  # opening the connection
    "wait",  # until the first byte of the answer: the server loads, reads the prompt, thinks
    "stream",  # from the first byte to the last
    "failed",  # an attempt that came to nothing
]
LABELS: dict[Part, str] = {
    "overhead": "fleetproxy",
    "queue": "waiting in line",
    "connect": "connecting",
    "wait": "waiting for the first byte",
    "stream": "answering",
    "failed": "failed attempt",
}
#: Shorter parts are not worth a bar.
LEAST_MS = 0.001


class Phase(msgspec.Struct, frozen=True, rename="camel"):
    """A stretch of an exchange, in milliseconds from its first byte in."""

    phase: Part
    label: str
    server_name: str | None
    start_ms: float
    duration_ms: float


def timeline(queue_ms: float, total_ms: float, attempts: Sequence[Attempt]) -> list[Phase]:
    """The parts of an exchange: in order, never overlapping, from 0 to `total_ms` without a gap longer than nothing.

    Attempts are told with times of their own clock reading; what does not fit is cut, never shown as negative.
    """
    found: list[Phase] = []
    at_ms = 0.0
    for part, server, until_ms in _marks(queue_ms, total_ms, attempts):
        end_ms = min(max(until_ms, at_ms), total_ms)
        if end_ms - at_ms >= LEAST_MS:
            found.append(Phase(part, LABELS[part], server, round(at_ms, 3), round(end_ms - at_ms, 3)))
            at_ms = end_ms
    return found


def _marks(queue_ms: float, total_ms: float, attempts: Sequence[Attempt]) -> Iterator[tuple[Part, str | None, float]]:
    """(what, where, until when)."""
    begun_ms = attempts[0].started_ms if attempts else total_ms
    yield "overhead", None, begun_ms - queue_ms
    yield "queue", None, begun_ms
    for attempt in attempts:
        start_ms, name = attempt.started_ms, attempt.backend
        yield "overhead", None, start_ms
        if attempt.connect_ms is not None:
            yield "connect", name, start_ms + attempt.connect_ms
        if attempt.error is not None and attempt.first_byte_ms is None:
            yield "failed", name, start_ms + attempt.total_ms
            continue
        if attempt.first_byte_ms is not None:
            yield "wait", name, start_ms + attempt.first_byte_ms
        last = attempt is attempts[-1]
        yield ("stream" if last else "failed"), name, start_ms + attempt.total_ms
    yield "overhead", None, total_ms
