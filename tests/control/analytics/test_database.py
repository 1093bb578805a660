from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from fleetproxy.control.analytics import database, schema
from fleetproxy.control.analytics.database import StoreError, judge, open_read_only, open_store
from tests.control.analytics.analytics_kit import NOON_US, ROOT, SETTINGS, ids, line, load, opened, put, record
from tests.control.analytics.migration_case import make_old, migrate, state

FILE = "analytics.duckdb"
#: Every statement in the nightly run, each fifth otherwise.
STRIDE = 1 if "FLEETPROXY_FAULT_ROUNDS" in os.environ else 5

#: A file with 2 000 rows in its blocks and 20 more in its log, as a SIGKILL leaves it.
_MAKE = """
import os, sys
from pathlib import Path
from tests.control.analytics.analytics_kit import *
folder = Path(sys.argv[1])
ingest, connection = opened(folder)
put(folder / "spool", (line(record(n)) for n in range(2000)), boot="b1")
load(ingest, connection)
connection.execute("CHECKPOINT")
for part in range(4):
    put(folder / "spool", (line(record(2000 + part * 5 + n)) for n in range(5)), boot=f"c{part}")
    load(ingest, connection)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, "-c", _MAKE, str(folder)], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    for suffix in ("", ".wal"):
        (tmp_path / (FILE + suffix)).write_bytes((killed / (FILE + suffix)).read_bytes())
    (tmp_path / "spool").mkdir()
    return tmp_path


def reopened(folder: Path) -> database.Opened:
    return open_store(folder / FILE, folder / "spool", SETTINGS, NOON_US)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))


def test_a_file_left_by_a_killed_process_is_whole(folder: Path) -> None:
    found = reopened(folder)
    assert (found.set_aside, found.batch) == ((), 5)
    assert len(ids(found.connection)) == 2020
    found.connection.close()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "magic": lambda path: flip(path, 9),
    "first header": lambda path: flip(path, 4096 + 20),
    "second header": lambda path: (flip(path, 4096 + 20), flip(path, 8192 + 20))[0],
    "cut inside the headers": lambda path: os.truncate(path, 5000),
    "empty": lambda path: os.truncate(path, 0),
    "one byte": lambda path: os.truncate(path, 1),
    "text": lambda path: path.write_bytes(b"hello world\n" * 2000) and None,
    "SQLite": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(8000)) and None,
    "zeros": lambda path: path.write_bytes(bytes(300_000)) and None,
    "noise": lambda path: path.write_bytes(os.urandom(300_000)) and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_recording_goes_on(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder / FILE)
    before = (folder / FILE).read_bytes()
    found = reopened(folder)
    assert ids(found.connection) == []
    assert [path.name for path in found.set_aside] == [f"{FILE}.damaged-{NOON_US // 1000}{s}" for s in ("", ".wal")]
    assert found.set_aside[0].read_bytes() == before
    found.connection.close()
    ingest, connection = opened(folder)
    put(folder / "spool", [line(record(1))])
    load(ingest, connection)
    assert len(ids(connection)) == 1
    connection.close()


def test_a_damaged_log_costs_only_what_was_not_checkpointed(folder: Path) -> None:
    flip(folder / f"{FILE}.wal", (folder / f"{FILE}.wal").stat().st_size // 2)
    found = reopened(folder)
    assert [path.suffix for path in found.set_aside] == [".wal"]
    assert len(ids(found.connection)) == 2000
    found.connection.close()


def test_only_the_latest_damaged_files_are_kept(tmp_path: Path) -> None:
    for n in range(database.KEEP_DAMAGED + 3):
        (tmp_path / FILE).write_bytes(b"x" * 5000)
        database.set_aside(tmp_path / FILE, NOON_US + n * 1_000_000, ValueError("damaged"))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"{FILE}.damaged-{NOON_US // 1000 + n * 1000}" for n in range(3, 3 + database.KEEP_DAMAGED)]


def test_a_newer_schema_is_refused_and_left_as_it_is(folder: Path) -> None:
    found = reopened(folder)
    found.connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    found.connection.close()
    before = (folder / FILE).read_bytes()
    with pytest.raises(StoreError, match="schema version 99") as caught:
        reopened(folder)
    assert caught.value.trouble == "newer"
    assert (folder / FILE).read_bytes() == before
    with pytest.raises(StoreError, match="schema version 99"):
        open_read_only(folder / FILE, SETTINGS)


def test_a_file_of_a_newer_duckdb_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    # DuckDB checks the version before the checksum only in files with a good one: take its word from the source.
    message = (
        "IO Error: Trying to read a database file with version number 999, but we can only read versions up to 67."
    )
    assert judge(duckdb.IOException(message)) == "newer"


def test_a_file_that_somebody_holds_is_refused_and_says_who(folder: Path) -> None:
    script = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"open\n"
    for attempt in (lambda: reopened(folder), lambda: open_read_only(folder / FILE, SETTINGS)):
        with pytest.raises(StoreError, match=f"PID {holder.pid}") as caught:
            attempt()
        assert caught.value.trouble == "locked"
    holder.communicate()
    reopened(folder).connection.close()


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StoreError) as caught:
        reopened(tmp_path)
    assert caught.value.trouble == "unusable"
    assert (tmp_path / FILE).is_dir()


def test_a_path_duckdb_cannot_use_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="question mark"):
        open_store(tmp_path / "a?b" / FILE, tmp_path, SETTINGS, NOON_US)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    found = open_store(tmp_path / FILE, tmp_path, SETTINGS, NOON_US)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    found.connection.close()


def test_opening_again_changes_nothing(folder: Path) -> None:
    first = reopened(folder)
    first.connection.close()
    second = reopened(folder)
    assert (second.store_id, second.batch) == (first.store_id, first.batch)
    second.connection.close()


def test_reading_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no analytics file"):
        open_read_only(tmp_path / FILE, SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_reading_sees_the_log_of_a_killed_process_and_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    connection = open_read_only(folder / FILE, SETTINGS)
    assert len(ids(connection)) == 2020
    with pytest.raises(duckdb.Error):
        connection.execute("DELETE FROM requests")
    connection.close()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_facts_were_measured_with_this_line_of_duckdb() -> None:
    """Messages, crash behaviour, file format: measure them again before another line is used."""
    assert duckdb.__version__.startswith("1.5.")


# --- migrations --------------------------------------------------------------------------------------------------


def test_a_migration_killed_before_any_of_its_statements_is_finished_by_the_next_start(tmp_path: Path) -> None:
    reference = duckdb.connect(str(tmp_path / "reference.duckdb"))
    make_old(reference)
    migrate(reference)
    wanted = state(reference)
    reference.close()
    statement = -STRIDE + 1
    while True:
        statement += STRIDE
        folder = tmp_path / str(statement)
        folder.mkdir()
        old = duckdb.connect(str(folder / FILE))
        make_old(old)
        old.close()
        words = [sys.executable, "-m", "tests.control.analytics.migrate_child", str(folder), str(statement)]
        done = subprocess.run(words, check=False, cwd=ROOT)
        connection = duckdb.connect(str(folder / FILE))
        migrate(connection)
        assert state(connection) == wanted
        connection.close()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert statement > 20


def test_a_migration_run_twice_is_run_once(tmp_path: Path) -> None:
    connection = duckdb.connect(str(tmp_path / FILE))
    make_old(connection)
    migrate(connection)
    wanted = state(connection)
    migrate(connection)
    assert state(connection)[:6] == wanted[:6]
    connection.close()


def test_a_failing_migration_leaves_the_old_version(tmp_path: Path) -> None:
    connection = duckdb.connect(str(tmp_path / FILE))
    make_old(connection)
    steps = {2: ("UPDATE t SET a = 0", "SELECT no_such_function()")}
    with pytest.raises(duckdb.CatalogException):
        database.bring_up_to_date(connection, 0, version=2, migrations=steps)
    assert connection.execute("SELECT sum(a) FROM t").fetchone() == (4950,)
    assert connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() == ("1",)
    connection.close()


#: Shapes of log replay that broke in earlier releases of DuckDB: each must survive a SIGKILL right after it.
REPLAYS = {
    "upsert": "CREATE TABLE x(k INT PRIMARY KEY, v INT); INSERT INTO x VALUES (1, 1); "
    "INSERT INTO x VALUES (1, 2) ON CONFLICT DO UPDATE SET v = excluded.v",
    "delete and insert": "CREATE TABLE x(k INT PRIMARY KEY); INSERT INTO x VALUES (1); DELETE FROM x; "
    "INSERT INTO x VALUES (1)",
    "add column": "CREATE TABLE x(k INT); INSERT INTO x VALUES (1); ALTER TABLE x ADD COLUMN v INT DEFAULT 7; "
    "INSERT INTO x VALUES (2, 2)",
    "rename": "CREATE TABLE y(k INT); INSERT INTO y VALUES (1); ALTER TABLE y RENAME TO x; INSERT INTO x VALUES (2)",
    "sequence": "CREATE SEQUENCE s; CREATE TABLE x(k BIGINT DEFAULT nextval('s'), v INT); "
    "INSERT INTO x(v) SELECT range FROM range(3000)",
    "nested": "CREATE TABLE x(k STRUCT(a INT, b VARCHAR[])[]); INSERT INTO x VALUES ([{'a': 1, 'b': ['x']}])",
    "view and comment": "CREATE TABLE x(k INT); CREATE VIEW v AS SELECT * FROM x; COMMENT ON COLUMN x.k IS 'k'; "
    "INSERT INTO x VALUES (1); CREATE OR REPLACE VIEW v AS SELECT k + 1 FROM x",
    "rebuild": "CREATE TABLE y(k INT); INSERT INTO y VALUES (1); CREATE TABLE x AS SELECT k FROM y; DROP TABLE y",
}


@pytest.mark.parametrize("shape", REPLAYS)
def test_the_log_replays_after_a_kill(shape: str, tmp_path: Path) -> None:
    script = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); "
        "[c.execute(s) for s in sys.argv[2].split(';')]; "
        "print(c.execute('SELECT count(*), sum(hash(x::VARCHAR)) FROM x').fetchall(), flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    path = str(tmp_path / FILE)
    done = subprocess.run([sys.executable, "-c", script, path, REPLAYS[shape]], stdout=subprocess.PIPE, check=False)
    connection = duckdb.connect(path)
    found = connection.execute("SELECT count(*), sum(hash(x::VARCHAR)) FROM x").fetchall()
    assert str(found) == done.stdout.decode().strip()
    connection.close()


def test_a_file_with_a_version_number_in_the_future_in_its_header(folder: Path) -> None:
    """Whatever DuckDB says of it, it is not overwritten."""
    with (folder / FILE).open("r+b") as file:
        file.seek(12)
        file.write(struct.pack("<Q", 999))
    before = (folder / FILE).read_bytes()
    found = reopened(folder)
    assert found.set_aside[0].read_bytes() == before
    found.connection.close()


def test_all_of_schema_is_made_at_once(tmp_path: Path) -> None:
    found = open_store(tmp_path / FILE, tmp_path, SETTINGS, NOON_US)
    tables = found.connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    assert {row[0] for row in tables} == {table.name for table in schema.TABLES}
    found.connection.close()
