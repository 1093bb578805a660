from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.usage import NOTHING, Usage

COUNTS = st.none() | st.integers(0, 10**9)
TIMES = st.none() | st.integers(0, 10**6).map(float)
USAGES = st.builds(Usage, COUNTS, COUNTS, TIMES, TIMES, TIMES)


@given(USAGES, USAGES, USAGES)
def test_usage_is_a_commutative_monoid(a: Usage, b: Usage, c: Usage) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + NOTHING == NOTHING + a == a
    assert a + b == b + a


@given(USAGES, USAGES)
def test_what_one_side_does_not_report_is_the_other_sides(a: Usage, b: Usage) -> None:
    total = a + b
    for field in Usage.__struct_fields__:
        parts = [part for part in (getattr(a, field), getattr(b, field)) if part is not None]
        assert getattr(total, field) == (sum(parts) if parts else None)
