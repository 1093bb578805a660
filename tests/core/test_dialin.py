from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core import dialin
from fleetproxy.core.dialin import Rules, authorised, digest, owner

KEYS = st.text(max_size=12)
ROLES = st.lists(st.sampled_from(["a", "b", "gpu"]), max_size=3).map(tuple)


@given(KEYS.filter(bool), KEYS, KEYS, ROLES, ROLES)
def test_a_configured_key_lets_in_exactly_who_shows_it_or_has_a_role(
    key: str, header: str, message: str, allowed: tuple[str, ...], roles: tuple[str, ...]
) -> None:
    rules = Rules(client_key=key, roles=allowed)
    let_in = authorised(rules, header_key=header, message_key=message, roles=roles)
    assert let_in == (key in (header, message) or bool(set(allowed) & set(roles)))


@given(KEYS, KEYS, ROLES, st.booleans())
def test_without_a_configured_key_only_a_shown_one_can_be_wrong(
    header: str, message: str, roles: tuple[str, ...], strict: bool
) -> None:
    for none in (None, ""):
        rules = Rules(client_key=none, roles=("gpu",), strict=strict)
        let_in = authorised(rules, header_key=header, message_key=message, roles=roles)
        assert let_in == (not strict or not (header or message))
        assert dialin.key_owner(rules, header) is None


@given(st.lists(KEYS.filter(bool), min_size=1, max_size=5, unique=True), KEYS, KEYS)
def test_each_key_is_its_owners_and_nobody_elses(keys: list[str], header: str, message: str) -> None:
    shared, named = keys[0], {key: f"n{place}" for place, key in enumerate(keys[1:])}
    rules = Rules(client_key=shared, named=tuple((name, digest(key)) for key, name in named.items()), roles=("gpu",))
    expected = next(
        (
            f"key {named[shown]}" if shown in named else "the client key"
            for shown in (header, message)
            if shown in named or shown == shared
        ),
        None,
    )
    assert owner(rules, header_key=header, message_key=message, roles=()) == expected
    assert owner(rules, header_key="", message_key="", roles=("x", "gpu")) == "role gpu"


@given(KEYS)
def test_a_key_may_be_given_as_its_hash(key: str) -> None:
    assert digest(f"sha256:{digest(key).hex()}") == digest(key)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20), st.sampled_from(["Bearer", "bearer"]))
def test_a_bearer_token_is_read_from_its_header_in_any_case(token: str, scheme: str) -> None:
    assert dialin.bearer(f"{scheme} {token}".encode()) == token
    assert dialin.bearer(f"Basic {token}".encode()) == ""
    assert dialin.bearer(None) == ""


def test_roles_are_a_comma_separated_list() -> None:
    assert dialin.role_list(b" a, b ,,c") == ("a", "b", "c")
    assert dialin.role_list(None) == ()
