"""The spool's two ends: a line written is never lost, a torn one never loaded, a full disk only counted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.link.spool import Spool, adopt_orphans, closed_segments


def lines(folder: Path) -> list[bytes]:
    return [line for path in closed_segments(folder, "requests") for line in path.read_bytes().splitlines()]


def test_lines_come_out_once_closed_and_in_order(tmp_path):
    spool = Spool(tmp_path, "requests", "boot", "proxy-0")
    spool.put(b"1\n")
    spool.put(b"2\n")
    assert lines(tmp_path) == []
    spool.rotate()
    spool.put(b"3\n")
    spool.rotate()
    assert lines(tmp_path) == [b"1", b"2", b"3"]
    assert (spool.written, spool.dropped) == (3, 0)


def test_rotating_nothing_leaves_nothing(tmp_path):
    spool = Spool(tmp_path, "requests", "boot", "proxy-0")
    spool.rotate()
    spool.put(b"1\n")
    spool.rotate()
    spool.rotate()
    assert [path.suffix for path in tmp_path.iterdir()] == [".ndjson"]


def test_a_segment_whose_writer_lives_is_left_alone(tmp_path):
    spool = Spool(tmp_path, "requests", "boot", "proxy-0")
    spool.put(b"1\n")
    assert list(adopt_orphans(tmp_path)) == []
    spool.rotate()
    assert lines(tmp_path) == [b"1"]


@given(
    whole=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=5),
    torn=st.binary(max_size=200_000),
)
def test_an_orphan_keeps_its_whole_lines_and_loses_its_torn_one(tmp_path_factory, whole, torn):
    torn = torn.replace(b"\n", b"")
    folder = tmp_path_factory.mktemp("spool")
    (folder / "requests.old.proxy-0.00000001.open").write_bytes(b"".join(line + b"\n" for line in whole) + torn)
    [(path, cut)] = adopt_orphans(folder)
    assert cut == len(torn)
    assert path.read_bytes() == b"".join(line + b"\n" for line in whole)


def test_a_full_disk_drops_the_line_whole_and_counts_it(tmp_path, monkeypatch):
    spool = Spool(tmp_path, "requests", "boot", "proxy-0")
    spool.put(b"first\n")
    real = os.write

    def short(file: int, data: bytes) -> int:
        return real(file, bytes(data)[:4])

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    for failing in (short, full):
        monkeypatch.setattr(os, "write", failing)
        assert spool.put(b"second line\n") is False
    monkeypatch.setattr(os, "write", real)
    assert spool.put(b"third\n") is True
    spool.rotate()
    assert lines(tmp_path) == [b"first", b"third"]
    assert (spool.written, spool.dropped) == (2, 2)


def test_a_folder_that_cannot_be_written_only_counts(tmp_path):
    spool = Spool(tmp_path / "spool", "requests", "boot", "proxy-0")
    (tmp_path / "spool").rmdir()
    assert spool.put(b"1\n") is False
    assert spool.dropped == 1


@pytest.mark.parametrize("table", ["requests", "model_events"])
def test_tables_do_not_mix(tmp_path, table):
    for name in ("requests", "model_events"):
        spool = Spool(tmp_path, name, "boot", "control")
        spool.put(name.encode() + b"\n")
        spool.rotate()
    [segment] = closed_segments(tmp_path, table)
    assert segment.read_bytes() == table.encode() + b"\n"


def test_a_control_that_never_comes_costs_the_oldest_lines_and_they_are_counted(tmp_path):
    spool = Spool(tmp_path, "requests", "boot", "proxy-0", limit_bytes=30)
    for number in range(10):
        spool.put(b"%08d\n" % number)
        spool.put(b"again\n")
        spool.rotate()
    assert lines(tmp_path) == [b"00000008", b"again", b"00000009", b"again"]
    assert (spool.written, spool.dropped) == (20, 16)


@given(taken=st.lists(st.booleans(), max_size=30))
def test_what_control_takes_is_never_counted_as_lost(tmp_path_factory, taken):
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, "requests", "boot", "proxy-0", limit_bytes=20)
    loaded = 0
    for number, take in enumerate(taken):
        spool.put(b"%04d\n" % number)
        spool.rotate()
        assert sum(path.stat().st_size for path in closed_segments(folder, "requests")) <= 20
        for path in closed_segments(folder, "requests") if take else ():
            loaded += len(path.read_bytes().splitlines())
            path.unlink()
    assert loaded + spool.dropped + len(lines(folder)) == spool.written == len(taken)
    if all(taken):
        assert spool.dropped == 0
