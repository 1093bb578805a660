"""Secrets that have to be sent again, tokens of chats and the webhook's secret, are kept sealed, with a key that lies
beside the database: a copy of the database alone (a backup, say) gives none of them away.

The standard library has no cipher; its hashes make one in the usual way: SHAKE-256 of key and nonce as the stream,
keyed BLAKE2b over nonce and text as the seal, checked first. A nonce is used once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetproxy import log
from fleetproxy.control.state.tables import TelegramRow, WebhookRow

_log = log.get("control.state")

KEY_FILE = "state.key"
KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 16, 32
#: What sealed texts begin with.
PREFIX = "sealed:1:"
#: Where a session of the store has its seal.
_INFO = "seal"


class Seal:
    def __init__(self, key: bytes) -> None:
        self._stream_key, self._tag_key = (hashlib.blake2b(key, person=word).digest() for word in (b"stream", b"tag"))

    @classmethod
    def beside(cls, database: Path) -> Seal:
        """With the key in the database's folder, made at first. Raises OSError."""
        path = database.with_name(KEY_FILE)
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) != KEY_BYTES:
            key = secrets.token_bytes(KEY_BYTES)
            _write(path, key)
        return cls(key)

    def close(self, text: str) -> str:
        nonce = secrets.token_bytes(NONCE_BYTES)
        hidden = self._mixed(nonce, text.encode())
        return PREFIX + base64.b64encode(nonce + self._tag(nonce + hidden) + hidden).decode()

    def open(self, sealed: str) -> str | None:
        """The text; None when it was not sealed with this key, or is damaged."""
        try:
            raw = base64.b64decode(sealed.removeprefix(PREFIX), validate=True)
        except ValueError:
            return None
        nonce, tag, hidden = (
            raw[:NONCE_BYTES],
            raw[NONCE_BYTES : NONCE_BYTES + TAG_BYTES],
            raw[NONCE_BYTES + TAG_BYTES :],
        )
        if not hmac.compare_digest(tag, self._tag(nonce + hidden)):
            return None
        return self._mixed(nonce, hidden).decode()

    def _mixed(self, nonce: bytes, text: bytes) -> bytes:
        stream = hashlib.shake_256(self._stream_key + nonce).digest(len(text))
        return bytes(one ^ other for one, other in zip(text, stream, strict=True))

    def _tag(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, key=self._tag_key, digest_size=TAG_BYTES).digest()


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
    if text is None:
        _log.error("a token or secret cannot be read: %s is not the one it was sealed with; set it anew", KEY_FILE)
    return text or ""


def seal_all(session: Session) -> None:
    """Seal what was kept as it is by an earlier version."""
    for chat in session.scalars(select(TelegramRow).where(~TelegramRow.bot_token.startswith(PREFIX))):
        chat.bot_token = sealed(session, chat.bot_token)
    for hook in session.scalars(select(WebhookRow).where(~WebhookRow.secret.startswith(PREFIX))):
        hook.secret = sealed(session, hook.secret or "")


def _write(path: Path, key: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
