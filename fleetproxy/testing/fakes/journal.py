"""What a fake saw: one row per request, with the moment its peer left."""

from __future__ import annotations

import time
from collections import deque

import msgspec

KEEP_ROWS = 20_000
KEEP_BODY_BYTES = 4096


class Row(msgspec.Struct, kw_only=True):
    """One request as it arrived. `*_s` are `time.monotonic()`, which all processes of a machine share."""

    number: int
    #: Which accepted connection, and the request's place on it, both from 1.
    connection: int
    place: int
    method: str
    #: The request target, byte for byte.
    target: str
    headers: list[tuple[str, str]]
    arrived_s: float
    #: Wall clock, seconds since the epoch.
    arrived_at_s: float
    model: str | None = None
    body_bytes: int = 0
    body_sha256: str = ""
    #: The first `KEEP_BODY_BYTES` of the body, latin-1.
    body: str = ""
    body_complete: bool = False
    status: int | None = None
    started_s: float | None = None
    finished_s: float | None = None
    sent_bytes: int = 0
    #: The answer went out whole.
    complete: bool = False
    #: When the peer was seen to have left before the answer was whole; None when it stayed.
    peer_closed_s: float | None = None
    #: The fault that struck this request.
    fault: str | None = None

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Journal:
    """The last `KEEP_ROWS` rows; older ones are dropped and counted."""

    def __init__(self) -> None:
        self.rows: deque[Row] = deque(maxlen=KEEP_ROWS)
        self.seen = 0

    @property
    def dropped(self) -> int:
        return self.seen - len(self.rows)

    def begin(self, connection: int, place: int, method: str, target: str, headers: list[tuple[str, str]]) -> Row:
        self.seen += 1
        row = Row(
            number=self.seen,
            connection=connection,
            place=place,
            method=method,
            target=target,
            headers=headers,
            arrived_s=time.monotonic(),
            arrived_at_s=time.time(),
        )
        self.rows.append(row)
        return row

    def clear(self) -> None:
        self.rows.clear()
        self.seen = 0

    def of(self, path: str) -> list[Row]:
        """Rows whose path (without the query) is this one."""
        return [row for row in self.rows if row.target.partition("?")[0] == path]
