"""The tables of the operational state, as SQLAlchemy sees them. Changing one needs a migration beside it.

Plain types only, so that Postgres can follow: instants are UTC without a zone in the file and aware in Python, JSON is
text the engine understands, numbers of rows people refer to (users, servers, jobs) are never given out twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, ForeignKey, Index, LargeBinary, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime; stored without its zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    #: Named constraints: migrations can only change what has a name.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Instant, bytes: LargeBinary}


NEVER_REUSED = {"sqlite_autoincrement": True}


class UserRow(Table):
    __tablename__ = "users"
    __table_args__ = NEVER_REUSED

    id: Mapped[int] = mapped_column(primary_key=True)
    #: Trimmed and lower-cased.
    username: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    is_admin: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class SessionRow(Table):
    __tablename__ = "sessions"

    #: SHA-256 of the cookie's value; the value itself is kept nowhere.
    token_hash: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    last_seen_at: Mapped[datetime]
    address: Mapped[str | None]


class ApiKeyRow(Table):
    __tablename__ = "api_keys"
    __table_args__ = NEVER_REUSED

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    #: SHA-256 of the key; the key itself is shown once and kept nowhere.
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    #: The key's first 8 characters, to tell keys apart.
    prefix: Mapped[str]
    label: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    max_in_flight: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class ServerRow(Table):
    __tablename__ = "servers"
    __table_args__ = NEVER_REUSED

    id: Mapped[int] = mapped_column(primary_key=True)
    #: Lower-cased name: pins and people do not tell `GPU1` from `gpu1`.
    name_key: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    #: "file" (configuration) or "api".
    origin: Mapped[str]
    #: Fields of `settings.Server` for origin "api"; None for "file".
    config: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: Maintenance switch; None: as the configuration says.
    is_disabled: Mapped[bool | None]
    is_draining: Mapped[bool]
    created_at: Mapped[datetime]
    #: Taken out of the fleet; the row stays, so that the number keeps its history.
    removed_at: Mapped[datetime | None]


class OptionRow(Table):
    """A fleet-wide option: one JSON value under a name."""

    __tablename__ = "fleet_settings"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)
    updated_at: Mapped[datetime]


class JobRow(Table):
    __tablename__ = "scheduled_jobs"
    __table_args__ = NEVER_REUSED

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str | None]
    source_identifier: Mapped[str]
    cron_expression: Mapped[str]
    timezone: Mapped[str]
    target_model: Mapped[str]
    preferred_server_id: Mapped[int | None] = mapped_column(ForeignKey("servers.id", ondelete="SET NULL"))
    expected_duration_ms: Mapped[int]
    is_enabled: Mapped[bool]
    #: What we do at each time; "none": the job is only a plan of somebody else's work.
    action: Mapped[str]
    action_options: Mapped[dict[str, Any]] = mapped_column(JSON)
    #: "skip" | "wait" | "allow": a run is due while the last one still goes on.
    overlap: Mapped[str]
    #: A run found due later than this is "missed" and not caught up.
    misfire_grace_s: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class JobRunRow(Table):
    __tablename__ = "job_runs"
    __table_args__ = (
        #: Each time of a job is run once, whatever happens to the process.
        UniqueConstraint("job_id", "slot_at"),
        Index(None, "job_id", "started_at"),
        NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("scheduled_jobs.id", ondelete="CASCADE"))
    #: The time it was due; None when somebody ran it by hand.
    slot_at: Mapped[datetime | None]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    #: "running" | "ok" | "failed" | "skipped" | "missed" | "aborted".
    outcome: Mapped[str]
    detail: Mapped[str | None]
    triggered_by: Mapped[str]


class SubscriptionRow(Table):
    __tablename__ = "user_server_subscriptions"
    __table_args__ = (UniqueConstraint("user_id", "server_id"), NEVER_REUSED)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    server_id: Mapped[int] = mapped_column(ForeignKey("servers.id", ondelete="CASCADE"), index=True)
    notify_offline: Mapped[bool]
    notify_online: Mapped[bool]
    notify_reboot: Mapped[bool]
    created_at: Mapped[datetime]


class TelegramRow(Table):
    __tablename__ = "user_telegram_configs"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    #: Sealed (`state.seal`). Write-only: the API shows its last characters at most.
    bot_token: Mapped[str]
    chat_id: Mapped[str]
    is_enabled: Mapped[bool]
    created_at: Mapped[datetime]


class WebhookRow(Table):
    __tablename__ = "webhooks"
    __table_args__ = NEVER_REUSED

    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str]
    #: Signs each call (HMAC-SHA256). Sealed; write-only.
    secret: Mapped[str | None]
    #: Kinds of notice sent; empty means all.
    events: Mapped[list[str]] = mapped_column(JSON)
    is_enabled: Mapped[bool]
    created_at: Mapped[datetime]


class ActionRow(Table):
    """A change somebody made to a server's models: kept for ever, also when the server is gone."""

    __tablename__ = "management_actions"
    __table_args__ = NEVER_REUSED

    id: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str]
    model_name: Mapped[str]
    server_id: Mapped[int]
    server_name: Mapped[str]
    #: "pending" | "success" | "failed".
    status: Mapped[str]
    detail: Mapped[str | None]
    triggered_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]


class DiscoveryRow(Table):
    """A model name seen in the fleet for the first time."""

    __tablename__ = "model_discoveries"
    __table_args__ = NEVER_REUSED

    id: Mapped[int] = mapped_column(primary_key=True)
    model_name: Mapped[str] = mapped_column(unique=True)
    model_family: Mapped[str | None]
    families: Mapped[list[str]] = mapped_column(JSON)
    parameter_size: Mapped[str | None]
    quantization: Mapped[str | None]
    model_size_bytes: Mapped[int] = mapped_column(BigInteger)
    first_seen_server_name: Mapped[str]
    discovered_at: Mapped[datetime] = mapped_column(index=True)


class SavedQueryRow(Table):
    """SQL that an administrator keeps."""

    __tablename__ = "saved_queries"
    __table_args__ = (Index(None, "user_id", "name"), NEVER_REUSED)

    id: Mapped[int] = mapped_column(primary_key=True)
    #: None: its owner is gone, or was a key that belongs to nobody.
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    name: Mapped[str]
    description: Mapped[str | None]
    sql: Mapped[str]
    is_shared: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
