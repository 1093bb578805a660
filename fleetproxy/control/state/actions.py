"""What administrators did to the models of servers. Kept for ever."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from fleetproxy.control.state.tables import ActionRow

Kind = Literal["pull", "delete", "load", "unload"]
Status = Literal["pending", "success", "failed"]
MAX_DETAIL_CHARACTERS = 500


class Action(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    action: str
    model_name: str
    server_id: int
    server_name: str
    status: str
    detail: str | None
    triggered_by: str
    created_at: datetime
    finished_at: datetime | None


def begin(
    session: Session, action: Kind, model: str, server_id: int, *, server: str, triggered_by: str, now: datetime
) -> tuple[Action, bool]:
    """A new pending action; or, when the same is pending already, that one. The flag: it is new."""
    pending = session.scalar(
        select(ActionRow).where(
            ActionRow.action == action,
            ActionRow.model_name == model,
            ActionRow.server_id == server_id,
            ActionRow.status == "pending",
        )
    )
    if pending is not None:
        return _value(pending), False
    row = ActionRow(
        action=action,
        model_name=model,
        server_id=server_id,
        server_name=server,
        status="pending",
        detail=None,
        triggered_by=triggered_by,
        created_at=now,
        finished_at=None,
    )
    session.add(row)
    session.flush()
    return _value(row), True


def finish(session: Session, action_id: int, status: Status, detail: str, now: datetime) -> None:
    row = session.get(ActionRow, action_id)
    if row is not None and row.status == "pending":
        row.status, row.detail, row.finished_at = status, detail[:MAX_DETAIL_CHARACTERS], now


def interrupt(session: Session, now: datetime) -> None:
    """Control starts: what was pending ended with the control before it."""
    session.execute(
        update(ActionRow)
        .where(ActionRow.status == "pending")
        .values(status="failed", detail="fleetproxy was stopped meanwhile; look at the server", finished_at=now)
    )


def newest(session: Session, limit: int) -> list[Action]:
    return [_value(row) for row in session.scalars(select(ActionRow).order_by(ActionRow.id.desc()).limit(limit))]


def _value(row: ActionRow) -> Action:
    return Action(**{field: getattr(row, field) for field in Action.__struct_fields__})
