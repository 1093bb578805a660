"""Secrets that have to be sent again are kept sealed (Fernet: AES-128-CBC and HMAC-SHA256): keys of servers, tokens of
chats, the webhook's secret. The key lies beside the database: a copy of that alone (a backup, say) gives none away.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetproxy import log
from fleetproxy.control.state.tables import ServerRow, TelegramRow, WebhookRow

_log = log.get("control.state")

KEY_FILE = "state.key"
#: What sealed texts begin with.
PREFIX = "sealed:1:"
#: Where a session of the store has its seal.
_INFO = "seal"


class Seal:
    """`key`: 32 bytes in URL-safe Base64. Raises ValueError for anything else."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)
        #: What cannot be opened has been said: once is enough.
        self.said = False

    @classmethod
    def beside(cls, database: Path) -> Seal:
        """With the key in the database's folder, made at first, and anew when it is none. Raises OSError."""
        path = database.with_name(KEY_FILE)
        try:
            return cls(path.read_bytes())
        except (FileNotFoundError, ValueError):
            key = Fernet.generate_key()
            _write(path, key)
            return cls(key)

    def close(self, text: str) -> str:
        return PREFIX + self._fernet.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str | None:
        """The text; None when it was not sealed with this key, or is damaged."""
        try:
            return self._fernet.decrypt(sealed.removeprefix(PREFIX)).decode()
        except InvalidToken:
            return None


def info(seal: Seal | None) -> dict[str, Seal | None]:
    """For a session of the store. Without a seal (the state lives in a server) texts stay as they are."""
    return {_INFO: seal}


def sealed(session: Session, text: str) -> str:
    """A secret as it is kept."""
    seal = session.info.get(_INFO)
    return text if seal is None else str(seal.close(text))


def opened(session: Session, kept: str) -> str:
    """A secret that is kept; "" when it cannot be read any more, which is said."""
    seal = session.info.get(_INFO)
    if seal is None or not kept.startswith(PREFIX):
        return kept
    text: str | None = seal.open(kept)
    if text is None and not seal.said:
        seal.said = True
        _log.error(
            "keys of servers, Telegram tokens or the webhook's secret cannot be read: %s is not the one they were "
            "sealed with; bring it back, or set them anew",
            KEY_FILE,
        )
    return text or ""


def seal_all(session: Session) -> None:
    """Seal what was kept as it is by an earlier version."""
    for chat in session.scalars(select(TelegramRow).where(~TelegramRow.bot_token.startswith(PREFIX))):
        chat.bot_token = sealed(session, chat.bot_token)
    for hook in session.scalars(select(WebhookRow).where(~WebhookRow.secret.startswith(PREFIX))):
        hook.secret = sealed(session, hook.secret or "")
    for server in session.scalars(select(ServerRow).where(ServerRow.config.is_not(None))):
        config = server.config or {}
        key = config.get("api_key")
        if key and not key.startswith(PREFIX):
            server.config = {**config, "api_key": sealed(session, key)}


def _write(path: Path, key: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
