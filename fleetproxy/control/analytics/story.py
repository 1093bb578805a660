"""One request, whole: its row as the list shows it, what the list leaves out, and its attempts."""

from __future__ import annotations

from typing import Any

from fleetproxy.control.analytics import queries
from fleetproxy.control.analytics.queries import Cursor, Row, Window
from fleetproxy.core.record import Attempt

_NEWEST = "SELECT max(epoch_us(started_at)) FROM requests WHERE request_id = ?"
#: Beside the columns of the list.
_FURTHER = (
    "remote_ip", "user_agent", "key_prefix", "key_unknown", "process", "chunks_out", "load_ms", "prompt_eval_ms",
    "eval_ms", "total_ms",
)  # fmt: skip
_MORE = f"SELECT {', '.join(_FURTHER)} FROM requests WHERE id = ?"  # noqa: S608 - our own columns
_ATTEMPTS = """SELECT backend, status, error, started_ms, connect_ms, first_byte_ms, total_ms FROM attempts
WHERE request_id = ? AND started_at = make_timestamp(?) ORDER BY n LIMIT 100"""


def find(cursor: Cursor, request_id: str, hosts: dict[str, str]) -> tuple[Row, Row, list[Attempt]] | None:
    """(row of the list, further columns, attempts); None when there is no such request. Of several, the newest."""
    newest = cursor.execute(_NEWEST, [request_id]).fetchone()
    if newest is None or newest[0] is None:
        return None
    # Its very moment: the store keeps rows in the order of time, and skips what lies elsewhere.
    window = Window(0, newest[0])
    row = queries.requests(cursor, window, hosts, filters={"request_id": request_id}, limit=1)["requests"][0]
    more: Any = cursor.execute(_MORE, [row["id"]]).fetchone()
    attempts = [
        Attempt(
            backend=backend or "",
            status=status,
            error=error,
            started_ms=started_ms or 0.0,
            connect_ms=connect_ms,
            first_byte_ms=first_byte_ms,
            total_ms=total_ms or 0.0,
        )
        for backend, status, error, started_ms, connect_ms, first_byte_ms, total_ms in cursor.execute(
            _ATTEMPTS, [request_id, newest[0]]
        ).fetchall()
    ]
    return row, dict(zip(_FURTHER, more, strict=True)), attempts
