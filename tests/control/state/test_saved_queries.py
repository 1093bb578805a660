from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from fleetproxy.control.state import Store, queries, upgrade, users
from fleetproxy.errors import Conflict, PathUnknown

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ANN, BEN, NOBODY = 1, 2, None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open_now(tmp_path / "state.db")
    store.write_now(users.create_first, "ann", "h", NOW)
    store.write_now(users.create, "ben", "h", True, NOW)
    yield store
    store.close_now()


def keep(store: Store, who: int | None, name: str, **values: object) -> queries.SavedQuery:
    given = {"name": name, "sql": "select 1", "description": None, "shared": False, **values}
    return store.write_now(queries.keep, who, NOW, **given)


def names(store: Store, who: int | None) -> list[str]:
    return [one.name for one in store.read_now(queries.visible, who)]


def test_everybody_sees_his_own_and_the_shared_ones(store: Store) -> None:
    keep(store, ANN, "Mine")
    keep(store, ANN, "everybody's", shared=True)
    keep(store, BEN, "ben's")
    # Nobody could find what belongs to nobody: it is shared.
    assert keep(store, NOBODY, "a key's").is_shared
    assert names(store, ANN) == ["a key's", "everybody's", "Mine"]
    assert names(store, BEN) == ["a key's", "ben's", "everybody's"]
    assert names(store, NOBODY) == ["a key's", "everybody's"]
    assert [one.owner for one in store.read_now(queries.visible, BEN)] == [None, "ben", "ann"]


def test_a_name_is_taken_once_by_each_owner(store: Store) -> None:
    first = keep(store, ANN, "x", shared=True)
    keep(store, BEN, "x")
    with pytest.raises(Conflict, match=f"id {first.id}"):
        keep(store, ANN, "x")
    keep(store, NOBODY, "x")
    with pytest.raises(Conflict):
        keep(store, NOBODY, "x")


def test_only_ones_own_can_be_changed(store: Store) -> None:
    mine = keep(store, ANN, "x", shared=True)
    changed = store.write_now(
        queries.keep, ANN, NOW + timedelta(hours=1), name="y", sql="select 2", description="d", shared=False,
        query_id=mine.id,
    )  # fmt: skip
    assert (changed.id, changed.name, changed.sql, changed.description) == (mine.id, "y", "select 2", "d")
    assert changed.created_at == NOW < changed.updated_at
    for who, which in ((BEN, mine.id), (NOBODY, mine.id), (ANN, 999)):
        with pytest.raises(PathUnknown):
            keep(store, who, "z", query_id=which)


def test_shared_ones_can_be_deleted_by_others_private_ones_cannot(store: Store) -> None:
    shared, private = keep(store, ANN, "s", shared=True), keep(store, ANN, "p")
    with pytest.raises(PathUnknown):
        store.write_now(queries.remove, BEN, private.id)
    store.write_now(queries.remove, BEN, shared.id)
    store.write_now(queries.remove, ANN, private.id)
    with pytest.raises(PathUnknown):
        store.write_now(queries.remove, ANN, private.id)
    # A number is never given out twice.
    assert keep(store, ANN, "p").id > private.id


def test_what_a_deleted_user_shared_stays_and_the_rest_goes(store: Store) -> None:
    shared, _ = keep(store, BEN, "s", shared=True), keep(store, BEN, "p")
    store.write_now(users.remove, BEN)
    assert names(store, NOBODY) == ["s"]
    # Anybody may take it up.
    assert keep(store, ANN, "s2", query_id=shared.id).owner is None


def test_there_is_an_end_to_keeping(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MAX_PER_OWNER", 3)
    for n in range(3):
        keep(store, ANN, str(n))
    with pytest.raises(Conflict, match="At most 3"):
        keep(store, ANN, "4")
    keep(store, BEN, "4")


def test_a_state_of_before_them_is_migrated_with_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "data" / "state.db"
    upgrade.prepare_file(path)
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(Path(upgrade.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text("INSERT INTO users VALUES (1, 'ann', 'h', 1, '2026-11-01 12:00:00', '2026-11-01 12:00:00')")
        )
    engine.dispose()
    store = Store.open_now(path)
    assert [user.username for user in store.read_now(users.all_users)] == ["ann"]
    keep(store, ANN, "x")
    store.close_now()
    assert len(list(upgrade.backups_folder(path).glob(f"state-before-{upgrade.HEAD}-*.db"))) == 1
