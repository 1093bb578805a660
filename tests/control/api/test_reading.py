from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.api.reading import _depth, integer, path_id
from fleetproxy.errors import BadRequest


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12), ("12abc", 12), ("1.9", 1), ("  7", 7), ("+3", 3), ("-3", -3), ("007", 7), ("0", 0), ("00", 0),
        ("1e9", 1), ("", None), ("abc", None), ("-", None), (None, None), ("\u0661", None), (".5", None),
        ("9" * 30, 10**18), ("-" + "9" * 30, -(10**18)),
    ],
)  # fmt: skip
def test_the_integer_a_text_begins_with(text: str | None, number: int | None) -> None:
    assert integer(text) == number


@given(st.text())
def test_any_text_has_a_bounded_integer_or_none(text: str) -> None:
    found = integer(text)
    assert found is None or abs(found) <= 10**18


@given(st.integers(-(2**62), 2**62))
def test_a_path_id_fits_the_store(number: int) -> None:
    assert -1 <= path_id(str(number), "user ID") <= 2**53


def test_other_text_is_named() -> None:
    with pytest.raises(BadRequest, match="Invalid job ID"):
        path_id("x", "job ID")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=20,
)


def nesting(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    return 1 + max(map(nesting, value), default=0) if isinstance(value, list) else 0


@given(json_values)
def test_depth_is_that_of_the_brackets_outside_of_strings(value: object) -> None:
    assert _depth(msgspec.json.encode(value)) == nesting(value)


@given(st.binary(max_size=3000))
def test_any_bytes_have_a_depth(raw: bytes) -> None:
    assert 0 <= _depth(raw) <= len(raw)


def test_strings_that_never_end_are_read_in_linear_time() -> None:
    assert _depth(b'"' + b'\\"' * 200_000) == 0
    assert _depth(b"[" * 5 + b'"' + b"[" * 200_000) == 5
