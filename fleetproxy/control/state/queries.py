"""SQL queries that administrators keep, each for himself or for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from fleetproxy.control.state.tables import SavedQueryRow, UserRow
from fleetproxy.errors import Conflict, PathUnknown

MAX_PER_OWNER = 200


class SavedQuery(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    #: None: whoever kept it is gone, or called with a key that belongs to nobody.
    owner_id: int | None
    owner: str | None
    name: str
    description: str | None
    sql: str
    is_shared: bool
    created_at: datetime
    updated_at: datetime


def visible(session: Session, user_id: int | None) -> Sequence[SavedQuery]:
    """One's own and the shared ones, by name."""
    found = session.execute(
        select(SavedQueryRow, UserRow.username)
        .outerjoin(UserRow, UserRow.id == SavedQueryRow.user_id)
        .where(or_(SavedQueryRow.is_shared, SavedQueryRow.user_id == user_id))
        .order_by(func.lower(SavedQueryRow.name), SavedQueryRow.id)
    )
    return [_value(row, username) for row, username in found]


def keep(
    session: Session,
    user_id: int | None,
    now: datetime,
    *,
    name: str,
    sql: str,
    description: str | None,
    shared: bool,
    query_id: int | None = None,
) -> SavedQuery:
    """Keep a new query, or change one's own (or one whose owner is gone). Raises Conflict, PathUnknown.

    What belongs to nobody is shared: nobody else could find it.
    """
    taken = session.scalar(
        select(SavedQueryRow.id).where(SavedQueryRow.name == name, SavedQueryRow.user_id.is_not_distinct_from(user_id))
    )
    if taken is not None and taken != query_id:
        raise Conflict(f"You have a query named '{name}' already; choose another name, or change that one (id {taken})")
    if query_id is None:
        kept = session.scalar(select(func.count()).where(SavedQueryRow.user_id.is_not_distinct_from(user_id))) or 0
        if kept >= MAX_PER_OWNER:
            raise Conflict(f"At most {MAX_PER_OWNER} queries can be kept; delete some first")
        row = SavedQueryRow(user_id=user_id, created_at=now)
        session.add(row)
    else:
        row = _own(session, user_id, query_id)
    row.name, row.sql, row.description, row.updated_at = name, sql, description, now
    row.is_shared = shared or row.user_id is None
    session.flush()
    return _value(row, session.scalar(select(UserRow.username).where(UserRow.id == row.user_id)))


def remove(session: Session, user_id: int | None, query_id: int) -> None:
    """Delete one's own query, or a shared one. Raises PathUnknown."""
    row = session.get(SavedQueryRow, query_id)
    if row is None or not (row.is_shared or row.user_id == user_id):
        raise PathUnknown("Saved query not found")
    session.delete(row)


def forget_private(session: Session, user_id: int) -> None:
    """A user is going to be deleted: what nobody else could see goes, what is shared stays."""
    session.execute(delete(SavedQueryRow).where(SavedQueryRow.user_id == user_id, ~SavedQueryRow.is_shared))


def _own(session: Session, user_id: int | None, query_id: int) -> SavedQueryRow:
    row = session.get(SavedQueryRow, query_id)
    if row is None or row.user_id not in (None, user_id):
        raise PathUnknown("Saved query not found")
    return row


def _value(row: SavedQueryRow, username: str | None) -> SavedQuery:
    return SavedQuery(
        id=row.id,
        owner_id=row.user_id,
        owner=username,
        name=row.name,
        description=row.description,
        sql=row.sql,
        is_shared=row.is_shared,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
