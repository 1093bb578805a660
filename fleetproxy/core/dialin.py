"""Who may dial in as a worker, and as whom: decided from the upgrade request and the register message alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

import msgspec


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """`auth.client_key`, `[[client_keys]]`, `auth.client_http_roles`, `auth.strict_client_key`."""

    client_key: str | None = None
    #: Keys with a name: (name, SHA-256).
    named: tuple[tuple[str, bytes], ...] = ()
    roles: tuple[str, ...] = ()
    #: A key shown where none is configured is a mistake of somebody, and refused.
    strict: bool = True

    @property
    def ask(self) -> bool:
        """Somebody who dials in must show something."""
        return bool(self.client_key or self.named)


def key_owner(rules: Rules, shown: str) -> str | None:
    """Whose configured key this is: "" for the one that all share, a name; None for nobody's.

    Takes as long whatever was shown, and whoever has it.
    """
    found: str | None = None
    if rules.client_key and hmac.compare_digest(shown.encode(), rules.client_key.encode()):
        found = ""
    if rules.named:
        digest = hashlib.sha256(shown.encode()).digest()
        for name, known in rules.named:
            if hmac.compare_digest(digest, known):
                found = name
    return found


def owner(rules: Rules, *, header_key: str, message_key: str, roles: Collection[str]) -> str | None:
    """As whom a worker with these credentials comes in; None: not at all.

    `header_key` is the bearer token of the upgrade, `message_key` the register message's, "" for none; `roles` are
    those of a believed X-User-Roles header. "" is everybody, where nobody must show anything.
    """
    if not rules.ask:
        return None if rules.strict and (header_key or message_key) else ""
    for shown in (header_key, message_key):
        name = key_owner(rules, shown) if shown else None
        if name is not None:
            return f"key {name}" if name else "the client key"
    return next((f"role {role}" for role in rules.roles if role in roles), None)


def authorised(rules: Rules, *, header_key: str, message_key: str, roles: Collection[str]) -> bool:
    """Whether a worker with these credentials may register."""
    return owner(rules, header_key=header_key, message_key=message_key, roles=roles) is not None


def digest(key: str) -> bytes:
    """The SHA-256 of a configured key, given as itself or as `sha256:<hex>`."""
    hashed = key.lower().startswith("sha256:")
    return bytes.fromhex(key[7:]) if hashed else hashlib.sha256(key.encode()).digest()


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
