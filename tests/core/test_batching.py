"""Splitting embeddings and putting them together again: the laws."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.batching import (
    OLLAMA_ROWS,
    OPENAI_ROWS,
    BadAnswer,
    Ledger,
    Merged,
    Part,
    Slice,
    merge,
    portions,
    read,
    reorder,
    slices,
)

counts = st.integers(0, 400)
team = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 50)), min_size=1, max_size=6)


@given(counts, team)
def test_slices_cover_every_item_once_and_in_order(n: int, places: list[tuple[int, int]]) -> None:
    weights, sizes = zip(*places, strict=True)
    planned = slices(n, weights, sizes)
    assert [item for own in planned for piece in own for item in piece.items] == list(range(n))
    assert all(0 < len(piece.items) <= size for own, size in zip(planned, sizes, strict=True) for piece in own)


@given(counts, team)
def test_sizes_follow_weights(n: int, places: list[tuple[int, int]]) -> None:
    weights = [weight for weight, _ in places]
    for run, weight in zip(portions(n, weights), weights, strict=True):
        assert abs(len(run) - n * weight / sum(weights)) < 1


@given(counts, team)
def test_a_places_slices_are_even_and_no_more_than_needed(n: int, places: list[tuple[int, int]]) -> None:
    weights, sizes = zip(*places, strict=True)
    for own, size, run in zip(slices(n, weights, sizes), sizes, portions(n, weights), strict=True):
        assert len(own) == -(-len(run) // size)
        lengths = [len(piece.items) for piece in own]
        assert not lengths or max(lengths) - min(lengths) <= 1


def test_the_ancestors_example_and_the_smallest_ones() -> None:
    assert [list(run) for run in portions(6, [10, 2])] == [[0, 1, 2, 3, 4], [5]]
    assert slices(0, [1], [1]) == ((),)
    assert slices(3, [1], [9]) == ((Slice(0, 3),),)
    assert portions(5, [0, 0]) == (range(0), range(0))


@given(st.integers(1, 200), team, st.integers(0, 3), st.randoms(use_true_random=False))
def test_whatever_fails_everything_is_done_once_and_never_twice_at_one_place(
    n: int, places: list[tuple[int, int]], helpers: int, rng: random.Random
) -> None:
    weights, sizes = zip(*places, strict=True)
    limits: list[int | None] = [*sizes, *[None] * helpers]
    ledger = Ledger(slices(n, weights, sizes), limits)
    done: list[int] = []
    failed: dict[int, set[int]] = {}
    everybody = list(range(len(limits)))
    for _ in range(100_000):
        place = rng.choice(everybody)
        taken = ledger.take(place)
        if taken is None:
            if not list(ledger.waiting()):
                break
            continue
        limit = limits[place]
        if limit is not None and place not in range(len(places)):
            assert len(taken.items) <= limit
        assert all(place not in failed.get(item, ()) for item in taken.items)
        if len(taken.tried) + 1 < len(limits) and rng.random() < 0.3:
            for item in taken.items:
                failed.setdefault(item, set()).add(place)
            ledger.give_back(taken.failed_at(place))
            if rng.random() < 0.5:
                ledger.give_up(place)
        else:
            done += taken.items
    assert sorted(done) == list(range(n))


def test_somebody_who_is_done_helps_who_is_behind_with_no_more_than_he_takes() -> None:
    ledger = Ledger(slices(100, [1, 1], [50, 10]), [50, 10])
    mine = [ledger.take(1) for _ in range(5)]
    assert {len(piece.items) for piece in mine if piece} == {10}
    helped = ledger.take(1)
    assert helped == Slice(40, 50)
    assert ledger.take(0) == Slice(0, 40)
    assert ledger.take(0) is None


def test_who_only_helps_out_gets_only_what_was_given_back() -> None:
    ledger = Ledger(slices(4, [1], [2]), [2, None])
    assert ledger.take(1) is None
    piece = ledger.take(0)
    assert piece is not None
    ledger.give_back(piece.failed_at(0))
    assert ledger.take(1) == Slice(0, 2, frozenset({0}))


# --- answers ---------------------------------------------------------------------------------------------------------

vectors = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70), max_size=4)
embeddings = vectors | st.text("ABCabc+/=", max_size=12)
usages = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 2**53), "total_tokens": st.integers(0, 2**53)},
    optional={"prompt_tokens_details": st.none() | st.fixed_dictionaries({"cached_tokens": st.integers(0, 99)})},
)


def openai_answer(rows: list[Any], usage: dict[str, Any], **more: Any) -> bytes:
    data = [{"object": "embedding", "embedding": row, "index": index} for index, row in enumerate(rows)]
    return json.dumps({"object": "list", "data": data, "model": "m", "usage": usage, **more}).encode()


def whole(merged: Merged) -> Any:
    return json.loads(b"".join(merged.pieces))


def exactly(body: bytes) -> Any:
    """Parsed with numbers as they were written."""
    return json.loads(body, parse_float=str, parse_int=str)


@st.composite
def cut(draw: st.DrawFn, n: int) -> list[Slice]:
    """`range(n)` in slices, in any order."""
    at = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=5))})
    return draw(st.permutations([Slice(start, stop) for start, stop in itertools.pairwise(at)]))


@given(st.lists(embeddings, min_size=1, max_size=12), st.data())
def test_the_merged_answer_is_the_unsplit_one(rows: list[Any], data: st.DataObject) -> None:
    pieces = data.draw(cut(len(rows)))
    spent = {piece: data.draw(st.integers(0, 10**6)) for piece in pieces}
    parts = [
        read(
            openai_answer(
                rows[piece.start : piece.stop], {"prompt_tokens": spent[piece], "total_tokens": spent[piece]}
            ),
            OPENAI_ROWS,
            piece,
        )
        for piece in pieces
    ]
    total = sum(spent.values())
    unsplit = openai_answer(rows, {"prompt_tokens": total, "total_tokens": total})
    assert exactly(b"".join(merge(parts, OPENAI_ROWS).pieces)) == exactly(unsplit)
    assert json.loads(merge(parts, OPENAI_ROWS).rest) == {
        name: value for name, value in json.loads(unsplit).items() if name != "data"
    }


@given(st.lists(vectors, min_size=1, max_size=12), st.data())
def test_ollamas_answers_sum_counts_and_keep_the_longest_duration(rows: list[Any], data: st.DataObject) -> None:
    pieces = data.draw(cut(len(rows)))
    took = {piece: data.draw(st.integers(0, 10**12)) for piece in pieces}
    spent = {piece: data.draw(st.integers(1, 99)) for piece in pieces}
    loading = min(pieces, key=lambda piece: piece.start if len(pieces) == 1 else -piece.start)
    parts = []
    for piece in pieces:
        said = {"model": "m", "embeddings": rows[piece.start : piece.stop], "total_duration": took[piece]}
        said["prompt_eval_count"] = spent[piece]
        if piece is loading:
            said["load_duration"] = 5
        parts.append(read(json.dumps(said).encode(), OLLAMA_ROWS, piece))
    assert whole(merge(parts, OLLAMA_ROWS)) == {
        "model": "m",
        "embeddings": json.loads(json.dumps(rows)),
        "total_duration": max(took.values()),
        "load_duration": 5,
        "prompt_eval_count": sum(spent.values()),
    }


@given(st.lists(usages, min_size=3, max_size=3))
def test_grouping_does_not_matter_and_no_field_is_invented(each: list[dict[str, Any]]) -> None:
    answers = [openai_answer([[number]], usage) for number, usage in enumerate(each)]
    parts = [read(answer, OPENAI_ROWS, Slice(at, at + 1)) for at, answer in enumerate(answers)]
    left = _as_part(merge(parts[:2], OPENAI_ROWS), Slice(0, 2))
    right = _as_part(merge(parts[1:], OPENAI_ROWS), Slice(1, 3))
    expected = whole(merge(parts, OPENAI_ROWS))
    assert whole(merge([left, parts[2]], OPENAI_ROWS)) == expected
    assert whole(merge([parts[0], right], OPENAI_ROWS)) == expected
    assert set(expected) == set(json.loads(answers[0]))
    assert set(expected["usage"]) == set().union(*each)


def _as_part(merged: Merged, piece: Slice) -> Part:
    """An answer of a part as if a server had given it: numbered from 0."""
    said = whole(merged)
    for number, row in enumerate(said["data"]):
        row["index"] = number
    return read(json.dumps(said).encode(), OPENAI_ROWS, piece)


@given(st.lists(st.integers(), max_size=8), st.data())
def test_rows_are_put_where_their_number_says(rows: list[int], data: st.DataObject) -> None:
    numbers = data.draw(st.permutations(range(len(rows))))
    shuffled = [rows[number] for number in numbers]
    assert reorder(shuffled, numbers) == rows


@given(st.lists(st.none() | st.integers(-2, 9), min_size=1, max_size=6))
def test_numbers_that_make_no_sense_change_nothing(numbers: list[int | None]) -> None:
    entries = [object() for _ in numbers]
    if sorted(number for number in numbers if number is not None) != list(range(len(numbers))):
        assert reorder(entries, numbers) == entries


def test_rows_without_an_index_get_none_and_keep_what_else_they_have() -> None:
    body = b'{"data":[{"embedding":"QQ==","x":1.10},{"embedding":[1e-400]}]}'
    assert read(body, OPENAI_ROWS, Slice(4, 6)).rows == [b'{"embedding":"QQ==","x":1.10}', b'{"embedding":[1e-400]}']
    body = b'{"data":[{"index":"one","embedding":[]}]}'
    assert read(body, OPENAI_ROWS, Slice(7, 8)).rows == [b'{"index":7,"embedding":[]}']


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"data":[]}',
        b'{"data":null}',
        b'{"data":[1]}',
        b'{"data":[{},{}]}',
        b'{"error":"x"}',
        b"\xff",
    ],
)
def test_what_is_no_answer_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        read(body, OPENAI_ROWS, Slice(0, 1))


@given(st.binary(max_size=60), st.sampled_from([OPENAI_ROWS, OLLAMA_ROWS]))
def test_garbage_raises_nothing_else(body: bytes, rows_key: str) -> None:
    try:
        read(body, rows_key, Slice(0, 2))
    except BadAnswer:
        pass


def test_values_that_do_not_add_up_stay_as_the_first_has_them() -> None:
    one, two = (
        Part(0, [b"1"], {"usage": b'{"a":null,"b":"x","c":true}', "x_duration": b"null", "z": b"1"}),
        Part(1, [b"2"], {"usage": b'{"a":3,"b":4,"d":5}', "x_duration": b"7", "z": b"2", "y_duration": b'"?"'}),
    )
    third = Part(2, [b"3"], {"usage": b'"?"', "y_duration": b"null"})
    assert whole(merge([two, third, one], OLLAMA_ROWS)) == {
        "embeddings": [1, 2, 3],
        "usage": {"a": 3, "b": "x", "c": True, "d": 5},
        "x_duration": 7,
        "z": 1,
        "y_duration": "?",
    }
    assert whole(merge([], OLLAMA_ROWS)) == {"embeddings": []}
