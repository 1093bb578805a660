from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from fleetproxy.control.state import Store, StoreBroken, StoreNewer, upgrade, users
from fleetproxy.control.state.tables import Table
from fleetproxy.errors import Conflict, StoreUnavailable

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "state.db"


def with_user(path: Path, name: str = "ann") -> None:
    store = Store.open_now(path)
    store.write_now(users.create, name, "hash", True, NOW)
    store.close_now()


def usernames(path: Path) -> list[str]:
    store = Store.open_now(path)
    try:
        return [user.username for user in store.read_now(users.all_users)]
    finally:
        store.close_now()


def test_migrations_end_in_the_tables_of_the_code(path: Path) -> None:
    Store.open_now(path).close_now()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    engine.dispose()


def test_the_known_schemas_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(upgrade.__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == upgrade.HEAD
    assert {script.revision for script in scripts.walk_revisions()} == set(upgrade.KNOWN)


def test_files_are_for_their_owner_alone(path: Path) -> None:
    with_user(path)
    upgrade.daily_copy(path, NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [stat.S_IMODE(copy.stat().st_mode) for copy in upgrade.backups_folder(path).iterdir()] == [0o600]


def test_reopening_keeps_everything(path: Path) -> None:
    with_user(path)
    assert usernames(path) == usernames(path) == ["ann"]


def spoil_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)


DAMAGE = {
    "cut to nothing": lambda path: path.write_bytes(b""),
    "head overwritten": lambda path: path.write_bytes(b"\0" * 100 + path.read_bytes()[100:]),
    "pages overwritten": spoil_middle,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:8192]),
    "another file": lambda path: path.write_bytes(b"PAR1 something else entirely" * 100),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_set_aside_and_the_last_copy_used(path: Path, damage: str) -> None:
    with_user(path)
    upgrade.daily_copy(path, NOW)
    DAMAGE[damage](path)
    store = Store.open_now(path)
    assert store.restored_from == upgrade.backups_folder(path) / "state-daily-20261101.db"
    assert [user.username for user in store.read_now(users.all_users)] == ["ann"]
    store.close_now()
    assert len(list(path.parent.glob("state.db.damaged-*Z"))) == 1


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_without_a_copy_is_refused_and_left_alone(path: Path, damage: str) -> None:
    with_user(path)
    DAMAGE[damage](path)
    before = path.read_bytes()
    with pytest.raises(StoreBroken, match="fleetproxy restore"):
        Store.open_now(path)
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreBroken, match="check the path"):
        Store.open_now(path)


