"""API keys: 64 hex characters (256 random bits), shown once, kept as SHA-256. A user may have several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fleetproxy.control.state.tables import ApiKeyRow, UserRow
from fleetproxy.control.state.users import User
from fleetproxy.core.table import Principal
from fleetproxy.errors import Conflict, PathUnknown

#: What a key opens: inference; reading the dashboard API; everything its owner may do there.
Scope = Literal["inference", "read", "manage"]
SCOPES: tuple[Scope, ...] = ("inference", "read", "manage")

MAX_PER_USER = 50
#: The key that `POST /api/users/:id/api-key` without a label makes anew each time.
DEFAULT_LABEL = "default"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A key without its secret part, as the API shows it."""

    id: int
    user_id: int
    prefix: str
    label: str
    scopes: list[str]
    models: list[str] | None
    max_in_flight: int | None
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None


def key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def create(
    session: Session,
    user_id: int,
    key: str,
    now: datetime,
    *,
    label: str = DEFAULT_LABEL,
    scopes: Sequence[Scope] = ("inference",),
    models: Sequence[str] | None = None,
    max_in_flight: int | None = None,
    requests_per_minute: int | None = None,
    expires_at: datetime | None = None,
) -> ApiKey:
    """Add a key. The default label replaces the key that had it; another label must be free (Conflict)."""
    if session.get(UserRow, user_id) is None:
        raise PathUnknown("User not found")
    old = session.scalar(select(ApiKeyRow).where(ApiKeyRow.user_id == user_id, ApiKeyRow.label == label))
    if old is not None:
        if label != DEFAULT_LABEL:
            raise Conflict(f"A key labelled '{label}' exists; delete it first or choose another label")
        session.delete(old)
        session.flush()
    if (session.scalar(select(func.count()).where(ApiKeyRow.user_id == user_id)) or 0) >= MAX_PER_USER:
        raise Conflict(f"A user may have {MAX_PER_USER} keys; delete some first")
    row = ApiKeyRow(
        user_id=user_id,
        key_hash=key_hash(key),
        prefix=key[:8],
        label=label,
        scopes=list(scopes),
        models=None if models is None else list(models),
        max_in_flight=max_in_flight,
        requests_per_minute=requests_per_minute,
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return _value(row)


def of_user(session: Session, user_id: int) -> list[ApiKey]:
    return [
        _value(row)
        for row in session.scalars(select(ApiKeyRow).where(ApiKeyRow.user_id == user_id).order_by(ApiKeyRow.id))
    ]


def revoke(session: Session, user_id: int, key_id: int) -> None:
    row = session.get(ApiKeyRow, key_id)
    if row is None or row.user_id != user_id:
        raise PathUnknown("API key not found")
    session.delete(row)


def holder(session: Session, key: str, now: datetime) -> tuple[User, frozenset[str]] | None:
    """Whose key this is and what it opens, if it is in force."""
    found = session.execute(
        select(UserRow, ApiKeyRow)
        .join(ApiKeyRow, ApiKeyRow.user_id == UserRow.id)
        .where(ApiKeyRow.key_hash == key_hash(key))
    ).first()
    if found is None or (found[1].expires_at is not None and found[1].expires_at <= now):
        return None
    user = found[0]
    return (
        User(id=user.id, username=user.username, is_admin=user.is_admin, created_at=user.created_at),
        frozenset(found[1].scopes),
    )


def principals(session: Session, now: datetime) -> dict[bytes, Principal]:
    """SHA-256 of each key that opens inference -> whom it stands for; for the snapshot."""
    rows = session.execute(select(ApiKeyRow, UserRow).join(UserRow, ApiKeyRow.user_id == UserRow.id))
    return {
        key.key_hash: Principal(
            name=user.username,
            key_prefix=key.prefix,
            user_id=user.id,
            max_in_flight=key.max_in_flight,
            requests_per_minute=key.requests_per_minute,
            models=None if key.models is None else frozenset(key.models),
            expires_at_s=None if key.expires_at is None else key.expires_at.timestamp(),
        )
        for key, user in rows
        if "inference" in key.scopes and (key.expires_at is None or key.expires_at > now)
    }


def _value(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        user_id=row.user_id,
        prefix=row.prefix,
        label=row.label,
        scopes=list(row.scopes),
        models=row.models,
        max_in_flight=row.max_in_flight,
        requests_per_minute=row.requests_per_minute,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
