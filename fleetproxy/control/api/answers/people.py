"""Users, their keys and sessions, and what they are told of."""

from __future__ import annotations

from typing import Literal

from fleetproxy.control.api.answers.base import Answer, At


class Member(Answer):
    """A user as login and setup give it."""

    id: int
    username: str
    is_admin: bool


class LoggedIn(Answer):
    user: Member


class Me(Member):
    """`apiKeyPrefix`: how the default key begins; null: there is none. Keys are shown when they are made, once."""

    api_key: None
    api_key_prefix: str | None
    created_at: At


class MeAnswer(Answer):
    """`user` is null while there are no users; then `needsSetup` is there."""

    user: Me | None
    needs_setup: Literal[True] | None = None
    #: Setting up from here needs the one-time token of the log.
    needs_token: bool | None = None


class User(Member):
    created_at: At


class Key(Answer):
    id: int
    user_id: int
    prefix: str
    label: str
    scopes: list[str]
    models: list[str] | None
    max_in_flight: int | None
    requests_per_minute: int | None
    created_at: At
    expires_at: At | None


class IssuedKey(Answer):
    """`apiKey` is shown this once."""

    api_key: str
    key: Key


class Chat(Answer):
    chat_id: str
    bot_token: str
    is_enabled: bool


class Subscription(Answer):
    id: int
    server_id: int
    server_name: str | None
    notify_offline: bool
    notify_online: bool
    notify_reboot: bool


class Hook(Answer):
    url: str
    secret: str | None
    events: list[str]
    is_enabled: bool
