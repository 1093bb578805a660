"""Users. The rules that must hold at every moment live here, inside the transaction: names are unique, the first
administrator is made exactly once, there is always an administrator."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from fleetproxy.control.state import queries
from fleetproxy.control.state.tables import SessionRow, UserRow
from fleetproxy.errors import Conflict, PathUnknown


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    username: str
    is_admin: bool
    created_at: datetime


def canonical_username(text: str) -> str:
    """Names are compared trimmed and in lower case."""
    return text.strip().lower()


def any_exist(session: Session) -> bool:
    return bool(session.scalar(select(exists().where(UserRow.id.is_not(None)))))


def all_users(session: Session) -> list[User]:
    return [_value(row) for row in session.scalars(select(UserRow).order_by(UserRow.id))]


def get(session: Session, user_id: int) -> User | None:
    row = session.get(UserRow, user_id)
    return _value(row) if row else None


def credentials(session: Session, username: str) -> tuple[User, str] | None:
    """The user of that name and the hash of their password."""
    row = session.scalar(select(UserRow).where(UserRow.username == canonical_username(username)))
    return (_value(row), row.password_hash) if row else None


def create_first(session: Session, username: str, password_hash: str, now: datetime) -> User:
    """The first administrator. Raises Conflict when any user exists: of many at once, one wins."""
    if any_exist(session):
        raise Conflict("Setup already completed")
    return create(session, username, password_hash, True, now)


def create(session: Session, username: str, password_hash: str, is_admin: bool, now: datetime) -> User:
    """Raises Conflict when the name is taken."""
    name = canonical_username(username)
    if session.scalar(select(exists().where(UserRow.username == name))):
        raise Conflict("Username already taken")
    row = UserRow(username=name, password_hash=password_hash, is_admin=is_admin, created_at=now, updated_at=now)
    session.add(row)
    session.flush()
    return _value(row)


def update(
    session: Session, user_id: int, now: datetime, *, password_hash: str | None = None, is_admin: bool | None = None
) -> User:
    """Change password or role; either ends every session of the user. Raises PathUnknown, or Conflict for the last
    administrator's demotion."""
    row = _existing(session, user_id)
    if is_admin is False and row.is_admin:
        _keep_an_admin(session)
    changed = password_hash is not None or (is_admin is not None and is_admin != row.is_admin)
    if password_hash is not None:
        row.password_hash = password_hash
    if is_admin is not None:
        row.is_admin = is_admin
    if changed:
        row.updated_at = now
        session.execute(delete(SessionRow).where(SessionRow.user_id == user_id))
    session.flush()
    return _value(row)


def rehash(session: Session, user_id: int, old_hash: str, new_hash: str) -> None:
    """Store the same password under newer parameters, unless it was changed meanwhile."""
    row = session.get(UserRow, user_id)
    if row and row.password_hash == old_hash:
        row.password_hash = new_hash


def remove(session: Session, user_id: int) -> User:
    """Delete a user with everything that is theirs alone. The record of past requests keeps the name."""
    row = _existing(session, user_id)
    if row.is_admin:
        _keep_an_admin(session)
    user = _value(row)
    queries.forget_private(session, user_id)
    session.delete(row)
    session.flush()
    return user


def _existing(session: Session, user_id: int) -> UserRow:
    row = session.get(UserRow, user_id)
    if row is None:
        raise PathUnknown("User not found")
    return row


def _keep_an_admin(session: Session) -> None:
    if session.scalar(select(func.count()).where(UserRow.is_admin)) == 1:
        raise Conflict("This is the last administrator; make another user administrator first")


def _value(row: UserRow) -> User:
    return User(id=row.id, username=row.username, is_admin=row.is_admin, created_at=row.created_at)