def test_another_programs_database_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE songs (title TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreBroken, match="another program"):
        Store.open_now(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_untouched(path: Path) -> None:
    with_user(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as newer:
        newer.execute("UPDATE alembic_version SET version_num='9999'")
    with pytest.raises(StoreNewer, match="newer fleetproxy"):
        Store.open_now(path)
    with closing(sqlite3.connect(path)) as newer:
        assert newer.execute("SELECT username FROM users").fetchall() == [("ann",)]


KILLED_MIGRATIONS = """
import os, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from fleetproxy.control.state import Store

# Imported before the forks, so that each child is quick.
Store.open_now(Path(sys.argv[1]) / "warm" / "state.db").close_now()
rounds = 0
while True:
    path = Path(sys.argv[1]) / str(rounds) / "state.db"
    child = os.fork()
    if child == 0:
        left = rounds
        @event.listens_for(Engine, "before_cursor_execute")
        def step(*arguments):
            global left
            if left == 0:
                os._exit(9)
            left -= 1
        Store.open_now(path)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    Store.open_now(path).close_now()  # whatever was left behind, the next start makes it whole
    rounds += 1
    if code == 0:
        break
    assert code == 9, code
print(rounds)
"""


def test_a_migration_killed_at_any_statement_is_done_again_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_MIGRATIONS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


async def test_of_many_first_administrators_one_wins(path: Path) -> None:
    store = await Store.open(path)

    async def attempt(number: int) -> bool:
        try:
            await store.write(users.create_first, f"admin{number}", "hash", NOW)
        except Conflict:
            return False
        return True

    assert sum(await asyncio.gather(*(attempt(number) for number in range(100)))) == 1
    assert len(await store.read(users.all_users)) == 1
    await store.close()


async def test_two_processes_cannot_both_make_the_first_administrator(path: Path) -> None:
    stores = [await Store.open(path) for _ in range(4)]
    outcomes = await asyncio.gather(
        *(store.write(users.create_first, f"admin{n}", "h", NOW) for n, store in enumerate(stores * 5)),
        return_exceptions=True,
    )
    assert sum(not isinstance(outcome, Conflict) for outcome in outcomes) == 1
    for store in stores:
        await store.close()


async def test_a_failed_change_leaves_nothing(path: Path) -> None:
    store = await Store.open(path)

    def half(session: Session) -> None:
        users.create(session, "bob", "hash", False, NOW)
        raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError):
        await store.write(half)
    assert await store.read(users.all_users) == []
    await store.close()


async def test_changes_are_told_after_they_are_committed(path: Path) -> None:
    store = await Store.open(path)
    seen: list[int] = []
    store.on_change(lambda: seen.append(1))
    await store.write(users.create, "ann", "hash", True, NOW)
    await store.read(users.all_users)
    with pytest.raises(Conflict):
        await store.write(users.create, "Ann ", "hash", True, NOW)
    assert seen == [1]
    await store.close()


async def test_a_change_whose_caller_left_is_told_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it takes its place in the line until the thread is done with it: leaving makes no room for more."""
    monkeypatch.setattr("fleetproxy.control.state.store.MAX_WAITING", 1)
    store = await Store.open(path)
    told, held = asyncio.Event(), threading.Event()
    store.on_change(told.set)

    def slowly(session: Session) -> None:
        held.wait(10)
        users.create(session, "ann", "hash", True, NOW)

    caller = asyncio.create_task(store.write(slowly))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with pytest.raises(StoreUnavailable):
        await store.read(users.all_users)
    held.set()
    async with asyncio.timeout(10):
        await told.wait()
    assert [user.username for user in await store.read(users.all_users)] == ["ann"]
    await store.close()


async def test_a_crowd_of_calls_is_refused_not_queued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.control.state.store.MAX_WAITING", 5)
    store = await Store.open(path)
    outcomes = await asyncio.gather(*(store.read(users.all_users) for _ in range(9)), return_exceptions=True)
    assert [isinstance(outcome, StoreUnavailable) for outcome in outcomes].count(True) == 4 == store.refused
    assert await store.read(users.all_users) == []
    await store.close()


def test_a_week_of_daily_copies_is_kept(path: Path) -> None:
    with_user(path)
    for day in range(1, 12):
        assert upgrade.daily_copy(path, NOW.replace(day=day))
        assert upgrade.daily_copy(path, NOW.replace(day=day)) is None
    names = sorted(copy.name for copy in upgrade.backups_folder(path).iterdir())
    assert names[0] == "state-daily-20261105.db"
    assert len(names) == upgrade.DAILY_KEPT


async def test_a_full_disk_refuses_changes_and_goes_on_when_there_is_room(path: Path) -> None:
    store = await Store.open(path)
    await store.write(users.create, "ann", "hash", True, NOW)

    def limit(session: Session, pages: int) -> None:
        session.connection().exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill(session: Session) -> None:
        for number in range(500):
            users.create(session, f"user{number}", "h" * 1000, False, NOW)

    await store.read(limit, 1)
    with pytest.raises(StoreUnavailable, match="see the log"):
        await store.write(fill)
    assert [user.username for user in await store.read(users.all_users)] == ["ann"]
    await store.read(limit, 1_000_000)
    await store.write(fill)
    assert len(await store.read(users.all_users)) == 501
    await store.close()
