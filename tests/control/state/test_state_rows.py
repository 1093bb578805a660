"""The rules inside the transactions: users, sessions, keys, servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from fleetproxy.control.state import Store, keys, servers, sessions, users
from fleetproxy.control.state.tables import Table
from fleetproxy.errors import Conflict, PathUnknown
from fleetproxy.settings import Server

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    store = Store.open_now(tmp_path / "state.db")
    with store._engine.connect() as connection, Session(connection) as session:
        yield session
    store.close_now()


def test_ids_of_deleted_users_are_never_given_again(session: Session) -> None:
    users.create(session, "ann", "h", True, NOW)
    bob = users.create(session, "bob", "h", False, NOW)
    users.remove(session, bob.id)
    assert users.create(session, "cid", "h", False, NOW).id > bob.id


steps = st.lists(
    st.tuples(st.sampled_from(["promote", "demote", "remove", "create", "password"]), st.integers(1, 6)), max_size=30
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(steps)
def test_there_is_always_an_administrator(actions: list[tuple[str, int]]) -> None:
    engine = create_engine("sqlite://")
    Table.metadata.create_all(engine)
    with Session(engine) as session:
        users.create_first(session, "first", "h", NOW)
        for number, (action, user_id) in enumerate(actions):
            try:
                match action:
                    case "create":
                        users.create(session, f"user{number}", "h", False, NOW)
                    case "remove":
                        users.remove(session, user_id)
                    case "password":
                        users.update(session, user_id, NOW, password_hash=f"h{number}")
                    case _:
                        users.update(session, user_id, NOW, is_admin=action == "promote")
            except (Conflict, PathUnknown):
                pass
            assert any(user.is_admin for user in users.all_users(session))
    engine.dispose()


@pytest.mark.parametrize("change", [{"password_hash": "new"}, {"is_admin": True}])
def test_a_new_password_or_role_ends_every_session(session: Session, change: dict[str, object]) -> None:
    users.create(session, "ann", "h", True, NOW)
    bob = users.create(session, "bob", "h", False, NOW)
    for token in ("one", "two"):
        sessions.begin(session, token, bob.id, None, NOW)
    users.update(session, bob.id, NOW, **change)  # type: ignore[arg-type]
    assert sessions.user_of(session, "one", NOW) is sessions.user_of(session, "two", NOW) is None


def test_naming_the_role_a_user_has_ends_nothing(session: Session) -> None:
    ann = users.create(session, "ann", "h", True, NOW)
    sessions.begin(session, "token", ann.id, None, NOW)
    users.update(session, ann.id, NOW, is_admin=True)
    assert sessions.user_of(session, "token", NOW)


def test_sessions_end_after_a_week_however_busy_and_earlier_when_idle(session: Session) -> None:
    ann = users.create(session, "ann", "h", True, NOW)
    sessions.begin(session, "busy", ann.id, None, NOW)
    sessions.begin(session, "idle", ann.id, None, NOW)
    for day in range(1, 7):
        sessions.seen(session, "busy", NOW + day * DAY)
    assert sessions.user_of(session, "busy", NOW + 6.9 * DAY)
    assert sessions.user_of(session, "busy", NOW + 7 * DAY) is None
    assert sessions.user_of(session, "idle", NOW + sessions.IDLE_LIMIT) is None
    assert sessions.sweep(session, NOW + 4 * DAY) == 1
    assert sessions.sweep(session, NOW + 7 * DAY) == 1


def test_a_user_has_a_bounded_number_of_sessions_the_newest_ones(session: Session) -> None:
    ann = users.create(session, "ann", "h", True, NOW)
    for number in range(sessions.MAX_PER_USER + 3):
        sessions.begin(session, f"t{number}", ann.id, None, NOW + timedelta(seconds=number))
    alive = [n for n in range(sessions.MAX_PER_USER + 3) if sessions.user_of(session, f"t{n}", NOW)]
    assert alive == list(range(3, sessions.MAX_PER_USER + 3))


def test_the_default_key_is_made_anew_others_are_added(session: Session) -> None:
    ann = users.create(session, "ann", "h", True, NOW)
    keys.create(session, ann.id, "a" * 64, NOW)
    keys.create(session, ann.id, "b" * 64, NOW)
    keys.create(session, ann.id, "c" * 64, NOW, label="laptop", expires_at=NOW + DAY)
    with pytest.raises(Conflict, match="laptop"):
        keys.create(session, ann.id, "d" * 64, NOW, label="laptop")
    assert [(key.label, key.prefix) for key in keys.of_user(session, ann.id)] == [
        ("default", "bbbbbbbb"),
        ("laptop", "cccccccc"),
    ]
    assert keys.holder(session, "a" * 64, NOW) is None
    assert keys.holder(session, "b" * 64, NOW)
    assert set(keys.principals(session, NOW)) == {keys.key_hash("b" * 64), keys.key_hash("c" * 64)}
    assert set(keys.principals(session, NOW + DAY)) == {keys.key_hash("b" * 64)}
    assert keys.holder(session, "c" * 64, NOW + DAY) is None


def test_keys_that_do_not_open_inference_are_no_principals(session: Session) -> None:
    ann = users.create(session, "ann", "h", True, NOW)
    keys.create(session, ann.id, "a" * 64, NOW, scopes=("read",), models=["m"], max_in_flight=2)
    assert keys.principals(session, NOW) == {}
    assert keys.holder(session, "a" * 64, NOW) == (ann, frozenset({"read"}))


def test_keys_and_sessions_go_with_their_user(session: Session) -> None:
    users.create(session, "ann", "h", True, NOW)
    bob = users.create(session, "bob", "h", False, NOW)
    keys.create(session, bob.id, "b" * 64, NOW)
    sessions.begin(session, "token", bob.id, None, NOW)
    users.remove(session, bob.id)
    assert keys.principals(session, NOW) == {}
    assert sessions.user_of(session, "token", NOW) is None


def test_nobody_revokes_anothers_key(session: Session) -> None:
    ann, bob = (users.create(session, name, "h", True, NOW) for name in ("ann", "bob"))
    key = keys.create(session, ann.id, "a" * 64, NOW)
    with pytest.raises(PathUnknown):
        keys.revoke(session, bob.id, key.id)
    keys.revoke(session, ann.id, key.id)
    assert keys.of_user(session, ann.id) == []


names = st.lists(st.sampled_from(["a", "A", "b", "c", "gpu-1", "GPU-1"]), max_size=4, unique_by=str.lower)


@given(st.lists(names, min_size=1, max_size=6))
def test_a_servers_number_is_its_own_for_ever(configurations: list[list[str]]) -> None:
    engine = create_engine("sqlite://")
    Table.metadata.create_all(engine)
    known: dict[str, int] = {}
    with Session(engine) as session:
        for configured in configurations:
            ids = servers.register(session, configured, NOW)
            assert sorted(ids) == sorted(configured)
            for name, number in ids.items():
                assert known.setdefault(name.lower(), number) == number
            assert [entry.name for entry in servers.entries(session)] == sorted(configured, key=ids.__getitem__)
        assert len(set(known.values())) == len(known)
    engine.dispose()


def test_the_configuration_file_wins_over_the_api(session: Session) -> None:
    added = servers.add(session, Server(name="gpu1", url="http://10.0.0.1:11434", api_key="k"), NOW)
    assert servers.register(session, ["GPU1"], NOW) == {"GPU1": added.id}
    for forbidden in (
        lambda: servers.add(session, Server(name="gpu1", url="http://x"), NOW),
        lambda: servers.change(session, added.id, {"url": "http://y"}),
        lambda: servers.remove(session, added.id, NOW),
    ):
        with pytest.raises(Conflict, match="configuration file"):
            forbidden()
    assert servers.change(session, added.id, is_disabled=True, is_draining=True).is_disabled


def test_a_removed_server_comes_back_under_its_number_without_its_switches(session: Session) -> None:
    server = Server(name="gpu1", url="http://10.0.0.1:11434")
    added = servers.add(session, server, NOW)
    servers.change(session, added.id, is_disabled=True)
    assert servers.change(session, added.id, {"vram_gb": 24.0, "name": "other"}).server == Server(
        name="gpu1", url="http://10.0.0.1:11434", vram_gb=24.0
    )
    servers.remove(session, added.id, NOW)
    assert servers.get(session, added.id) is None
    with pytest.raises(PathUnknown):
        servers.change(session, added.id, is_disabled=True)
    again = servers.add(session, server, NOW)
    assert (again.id, again.is_disabled, again.server) == (added.id, None, server)
