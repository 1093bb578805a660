"""Sessions of the dashboard. The cookie's value is known to the browser alone; the store keeps its SHA-256."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fleetproxy.control.state.tables import SessionRow, UserRow
from fleetproxy.control.state.users import User

LIFETIME = timedelta(days=7)
IDLE_LIMIT = timedelta(days=3)
#: How stale `last_seen_at` may be: one write per session in this time, not one per call.
SEEN_EVERY = timedelta(minutes=10)
#: A user's oldest sessions end beyond this.
MAX_PER_USER = 50


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def begin(session: Session, token: str, user_id: int, address: str | None, now: datetime) -> None:
    """A new session; when the user has too many, the oldest end."""
    rows = session.scalars(
        select(SessionRow).where(SessionRow.user_id == user_id).order_by(SessionRow.created_at.desc())
    ).all()
    for row in rows[MAX_PER_USER - 1 :]:
        session.delete(row)
    session.add(
        SessionRow(
            token_hash=token_hash(token),
            user_id=user_id,
            created_at=now,
            expires_at=now + LIFETIME,
            last_seen_at=now,
            address=address,
        )
    )


def user_of(session: Session, token: str, now: datetime) -> tuple[User, datetime] | None:
    """The user of a session that is in force, and when it was last seen."""
    found = session.execute(
        select(UserRow, SessionRow.last_seen_at)
        .join(SessionRow, SessionRow.user_id == UserRow.id)
        .where(SessionRow.token_hash == token_hash(token))
        .where(SessionRow.expires_at > now, SessionRow.last_seen_at > now - IDLE_LIMIT)
    ).first()
    if found is None:
        return None
    row, seen = found
    return User(id=row.id, username=row.username, is_admin=row.is_admin, created_at=row.created_at), seen


def seen(session: Session, token: str, now: datetime) -> None:
    row = session.get(SessionRow, token_hash(token))
    if row:
        row.last_seen_at = now


def end(session: Session, token: str) -> None:
    session.execute(delete(SessionRow).where(SessionRow.token_hash == token_hash(token)))


def used_from(session: Session, user_id: int, address: str, now: datetime, /) -> bool:
    """Whether this user has a session in force from that address: guesses elsewhere must not lock them out there."""
    return (
        session.scalar(
            select(SessionRow.user_id)
            .where(SessionRow.user_id == user_id, SessionRow.address == address, SessionRow.expires_at > now)
            .limit(1)
        )
        is not None
    )


def sweep(session: Session, now: datetime) -> int:
    """Drop what is no longer in force; the number dropped."""
    gone = session.execute(
        delete(SessionRow).where((SessionRow.expires_at <= now) | (SessionRow.last_seen_at <= now - IDLE_LIMIT))
    )
    return int(getattr(gone, "rowcount", 0))
