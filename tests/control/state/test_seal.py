"""Tokens and secrets on the disk."""

from __future__ import annotations

import base64
import json
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from fleetproxy.control.state import Store, StoreBroken, notices, seal, servers, upgrade, users
from fleetproxy.control.state.notices import Chat, Webhook
from fleetproxy.control.state.seal import KEY_FILE, Seal
from fleetproxy.control.state.tables import ServerRow, TelegramRow, WebhookRow
from fleetproxy.settings import Server

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
TOKEN, SECRET, SERVER_KEY = "123456:canary-of-a-token", "canary-of-a-secret", "canary-of-a-servers-key"


KEYS = st.binary(min_size=32, max_size=32).map(base64.urlsafe_b64encode)
KEY = base64.urlsafe_b64encode(b"k" * 32)


@given(st.text(), KEYS, KEYS)
def test_what_is_sealed_is_opened_by_its_own_key_alone(text: str, key: bytes, other: bytes) -> None:
    closed = Seal(key).close(text)
    assert Seal(key).open(closed) == text
    assert Seal(key).close(text) != closed
    assert (Seal(other).open(closed) is None) == (other != key)


@given(st.text(max_size=40), st.data())
def test_what_was_changed_is_not_opened(text: str, data: st.DataObject) -> None:
    closed = Seal(KEY).close(text)
    place = data.draw(st.integers(len(seal.PREFIX), len(closed) - 1))
    letter = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    changed = closed[:place] + letter + closed[place + 1 :]
    assert Seal(KEY).open(changed) in ((text,) if same_bytes(changed, closed) else (None,))
    assert Seal(KEY).open(closed[:-4]) is None


def same_bytes(one: str, other: str) -> bool:
    """Base64 has several spellings of the same bytes at its end."""
    try:
        raw = [base64.b64decode(text[len(seal.PREFIX) :], altchars=b"-_", validate=True) for text in (one, other)]
    except ValueError:
        return False
    return raw[0] == raw[1]


def kept(store: Store) -> tuple[str | None, ...]:
    chat, hook = store.read_now(notices.chat, 1), store.read_now(notices.webhook)
    return chat and chat.bot_token, hook and hook.secret, server_of(store).api_key


def server_of(store: Store) -> Server:
    entry = store.read_now(servers.get, 1)
    assert entry
    assert entry.server
    return entry.server


def keep(store: Store) -> None:
    store.write_now(users.create, "ann", "hash", True, NOW)
    store.write_now(notices.set_chat, Chat(1, TOKEN, "42", True), NOW)
    store.write_now(notices.set_webhook, Webhook("http://x", SECRET, (), True), NOW)
    store.write_now(servers.add, Server(name="gpu1", url="http://gpu1:11434", api_key=SERVER_KEY), NOW)


def test_no_file_but_the_key_opens_a_token(tmp_path: Path) -> None:
    store = Store.open_now(tmp_path / "state.db")
    keep(store)
    upgrade.copy_database(tmp_path / "state.db", tmp_path / "copy.db")
    for path in tmp_path.iterdir():
        assert not [word for word in (TOKEN, SECRET, SERVER_KEY) if word.encode() in path.read_bytes()], path
    assert kept(store) == (TOKEN, SECRET, SERVER_KEY)
    store.close_now()
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    again = Store.open_now(tmp_path / "state.db")
    assert kept(again) == (TOKEN, SECRET, SERVER_KEY)
    again.close_now()


def test_what_an_earlier_version_kept_is_sealed_at_start(tmp_path: Path) -> None:
    store = Store.open_now(tmp_path / "state.db")
    keep(store)

    def as_before(session: Session) -> None:
        chat, hook, server = session.get(TelegramRow, 1), session.get(WebhookRow, 1), session.get(ServerRow, 1)
        assert chat
        assert hook
        assert server
        chat.bot_token, hook.secret = TOKEN, SECRET
        server.config = {**(server.config or {}), "api_key": SERVER_KEY}

    store.write_now(as_before)
    assert kept(store) == (TOKEN, SECRET, SERVER_KEY)
    store.close_now()
    again = Store.open_now(tmp_path / "state.db")
    assert kept(again) == (TOKEN, SECRET, SERVER_KEY)
    again.close_now()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        rows = connection.execute("SELECT bot_token FROM user_telegram_configs UNION SELECT secret FROM webhooks")
        assert all(row[0].startswith(seal.PREFIX) for row in rows.fetchall())
        (config,) = connection.execute("SELECT config FROM servers").fetchone()
        assert json.loads(config)["api_key"].startswith(seal.PREFIX)


def test_a_change_of_something_else_keeps_a_servers_key(tmp_path: Path) -> None:
    store = Store.open_now(tmp_path / "state.db")
    keep(store)
    store.write_now(servers.change, 1, {"vram_gb": 24.0})
    assert (server_of(store).vram_gb, server_of(store).api_key) == (24.0, SERVER_KEY)
    store.write_now(servers.change, 1, {"api_key": None})
    assert server_of(store).api_key is None
    store.close_now()


def test_a_lost_key_costs_the_tokens_alone(tmp_path: Path) -> None:
    store = Store.open_now(tmp_path / "state.db")
    keep(store)
    store.close_now()
    (tmp_path / KEY_FILE).write_bytes(b"short")
    again = Store.open_now(tmp_path / "state.db")
    assert kept(again) == ("", "", None)
    assert [user.username for user in again.read_now(users.all_users)] == ["ann"]
    again.write_now(notices.set_chat, Chat(1, TOKEN, "42", True), NOW)
    assert kept(again) == (TOKEN, "", None)
    again.close_now()


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(StoreBroken, match=KEY_FILE):
        Store.open_now(tmp_path / "state.db")
