"""Roles count only from whom the operator trusts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.access import networks
from fleetproxy.core.roles import MAX_ROLES_BYTES, any_of, vouched

PROXIES = networks(("10.0.0.0/8", "fd00::/8"))
names = st.text(st.characters(whitelist_categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8)


@given(st.lists(names, min_size=1, max_size=6), st.sampled_from(["", " ", "\t"]))
def test_a_trusted_proxy_vouches_for_every_name_it_lists(roles: list[str], blank: str) -> None:
    header = f"{blank},".join(f"{blank}{role}" for role in roles).encode()
    assert vouched(header, "10.1.2.3", PROXIES) == frozenset(roles)
    assert vouched(header, "::ffff:10.1.2.3", PROXIES) == frozenset(roles)


@given(st.binary(max_size=64), st.sampled_from(["11.0.0.1", "127.0.0.1", "", "unix", "fe80::1"]))
def test_nobody_else_vouches_for_anything(header: bytes, peer: str) -> None:
    assert vouched(header, peer, PROXIES) == frozenset()
    assert vouched(header, "10.1.2.3", ()) == frozenset()


def test_roles_without_end_are_none() -> None:
    assert vouched(b"a," * MAX_ROLES_BYTES, "10.1.2.3", PROXIES) == frozenset()


def test_case_counts_and_nothing_is_wanted_of_nobody() -> None:
    assert any_of(frozenset({"ops", "dev"}), ("ops",))
    assert not any_of(frozenset({"Ops"}), ("ops",))
    assert not any_of(frozenset(), ())
    assert not any_of(frozenset({""}), ())
