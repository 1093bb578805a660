"""How the store is."""

from __future__ import annotations

import msgspec

from fleetproxy.control.analytics.database import Trouble


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the store is. Shown on the health page and as metrics."""

    ok: bool
    #: One word, and the sentence for people; None when all is well.
    trouble: Trouble | None
    detail: str | None
    backlog_segments: int
    backlog_bytes: int
    #: Seconds since the epoch of the last load; None before the first.
    loaded_at_s: float | None
    #: Damaged files set aside since start.
    set_aside: tuple[str, ...]
