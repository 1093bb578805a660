from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.password_policy import COMMON, MIN_CHARACTERS, normalise, password_fault, username_fault


@given(st.text(max_size=MIN_CHARACTERS - 1))
def test_short_passwords_are_refused(password: str) -> None:
    if len(normalise(password)) < MIN_CHARACTERS:
        assert password_fault(password, "ann") == "password must be at least 10 characters"


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", min_size=12, max_size=200))
def test_long_passwords_of_several_letters_are_taken(password: str) -> None:
    if len(set(password)) > 2 and password not in COMMON:
        assert password_fault(password, "x") is None


@given(st.text(max_size=3000), st.text(max_size=100))
def test_any_text_gets_an_answer(password: str, username: str) -> None:
    assert password_fault(password, username) is None or password_fault(password, username)
    assert username_fault(username) is None or username_fault(username)


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("x" * 1025, "1024 bytes"),
        ("é" * 600, "1024 bytes"),
        ("ordinary\0password", "control"),
        ("Administrator", "guessed first"),
        ("aAaAaAaAaAaA", "guessed first"),
        ("Somebody.Else", "username"),
        ("eslE.ydobemoS", "username"),
    ],
)
def test_unfit_passwords_are_named(password: str, words: str) -> None:
    assert words in (password_fault(password, " somebody.else ") or "")


def test_two_ways_to_type_a_letter_are_one_password() -> None:
    assert normalise("caf\u00e9 au lait") == normalise("cafe\u0301 au lait")


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "a" * 65, "\u202eevil"])
def test_unfit_names_are_refused(name: str) -> None:
    assert username_fault(name)


@pytest.mark.parametrize("name", ["ann", "Ann Smith", "ann@example.org", "安娜"])
def test_ordinary_names_are_taken(name: str) -> None:
    assert username_fault(name) is None
