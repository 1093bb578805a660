from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.analytics.answers import Answer, as_csv, as_table, unique

names = st.lists(st.sampled_from(["n", "n_2", "n_3", "m", ""]) | st.text(max_size=5), max_size=12).map(tuple)
cells = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20)


@given(names)
def test_names_are_told_apart_and_the_first_of_each_keeps_its_own(given_names: tuple[str, ...]) -> None:
    found = unique(given_names)
    assert len(found) == len(set(found)) == len(given_names)
    for n, name in enumerate(given_names):
        if name not in given_names[:n]:
            assert found[n] == name


def test_rows_are_objects_by_column() -> None:
    answer = Answer(("n", "n", "m"), ("INTEGER",) * 3, [[1, 2, 3]])
    assert answer.objects() == [{"n": 1, "n_2": 2, "m": 3}]


@given(st.lists(st.lists(cells, min_size=2, max_size=2), max_size=5))
def test_no_cell_of_a_csv_is_a_formula_and_every_text_is_kept(rows: list[list[object]]) -> None:
    text = as_csv(Answer(("=cmd", "b"), ("VARCHAR", "VARCHAR"), rows))
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read[0] == ["'=cmd", "b"]
    assert len(read) == len(rows) + 1
    for shown, row in zip(read[1:], rows, strict=True):
        for cell, value in zip(shown, row, strict=True):
            if isinstance(value, str):
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
                assert cell.removeprefix("'") == value.removeprefix("'")
            else:
                assert cell == ("" if value is None else str(value))


@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=6))
def test_a_table_has_a_line_per_row_and_steers_no_terminal(rows: list[list[object]]) -> None:
    text = as_table(Answer(("a", "b\x1b[31m", "c\n"), ("VARCHAR",) * 3, rows))
    lines = text.split("\n")
    assert len(lines) == len(rows) + 3
    assert all(line.isprintable() for line in lines)


def test_a_table_as_it_looks() -> None:
    answer = Answer(
        ("model", "n", "p95", "tags"),
        ("VARCHAR", "BIGINT", "DOUBLE", "VARCHAR[]"),
        [["llama3:8b", 12, 1.5, ["a"]], ["模型", 3, None, None], ["x" * 70, 100, 22.25, {"k": 1}]],
    )
    assert as_table(answer, cell_characters=12) == (
        "model           n    p95  tags\n"
        "------------  ---  -----  -------\n"
        'llama3:8b      12    1.5  ["a"]\n'
        "模型            3\n"
        'xxxxxxxxxxx…  100  22.25  {"k":1}\n'
    )
    assert as_table(Answer((), (), [])) == "\n\n"
