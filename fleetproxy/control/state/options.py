"""Fleet-wide options an administrator sets in the dashboard."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetproxy.control.state.tables import OptionRow

#: Every option there is, and what it is until somebody sets it.
DEFAULTS: dict[str, Any] = {"intelligent_management_enabled": False}


def everything(session: Session) -> dict[str, Any]:
    return DEFAULTS | {row.key: row.value for row in session.scalars(select(OptionRow))}


def put(session: Session, key: str, value: Any, now: datetime) -> None:
    row = session.get(OptionRow, key)
    if row is None:
        session.add(OptionRow(key=key, value=value, updated_at=now))
    else:
        row.value, row.updated_at = value, now
