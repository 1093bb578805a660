"""The servers' numbers and switches, and the servers that were added through the API.

A number belongs to a name for ever: history hangs on it. A server of the configuration file is registered each time
control starts; one added through the API lives here whole. When both have a name, the file wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetproxy.control.state.seal import opened, sealed
from fleetproxy.control.state.tables import ServerRow
from fleetproxy.errors import Conflict, PathUnknown
from fleetproxy.settings import Server

MAX_SERVERS = 1000


class ServerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A server of the fleet as the state knows it."""

    id: int
    name: str
    origin: Literal["file", "api"]
    #: The whole server for origin "api"; None for "file": its settings are in the file.
    server: Server | None
    #: None: as the configuration's `enabled` says.
    is_disabled: bool | None
    is_draining: bool


def register(session: Session, names: Iterable[str], now: datetime) -> dict[str, int]:
    """Give the configured servers their numbers: name -> id. Names of the file take over those of the API."""
    wanted = {name.lower(): name for name in names}
    rows = {row.name_key: row for row in session.scalars(select(ServerRow))}
    for key, row in rows.items():
        if row.origin == "file" and key not in wanted and row.removed_at is None:
            row.removed_at = now
    for key, name in wanted.items():
        known = rows.get(key)
        if known is None:
            rows[key] = row = _new(name, "file", None, now)
            session.add(row)
        else:
            known.name, known.origin, known.config, known.removed_at = name, "file", None, None
    session.flush()
    return {name: rows[key].id for key, name in wanted.items()}


def entries(session: Session) -> list[ServerEntry]:
    """Every server that is in the fleet, in the order of their numbers."""
    rows = session.scalars(select(ServerRow).where(ServerRow.removed_at.is_(None)).order_by(ServerRow.id))
    return [_value(session, row) for row in rows]


def get(session: Session, server_id: int) -> ServerEntry | None:
    row = session.get(ServerRow, server_id)
    return _value(session, row) if row and row.removed_at is None else None


def add(
    session: Session, server: Server, now: datetime, *, is_disabled: bool | None = None, is_draining: bool = False
) -> ServerEntry:
    """Raises Conflict when a server of that name exists."""
    row = session.scalar(select(ServerRow).where(ServerRow.name_key == server.name.lower()))
    if row is not None and row.removed_at is None:
        raise Conflict(
            f"Server '{server.name}' is defined in the configuration file; change it there"
            if row.origin == "file"
            else f"Server '{server.name}' already exists"
        )
    if len(entries(session)) >= MAX_SERVERS:
        raise Conflict(f"A fleet may have {MAX_SERVERS} servers")
    config = _kept(session, server)
    if row is None:
        row = _new(server.name, "api", config, now)
        session.add(row)
    else:
        row.name, row.origin, row.config, row.removed_at = server.name, "api", config, None
    row.is_disabled, row.is_draining = is_disabled, is_draining
    session.flush()
    return _value(session, row)


def change(
    session: Session,
    server_id: int,
    fields: Mapping[str, Any] | None = None,
    *,
    is_disabled: bool | None = None,
    is_draining: bool | None = None,
) -> ServerEntry:
    """Change `fields` of `settings.Server`, of an API-added server only; maintenance and draining, of either origin.

    Its name stays. Raises PathUnknown, Conflict (defined in the file); then nothing is changed.
    """
    row = _api_row(session, server_id) if fields else _live(session, server_id)
    if fields:
        known = msgspec.to_builtins(_server(session, row.config or {}))
        row.config = _kept(session, msgspec.convert({**known, **fields, "name": row.name}, Server))
    if is_disabled is not None:
        row.is_disabled = is_disabled
    if is_draining is not None:
        row.is_draining = is_draining
    session.flush()
    return _value(session, row)


def remove(session: Session, server_id: int, now: datetime) -> ServerEntry:
    """Take an API-added server out of the fleet; its number keeps its history."""
    row = _api_row(session, server_id)
    entry = _value(session, row)
    row.removed_at, row.config = now, None
    session.flush()
    return entry


def _live(session: Session, server_id: int) -> ServerRow:
    row = session.get(ServerRow, server_id)
    if row is None or row.removed_at is not None:
        raise PathUnknown("Server not found")
    return row


def _api_row(session: Session, server_id: int) -> ServerRow:
    row = _live(session, server_id)
    if row.origin == "file":
        raise Conflict(f"Server '{row.name}' is defined in the configuration file; change it there")
    return row


def _new(name: str, origin: str, config: dict[str, Any] | None, now: datetime) -> ServerRow:
    return ServerRow(
        name_key=name.lower(),
        name=name,
        origin=origin,
        config=config,
        is_disabled=None,
        is_draining=False,
        created_at=now,
        removed_at=None,
    )


def _kept(session: Session, server: Server) -> dict[str, Any]:
    """A server's fields as they are kept: its key sealed."""
    config: dict[str, Any] = msgspec.to_builtins(server)
    return {**config, "api_key": sealed(session, server.api_key)} if server.api_key else config


def _server(session: Session, config: dict[str, Any]) -> Server:
    """The other way round; a key that cannot be read any more is none."""
    if config.get("api_key"):
        config = {**config, "api_key": opened(session, config["api_key"]) or None}
    return msgspec.convert(config, Server)


def _value(session: Session, row: ServerRow) -> ServerEntry:
    return ServerEntry(
        id=row.id,
        name=row.name,
        origin="file" if row.origin == "file" else "api",
        server=None if row.config is None else _server(session, row.config),
        is_disabled=row.is_disabled,
        is_draining=row.is_draining,
    )
