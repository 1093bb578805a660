"""The load board: one writer per cell, sums for everybody, and a row that dies with its process."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.link import board as load_board
from fleetproxy.link.board import COLUMNS, Board


@pytest.fixture
def path(tmp_path: Path) -> Path:
    load_board.create(tmp_path / "board", processes=2)
    return tmp_path / "board"


def test_a_load_is_the_sum_over_processes_and_not_over_the_hub(path):
    one, two, hub = Board(path, row=1), Board(path, row=2), Board(path, row=0)
    one.add(7, 2)
    two.add(7, 3)
    hub.add(7, 100)
    assert one.load(7) == two.load(7) == hub.load(7) == 5
    assert one.waiting(7) == 100
    assert one.load(8) == 0


def test_a_held_slot_is_given_back_also_on_error(path):
    board = Board(path, row=1)
    seen = []
    with contextlib.suppress(RuntimeError), board.hold(3):
        seen.append(board.load(3))
        raise RuntimeError
    assert seen == [1]
    assert board.load(3) == 0


def test_clearing_a_row_leaves_the_others(path):
    one, two = Board(path, row=1), Board(path, row=2)
    one.add(0, 1)
    one.add(COLUMNS - 1, 1)
    two.add(0, 4)
    Board(path).clear_row(1)
    assert (two.load(0), two.load(COLUMNS - 1)) == (4, 0)


def test_a_file_that_is_no_board_is_refused(tmp_path):
    (tmp_path / "board").write_bytes(b"x" * 100_000)
    with pytest.raises(ValueError, match="not a load board"):
        Board(tmp_path / "board")


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 3), st.sampled_from([1, -1])), max_size=60))
def test_every_reader_sees_the_same_sum_of_all_changes(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("board") / "board"
    load_board.create(path, processes=2)
    boards = {1: Board(path, row=1), 2: Board(path, row=2)}
    expected = dict.fromkeys(range(4), 0)
    for row, column, by in changes:
        boards[row].add(column, by)
        expected[column] += by
    reader = Board(path)
    assert {column: reader.load(column) for column in range(4)} == expected
