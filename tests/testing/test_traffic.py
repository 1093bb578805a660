"""The demo's traffic: a plan from a seed, and clients that keep to it."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import islice, pairwise

import orjson
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.testing.fakes import Fake, Profile
from fleetproxy.testing.traffic import BASE_PER_S, CHOICES, DAY_S, MOST_AT_ONCE, SOURCES, Tally, drive, plan, rate_per_s


@given(st.integers())
def test_equal_seeds_give_equal_plans_in_order_of_time(seed: int) -> None:
    visits = list(islice(plan(seed), 120))
    assert visits == list(islice(plan(seed), 120))
    assert all(one.at_s <= two.at_s for one, two in pairwise(visits))
    assert {visit.source for visit in visits} <= set(SOURCES)


def test_a_day_of_the_plan_has_every_kind_of_request_bursts_and_leavers() -> None:
    visits = [visit for visit in islice(plan(1), 4000) if visit.at_s < 10 * DAY_S]
    asked = {(visit.path, orjson.loads(visit.body)["model"]) for visit in visits}
    assert len({path for path, _ in asked}) == len({kind for _, kind, _ in CHOICES})
    assert {model for _, model in asked} == {model for _, _, model in CHOICES}
    assert any(visit.patience_s is not None for visit in visits)
    gaps = [two.at_s - one.at_s for one, two in pairwise(visits)]
    assert sum(gap < 0.031 for gap in gaps) > 50
    per_s = len(visits) / visits[-1].at_s
    assert BASE_PER_S * 0.7 < per_s < BASE_PER_S * 2


@given(st.floats(min_value=0, max_value=1e6))
def test_the_rate_is_never_zero_and_comes_back_each_day(now_s: float) -> None:
    assert 0 < rate_per_s(now_s) <= BASE_PER_S * 1.7 + 1e-9
    assert abs(rate_per_s(now_s) - rate_per_s(now_s + DAY_S)) < 1e-3


async def test_clients_carry_the_plan_out() -> None:
    models = tuple({model for _, _, model in CHOICES if not model.startswith("a-model")})
    tally = Tally()
    async with Fake(Profile(models=models, seed=1)) as fake:
        driving = asyncio.create_task(drive("127.0.0.1", fake.http.port, 3, 200.0, tally))
        async with asyncio.timeout(20):
            while tally.answered < 200:
                await asyncio.sleep(0.01)
        driving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await driving
        assert not fake.crashes
        assert not fake.http.bad_messages
        assert {row.header("x-ollama-source") for row in fake.journal.rows} == set(SOURCES)
        assert fake.machine.engine.peak <= MOST_AT_ONCE
