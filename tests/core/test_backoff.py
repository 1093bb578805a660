from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.backoff import FREE, LONGEST_S, NONE, WINDOW_S, Failures, address_key, after_failure, wait_s

gaps = st.lists(st.floats(0, 5000), max_size=60)


def fold(gaps_s: list[float]) -> tuple[Failures, float]:
    failures, now = NONE, 1000.0
    for gap in gaps_s:
        now += gap
        failures = after_failure(failures, now)
    return failures, now


@given(gaps)
def test_nobody_waits_before_the_free_failures_are_used_up(gaps_s: list[float]) -> None:
    failures, now = fold(gaps_s[: FREE - 1])
    assert wait_s(failures, now) == 0


@given(st.integers(FREE, 200))
def test_waits_double_up_to_the_longest(count: int) -> None:
    shorter, longer = wait_s(Failures(count, 5.0), 5.0), wait_s(Failures(count + 1, 5.0), 5.0)
    assert longer == min(LONGEST_S, shorter * 2)


@given(gaps)
def test_every_wait_ends(gaps_s: list[float]) -> None:
    failures, now = fold(gaps_s)
    assert wait_s(failures, now) <= LONGEST_S
    assert wait_s(failures, now + LONGEST_S) == 0


@given(gaps)
def test_a_quiet_time_wipes_the_slate(gaps_s: list[float]) -> None:
    failures, now = fold(gaps_s)
    assert after_failure(failures, now + WINDOW_S + LONGEST_S + 1).count == 1


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_one_ipv6_line_is_one_address(network: int, one: int, other: int) -> None:
    import ipaddress

    addresses = [str(ipaddress.IPv6Address((network | 1 << 61) << 64 | host)) for host in (one, other)]
    assert address_key(addresses[0]) == address_key(addresses[1])


def test_an_ipv4_address_written_as_ipv6_is_the_same_address() -> None:
    assert address_key("::ffff:10.0.0.7") == address_key("10.0.0.7") == "10.0.0.7"
    assert address_key("fe80::1%eth0") == address_key("fe80::2")
    assert address_key("not an address") == "not an address"
