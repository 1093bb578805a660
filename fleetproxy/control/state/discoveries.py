"""Model names of the fleet, and when and where each was seen first."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fleetproxy.control.state.tables import DiscoveryRow

#: Names kept; the oldest make room.
MAX_NAMES = 5000
KEPT = timedelta(days=90)


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    id: int = 0
    model_name: str
    model_family: str | None = None
    families: list[str] = []
    parameter_size: str | None = None
    quantization: str | None = None
    model_size_bytes: int = 0
    first_seen_server_name: str
    discovered_at: datetime


def names(session: Session) -> set[str]:
    return set(session.scalars(select(DiscoveryRow.model_name)))


def note(session: Session, found: Iterable[Discovery]) -> None:
    """Write down names not known yet."""
    known = names(session)
    for one in found:
        if one.model_name in known:
            continue
        known.add(one.model_name)
        fields = msgspec.structs.asdict(one)
        del fields["id"]
        session.add(DiscoveryRow(**fields))
    session.flush()
    oldest = select(DiscoveryRow.id).order_by(DiscoveryRow.discovered_at.desc(), DiscoveryRow.id.desc())
    session.execute(delete(DiscoveryRow).where(DiscoveryRow.id.in_(oldest.offset(MAX_NAMES))))


def newest(session: Session, limit: int) -> list[Discovery]:
    rows = session.scalars(
        select(DiscoveryRow).order_by(DiscoveryRow.discovered_at.desc(), DiscoveryRow.id.desc()).limit(limit)
    )
    return [Discovery(**{field: getattr(row, field) for field in Discovery.__struct_fields__}) for row in rows]


def forget(session: Session, now: datetime, still_there: Iterable[str]) -> None:
    """Drop names that are old and that no server has any more."""
    keep = set(still_there)
    for row in session.scalars(select(DiscoveryRow).where(DiscoveryRow.discovered_at < now - KEPT)):
        if row.model_name not in keep:
            session.delete(row)
