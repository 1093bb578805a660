"""Who may dial in as a worker: decided from the upgrade request and the register message alone."""

from __future__ import annotations

import hmac
from collections.abc import Collection

import msgspec


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """`auth.client_key`, `auth.client_http_roles`, `auth.strict_client_key`."""

    client_key: str | None = None
    roles: tuple[str, ...] = ()
    #: A key shown where none is configured is a mistake of somebody, and refused.
    strict: bool = True


def key_matches(rules: Rules, shown: str) -> bool:
    """Whether this is the configured key. Takes as long whatever was shown."""
    return bool(rules.client_key) and hmac.compare_digest(shown.encode(), (rules.client_key or "").encode())


def authorised(rules: Rules, *, header_key: str, message_key: str, roles: Collection[str]) -> bool:
    """Whether a worker with these credentials may register.

    `header_key` is the bearer token of the upgrade, `message_key` the register message's, "" for none; `roles` are
    those of a believed X-User-Roles header.
    """
    if not rules.client_key:
        return not (rules.strict and (header_key or message_key))
    if any(role in rules.roles for role in roles):
        return True
    return any(key_matches(rules, shown) for shown in (header_key, message_key) if shown)


def bearer(value: bytes | None) -> str:
    """The token of an Authorization header, "" when there is none."""
    if value is None or value[:7].lower() != b"bearer ":
        return ""
    return value[7:].decode("latin-1").strip()


def role_list(value: bytes | None) -> tuple[str, ...]:
    """The roles of an X-User-Roles header: comma-separated, trimmed."""
    if value is None:
        return ()
    return tuple(role.strip() for role in value.decode("latin-1").split(",") if role.strip())
