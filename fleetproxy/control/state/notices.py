"""Who is told of what: Telegram chats of users, what they subscribed to, the fleet's webhook."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fleetproxy.control.state.seal import opened, sealed
from fleetproxy.control.state.tables import ServerRow, SubscriptionRow, TelegramRow, WebhookRow
from fleetproxy.errors import BadRequest

Event = Literal["offline", "online", "reboot"]


class Chat(msgspec.Struct, frozen=True):
    """Where a user hears from us. `bot_token` is a secret."""

    user_id: int
    bot_token: str
    chat_id: str
    is_enabled: bool

    def __repr__(self) -> str:
        return f"Chat(user_id={self.user_id}, chat_id={self.chat_id!r}, is_enabled={self.is_enabled})"


class Subscription(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    id: int = 0
    server_id: int
    server_name: str = ""
    notify_offline: bool
    notify_online: bool
    notify_reboot: bool


class Webhook(msgspec.Struct, frozen=True):
    """Where the fleet's notices are posted. `secret` signs them."""

    url: str
    secret: str | None
    events: tuple[str, ...]
    is_enabled: bool

    def __repr__(self) -> str:
        return f"Webhook(events={self.events}, is_enabled={self.is_enabled})"


def chat(session: Session, user_id: int) -> Chat | None:
    row = session.get(TelegramRow, user_id)
    return _chat(session, row) if row else None


def set_chat(session: Session, wanted: Chat, now: datetime) -> None:
    row = session.get(TelegramRow, wanted.user_id)
    if row is None:
        row = TelegramRow(user_id=wanted.user_id, created_at=now)
        session.add(row)
    row.bot_token = sealed(session, wanted.bot_token)
    row.chat_id, row.is_enabled = wanted.chat_id, wanted.is_enabled


def drop_chat(session: Session, user_id: int) -> None:
    session.execute(delete(TelegramRow).where(TelegramRow.user_id == user_id))


def subscriptions(session: Session, user_id: int) -> list[Subscription]:
    rows = session.execute(
        select(SubscriptionRow, ServerRow.name)
        .join(ServerRow, ServerRow.id == SubscriptionRow.server_id)
        .where(SubscriptionRow.user_id == user_id, ServerRow.removed_at.is_(None))
        .order_by(SubscriptionRow.server_id)
    )
    return [
        Subscription(
            id=row.id,
            server_id=row.server_id,
            server_name=name,
            notify_offline=row.notify_offline,
            notify_online=row.notify_online,
            notify_reboot=row.notify_reboot,
        )
        for row, name in rows
    ]


def subscribe(session: Session, user_id: int, wanted: Sequence[Subscription], now: datetime) -> None:
    """Replace all of a user's subscriptions, or none: raises BadRequest for servers that do not exist."""
    by_server = {one.server_id: one for one in wanted}
    known = set(session.scalars(select(ServerRow.id).where(ServerRow.removed_at.is_(None))))
    unknown = sorted(set(by_server) - known)
    if unknown:
        raise BadRequest(f"Invalid subscriptions payload: no server has the id {unknown[0]}")
    session.execute(delete(SubscriptionRow).where(SubscriptionRow.user_id == user_id))
    for one in by_server.values():
        session.add(
            SubscriptionRow(
                user_id=user_id,
                server_id=one.server_id,
                notify_offline=one.notify_offline,
                notify_online=one.notify_online,
                notify_reboot=one.notify_reboot,
                created_at=now,
            )
        )
    session.flush()


_WISHES = {
    "offline": SubscriptionRow.notify_offline,
    "online": SubscriptionRow.notify_online,
    "reboot": SubscriptionRow.notify_reboot,
}


def listeners(session: Session, server_id: int, event: Event) -> list[Chat]:
    """Chats of the users who want to hear of this."""
    rows = session.scalars(
        select(TelegramRow)
        .join(SubscriptionRow, SubscriptionRow.user_id == TelegramRow.user_id)
        .where(SubscriptionRow.server_id == server_id, TelegramRow.is_enabled, _WISHES[event])
        .order_by(TelegramRow.user_id)
    )
    return [_chat(session, row) for row in rows]


def webhook(session: Session) -> Webhook | None:
    row = session.scalar(select(WebhookRow).order_by(WebhookRow.id).limit(1))
    if row is None:
        return None
    secret = None if row.secret is None else opened(session, row.secret)
    return Webhook(row.url, secret, tuple(row.events), row.is_enabled)


def set_webhook(session: Session, wanted: Webhook, now: datetime) -> None:
    row = session.scalar(select(WebhookRow).order_by(WebhookRow.id).limit(1))
    if row is None:
        row = WebhookRow(created_at=now)
        session.add(row)
    row.secret = None if wanted.secret is None else sealed(session, wanted.secret)
    row.url, row.events, row.is_enabled = wanted.url, list(wanted.events), wanted.is_enabled


def drop_webhook(session: Session) -> None:
    session.execute(delete(WebhookRow))


def anybody(session: Session) -> bool:
    """Whether there is anybody to tell: a chat or a webhook that is on."""
    return (
        session.scalar(select(TelegramRow.user_id).where(TelegramRow.is_enabled).limit(1)) is not None
        or session.scalar(select(WebhookRow.id).where(WebhookRow.is_enabled).limit(1)) is not None
    )


def _chat(session: Session, row: TelegramRow) -> Chat:
    return Chat(row.user_id, opened(session, row.bot_token), row.chat_id, row.is_enabled)
