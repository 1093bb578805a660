from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import duckdb
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetproxy.control.analytics import ingest as module
from fleetproxy.core.record import AuditRecord
from fleetproxy.link.spool import Spool, adopt_orphans
from tests.control.analytics.analytics_kit import NOON_US, ROOT, ids, line, load, opened, put, record

CHILD = (sys.executable, "-m", "tests.control.analytics.crash_child")
#: More in the nightly run.
ROUNDS = int(os.environ.get("FLEETPROXY_FAULT_ROUNDS", "12"))


def child(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*CHILD, str(folder), *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def finish(folder: Path) -> list[str]:
    """Load what is left, in a life without accidents; the ids in the file."""
    ingest, connection = opened(folder)
    ingest.tidy()
    load(ingest, connection)
    found = ids(connection)
    attempts = connection.execute("SELECT count(*), count(DISTINCT request_id) FROM attempts").fetchone()
    assert attempts == (len(found), len(set(found)))
    connection.close()
    left = [path.name for path in (folder / "spool").iterdir()]
    assert left == []
    return found


@pytest.mark.parametrize("moment", ["before_commit", "after_commit", "unlink"])
@pytest.mark.parametrize("time", [1, 2, 4])
def test_exactly_once_when_killed_at(moment: str, time: int, tmp_path: Path) -> None:
    expected = []
    (tmp_path / "spool").mkdir()
    for segment in range(12):
        rows = [record(segment * 10 + n) for n in range(10)]
        expected += [row.request_id for row in rows]
        put(tmp_path / "spool", map(line, rows), boot=f"b{segment:03d}")
    killed = child(tmp_path, moment, str(time))
    out, _ = killed.communicate(timeout=30)
    assert (killed.returncode, out) == (-signal.SIGKILL, "open\n")
    assert sorted(finish(tmp_path)) == sorted(expected)


@pytest.mark.timeout(300)
def test_exactly_once_when_killed_at_any_instant(tmp_path: Path) -> None:
    """Rows go on being written while their loader is killed, over and over, at random instants."""
    (tmp_path / "spool").mkdir()
    rng = random.Random(7)
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        spool = Spool(tmp_path / "spool", "requests", "w0", "proxy-0")
        while not stop.is_set():
            row = record(len(written))
            assert spool.put(line(row))
            written.append(row.request_id)
            if len(written) % 7 == 0:
                spool.rotate()
                stop.wait(0.002)
        spool.rotate()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(ROUNDS):
            loader = child(tmp_path, "linger")
            assert loader.stdout is not None
            assert loader.stdout.readline() == "open\n"
            stop.wait(rng.uniform(0.0, 0.25))
            loader.kill()
            loader.communicate()
    finally:
        stop.set()
        writer.join()
    counted = Counter(finish(tmp_path))
    assert counted == Counter(written)
    assert len(counted) > ROUNDS


def test_a_killed_writer_loses_no_finished_line(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal\n"
        "from tests.control.analytics.analytics_kit import line, record\n"
        "from fleetproxy.link.spool import Spool\n"
        "from pathlib import Path\n"
        "spool = Spool(Path(sys.argv[1]), 'requests', 'b', 'proxy-0')\n"
        "for n in range(100): spool.put(line(record(n)))\n"
        'os.write(spool._file, b\'{"request_id": "torn\')\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "spool")]
    assert subprocess.run(words, check=False, cwd=ROOT).returncode == -signal.SIGKILL
    ingest, connection = opened(tmp_path)
    load(ingest, connection)
    assert ids(connection) == [f"{n:032x}" for n in range(100)]
    assert ingest.counters.torn == 1
    connection.close()


def test_the_segment_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    spool = Spool(tmp_path / "spool", "requests", "b", "proxy-0")
    spool.put(line(record(1)))
    load(ingest, connection)
    assert ids(connection) == []
    spool.rotate()
    load(ingest, connection)
    assert len(ids(connection)) == 1
    connection.close()


def test_an_open_segment_is_never_seen_without_its_lock(tmp_path: Path) -> None:
    """Control looks all the time while a writer makes segments: it must never take one away under its writer."""
    stop = threading.Event()
    adopted: list[Path] = []

    def look() -> None:
        while not stop.is_set():
            adopted.extend(path for path, _ in adopt_orphans(tmp_path))

    looker = threading.Thread(target=look)
    looker.start()
    spool = Spool(tmp_path, "requests", "b", "proxy-0")
    for n in range(300):
        assert spool.put(line(record(n)))
        spool.rotate()
    stop.set()
    looker.join()
    assert (adopted, spool.dropped) == ([], 0)


GARBAGE = [
    b"", b"{", b"}", b"[]", b"5", b"null", b'"x"', b"{}", b'{"request_id":1}', b'{"request_id":"x","a":{"b":',
    b"[" * 50_000, b'{"a":' * 50_000, b"\x00" * 100, b"\xff\xfe", b'{"request_id":"\xff"}', b"\xef\xbb\xbf{}",
    line(record(1))[:100], line(record(1)).rstrip() * 2, b'{"request_id":"' + b"y" * 200_000,
    msgspec.json.encode({**msgspec.to_builtins(record(1)), "status": "two hundred"}),
    msgspec.json.encode({**msgspec.to_builtins(record(1)), "started_at_us": -5}),
    msgspec.json.encode({**msgspec.to_builtins(record(1)), "started_at_us": 2**62}),
]  # fmt: skip


noise = st.binary(max_size=200).map(lambda b: b.replace(b"\n", b""))


@settings(max_examples=30)
@given(st.lists(st.none() | st.integers(0, len(GARBAGE) - 1) | noise, max_size=8))
def test_a_line_that_is_no_row_costs_that_line_alone(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes | int | None]
) -> None:
    """None stands for a row, a number for a line of GARBAGE."""
    folder = tmp_path_factory.mktemp("store")
    ingest, connection = opened(folder)
    good, bad, data = [], 0, b""
    for n, one in enumerate(lines):
        if one is None:
            row = record(n)
            good.append(row.request_id)
            data += line(row)
        else:
            garbage = GARBAGE[one] if isinstance(one, int) else one
            data += garbage + b"\n"
            bad += bool(garbage.strip(b" \t\r"))
    (folder / "spool" / "requests.b.proxy-0.00000001.ndjson").write_bytes(data)
    load(ingest, connection)
    assert ids(connection) == good
    assert ingest.counters.malformed == bad
    assert list((folder / "spool").iterdir()) == []
    connection.close()


@pytest.mark.parametrize("piece", [100, 5000, 100_000])
def test_a_line_that_is_too_long_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(module, "LINE_BYTES", 3000)
    monkeypatch.setattr(module, "PIECE_BYTES", piece)
    ingest, connection = opened(tmp_path)
    put(tmp_path / "spool", [line(record(n, error="x" * (4000 if n in (3, 7) else 10))) for n in range(10)])
    load(ingest, connection)
    assert ids(connection) == [f"{n:032x}" for n in range(10) if n not in (3, 7)]
    assert ingest.counters.malformed == 2
    connection.close()


def test_an_object_over_two_lines_and_two_objects_on_one_are_no_rows(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    first, second, third, last = (line(record(n)).rstrip() for n in range(4))
    broken = second.replace(b'"process"', b'\n"process"')
    (tmp_path / "spool" / "requests.b.proxy-0.00000001.ndjson").write_bytes(
        b"\n".join([first + third, broken, last, b""])
    )
    load(ingest, connection)
    assert ids(connection) == [record(3).request_id]
    assert ingest.counters.malformed == 3
    connection.close()


def test_a_value_no_column_can_take_is_null_and_its_row_stays(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    put(tmp_path / "spool", [line(record(1, tokens_in=2**63, status=2**40)), line(record(2))])
    load(ingest, connection)
    found = connection.execute("SELECT tokens_in, status, tokens_out FROM requests ORDER BY id").fetchall()
    assert found == [(None, None, 50), (20, 200, 50)]
    connection.close()


def test_a_segment_no_transaction_takes_is_set_aside_and_the_others_load(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    connection.execute("ALTER TABLE requests ALTER status TYPE TINYINT")  # 500 does not fit
    put(tmp_path / "spool", [line(record(1, status=100))], boot="b1")
    put(tmp_path / "spool", [line(record(2, status=500))], boot="b2")
    put(tmp_path / "spool", [line(record(3, status=101))], boot="b3")
    load(ingest, connection)
    assert ids(connection) == [record(1).request_id, record(3).request_id]
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["requests.b2.proxy-0.00000001.rejected"]
    assert ingest.counters.rejected == 1
    connection.close()


def test_rows_are_counted_once_however_often_loading_fails(tmp_path: Path) -> None:
    fed: list[str] = []

    def feed(records: Sequence[AuditRecord]) -> None:
        fed.extend(row.request_id for row in records)

    ingest, connection = opened(tmp_path, feed)
    put(tmp_path / "spool", [line(record(n)) for n in range(5)])
    connection.execute("ALTER TABLE segments RENAME TO gone")
    for _ in range(3):
        with pytest.raises(duckdb.CatalogException):
            ingest.step(connection, NOON_US)
        ingest.look()
    assert ids(connection) == []
    connection.execute("ALTER TABLE gone RENAME TO segments")
    load(ingest, connection)
    assert fed == ids(connection) == [f"{n:032x}" for n in range(5)]
    connection.close()


def test_rows_that_cannot_be_counted_are_stored_all_the_same(tmp_path: Path) -> None:
    def feed(records: Sequence[AuditRecord]) -> None:
        raise ZeroDivisionError

    ingest, connection = opened(tmp_path, feed)
    put(tmp_path / "spool", [line(record(1))])
    load(ingest, connection)
    assert len(ids(connection)) == 1
    connection.close()


def test_a_long_backlog_is_loaded_in_batches_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_SEGMENTS", 10)
    ingest, connection = opened(tmp_path)
    for n in range(35):
        put(tmp_path / "spool", [line(record(n))], boot=f"b{n:03d}")
        path = tmp_path / "spool" / f"requests.b{n:03d}.proxy-0.00000001.ndjson"
        os.utime(path, ns=(n, n))
    load(ingest, connection)
    assert ingest.counters.batches == 4
    assert ids(connection) == [f"{n:032x}" for n in range(35)]
    assert (ingest.backlog_segments, ingest.backlog_bytes) == (0, 0)
    connection.close()


def test_a_segment_larger_than_a_piece_is_checked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 2000)
    ingest, connection = opened(tmp_path)
    lines = [line(record(n)) for n in range(30)]
    lines[17] = b"{torn\n"
    (tmp_path / "spool" / "requests.b.proxy-0.00000001.ndjson").write_bytes(b"".join(lines))
    load(ingest, connection)
    assert ids(connection) == [f"{n:032x}" for n in range(30) if n != 17]
    assert ingest.counters.malformed == 1
    connection.close()


def test_trimming_takes_the_oldest_and_counts_their_rows(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    for n in range(6):
        put(tmp_path / "spool", [line(record(n * 2)), line(record(n * 2 + 1))], boot=f"b{n}")
        os.utime(tmp_path / "spool" / f"requests.b{n}.proxy-0.00000001.ndjson", ns=(n, n))
    size = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    ingest.trim(size // 2 + 100)
    assert ingest.counters.overflowed == 6
    load(ingest, connection)
    assert ids(connection) == [f"{n:032x}" for n in range(6, 12)]
    connection.close()


def test_a_folder_with_any_name_will_do(tmp_path: Path) -> None:
    folder = tmp_path / "it's [1]* {a,b} ü \U0001f600"
    folder.mkdir()
    ingest, connection = opened(folder)
    put(folder / "spool", [line(record(1))])
    load(ingest, connection)
    assert len(ids(connection)) == 1
    connection.close()


def test_leftovers_of_an_earlier_life_are_removed(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    spool = tmp_path / "spool"
    (spool / "requests.b.p.1.clean").write_bytes(b"x")
    (spool / "requests.b.p.1.new").write_bytes(b"")
    os.utime(spool / "requests.b.p.1.new", (0, 0))
    (spool / "requests.b.p.2.new").write_bytes(b"")
    ingest.tidy()
    assert [path.name for path in spool.iterdir()] == ["requests.b.p.2.new"]
    connection.close()


def test_rows_of_two_processes_with_one_clock_have_one_order(tmp_path: Path) -> None:
    ingest, connection = opened(tmp_path)
    for process in ("proxy-0", "proxy-1"):
        rows = [record(n, process=process, sequence=n, started_at_us=NOON_US) for n in range(50)]
        put(tmp_path / "spool", map(line, rows), process=process)
    load(ingest, connection)
    order = connection.execute(
        "SELECT process, sequence FROM requests ORDER BY started_at, process, sequence"
    ).fetchall()
    assert order == [(process, n) for process in ("proxy-0", "proxy-1") for n in range(50)]
    connection.close()
