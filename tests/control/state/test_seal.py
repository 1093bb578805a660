"""Tokens and secrets on the disk."""

from __future__ import annotations

import base64
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from fleetproxy.control.state import Store, StoreBroken, notices, seal, upgrade, users
from fleetproxy.control.state.notices import Chat, Webhook
from fleetproxy.control.state.seal import KEY_FILE, Seal
from fleetproxy.control.state.tables import TelegramRow, WebhookRow

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
TOKEN, SECRET = "123456:canary-of-a-token", "canary-of-a-secret"


@given(st.text(), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_what_is_sealed_is_opened_by_its_own_key_alone(text: str, key: bytes, other: bytes) -> None:
    closed = Seal(key).close(text)
    assert Seal(key).open(closed) == text
    assert Seal(key).close(text) != closed
    assert (Seal(other).open(closed) is None) == (other != key)


@given(st.text(max_size=40), st.data())
def test_what_was_changed_is_not_opened(text: str, data: st.DataObject) -> None:
    closed = Seal(b"k" * 32).close(text)
    place = data.draw(st.integers(len(seal.PREFIX), len(closed) - 1))
    letter = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    changed = closed[:place] + letter + closed[place + 1 :]
    assert Seal(b"k" * 32).open(changed) in ((text,) if same_bytes(changed, closed) else (None,))
    assert Seal(b"k" * 32).open(closed[:-4]) is None


def same_bytes(one: str, other: str) -> bool:
    """Base64 has several spellings of the same bytes at its end."""
    try:
        return base64.b64decode(one[len(seal.PREFIX) :], validate=True) == base64.b64decode(other[len(seal.PREFIX) :])
    except ValueError:
        return False


def kept(store: Store) -> tuple[str | None, str | None]:
    chat, hook = store.read_now(notices.chat, 1), store.read_now(notices.webhook)
    return chat and chat.bot_token, hook and hook.secret


def keep(store: Store) -> None:
    store.write_now(users.create, "ann", "hash", True, NOW)
    store.write_now(notices.set_chat, Chat(1, TOKEN, "42", True), NOW)
    store.write_now(notices.set_webhook, Webhook("http://x", SECRET, (), True), NOW)


def test_no_file_but_the_key_opens_a_token(tmp_path: Path) -> None:
    store = Store.open_now(tmp_path / "state.db")
    keep(store)
    upgrade.copy_database(tmp_path / "state.db", tmp_path / "copy.db")
    for path in tmp_path.iterdir():
        assert not [word for word in (TOKEN, SECRET) if word.encode() in path.read_bytes()], path
    assert kept(store) == (TOKEN, SECRET)
    store.close_now()
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    again = Store.open_now(tmp_path / "state.db")
    assert kept(again) == (TOKEN, SECRET)
    again.close_now()


def test_what_an_earlier_version_kept_is_sealed_at_start(tmp_path: Path) -> None:
    store = Store.open_now(tmp_path / "state.db")
    keep(store)

    def as_before(session: Session) -> None:
        chat, hook = session.get(TelegramRow, 1), session.get(WebhookRow, 1)
        assert chat
        assert hook
        chat.bot_token, hook.secret = TOKEN, SECRET

    store.write_now(as_before)
    assert kept(store) == (TOKEN, SECRET)
    store.close_now()
    again = Store.open_now(tmp_path / "state.db")
    assert kept(again) == (TOKEN, SECRET)
    again.close_now()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        rows = connection.execute("SELECT bot_token FROM user_telegram_configs UNION SELECT secret FROM webhooks")
        assert all(row[0].startswith(seal.PREFIX) for row in rows.fetchall())


def test_a_lost_key_costs_the_tokens_alone(tmp_path: Path) -> None:
    store = Store.open_now(tmp_path / "state.db")
    keep(store)
    store.close_now()
    (tmp_path / KEY_FILE).write_bytes(b"short")
    again = Store.open_now(tmp_path / "state.db")
    assert kept(again) == ("", "")
    assert [user.username for user in again.read_now(users.all_users)] == ["ann"]
    again.write_now(notices.set_chat, Chat(1, TOKEN, "42", True), NOW)
    assert kept(again) == (TOKEN, "")
    again.close_now()


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(StoreBroken, match=KEY_FILE):
        Store.open_now(tmp_path / "state.db")
