"""Laws of the ledger of transfer channels."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fleetproxy.core import channels as ledger
from fleetproxy.core.channels import Channel, Channels, Rules, Side

SIDES = st.sampled_from(["reader", "writer"])
OWNERS = st.sampled_from(["anna", "ben", "carl"])


def made(channels: Channels, name: str = "c", owner: str = "anna", now_s: float = 0.0) -> Channel:
    channel = channels.make(name, owner, now_s)
    assert isinstance(channel, Channel)
    return channel


@given(st.permutations(["reader", "writer", "reader", "writer", "reader"]))
def test_each_end_is_given_once_whoever_comes_first(order: list[Side]) -> None:
    channels = Channels()
    made(channels)
    answers = [(side, channels.join("c", side, "x", 1.0)) for side in order]
    given_out = Counter(side for side, answer in answers if isinstance(answer, Channel))
    assert given_out == {"reader": 1, "writer": 1}
    assert {answer for _, answer in answers if isinstance(answer, str)} == {"transfer_in_use"}


@given(st.floats(0, 200), st.floats(0, 200), SIDES)
def test_both_ends_come_in_time_or_both_are_told_that_they_did_not(first_s: float, second_s: float, side: Side) -> None:
    first_s, second_s = sorted((first_s, second_s))
    channels = Channels(Rules(ttl_s=100.0))
    made(channels)
    other: Side = "writer" if side == "reader" else "reader"
    first = channels.join("c", side, "x", first_s)
    second = channels.join("c", other, "x", second_s)
    if second_s < 100.0:
        assert isinstance(first, Channel)
        assert second is first
        assert first.paired
    else:
        assert second == "transfer_expired"
        assert len(channels) == 0
        assert first == "transfer_expired" or isinstance(first, Channel)


def test_a_used_channel_is_in_use_for_its_time_and_then_unknown() -> None:
    channels = Channels(Rules(ttl_s=60.0))
    channel = made(channels)
    channels.join("c", "reader", "x", 1.0)
    channels.join("c", "writer", "x", 2.0)
    channels.leave(channel, "writer", 3.0)
    assert channels.join("c", "reader", "x", 62.9) == "transfer_in_use"
    assert channels.join("c", "reader", "x", 63.0) == "transfer_not_found"
    assert channels.remembered == 0


def test_an_expired_channel_is_gone_for_its_time_and_then_unknown() -> None:
    channels = Channels(Rules(ttl_s=60.0))
    channel = made(channels)
    assert not channels.expire(channel, 59.9)
    assert channels.expire(channel, 60.0)
    assert not channels.expire(channel, 61.0)
    assert channels.join("c", "writer", "x", 119.0) == "transfer_expired"
    assert channels.join("c", "writer", "x", 120.0) == "transfer_not_found"


@given(SIDES)
def test_an_end_that_waited_and_left_may_come_again(side: Side) -> None:
    channels = Channels()
    channel = made(channels)
    assert channels.join("c", side, "x", 1.0) is channel
    channels.leave(channel, side, 2.0)
    assert channels.join("c", side, "y", 3.0) is channel


def test_time_never_ends_a_channel_that_has_both_ends() -> None:
    channels = Channels(Rules(ttl_s=60.0))
    channel = made(channels)
    channels.join("c", "reader", "x", 1.0)
    channels.join("c", "writer", "x", 2.0)
    assert not channels.expire(channel, 1e9)
    assert channels.join("c", "reader", "x", 1e9) == "transfer_in_use"


@pytest.mark.parametrize("same_key", [False, True])
def test_a_channel_may_be_bound_to_the_key_that_made_it(same_key: bool) -> None:
    channels = Channels(Rules(same_key=same_key))
    channel = made(channels, owner="anna")
    assert channels.join("c", "reader", "ben", 1.0) == ("forbidden" if same_key else channel)
    assert isinstance(channels.join("c", "writer", "anna", 1.0), Channel)


def test_what_is_over_is_kept_in_mind_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_REMEMBERED", 5)
    channels = Channels()
    for number in range(20):
        channel = made(channels, f"c{number}")
        channels.expire(channel, 60.0)
        assert channels.remembered <= 5
    assert channels.join("c19", "reader", "x", 60.0) == "transfer_expired"
    assert channels.join("c0", "reader", "x", 60.0) == "transfer_not_found"


class Machine(RuleBasedStateMachine):
    """Any history of makers, ends and time: the caps hold, and nothing is counted that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = Rules(ttl_s=10.0, channels=6, channels_per_key=3)
        self.channels = Channels(self.rules)
        self.now_s = 0.0
        self.seen: list[Channel] = []

    @rule(owner=OWNERS)
    def make(self, owner: str) -> None:
        open_ones = [channel for channel in self.seen if self.is_open(channel)]
        answer = self.channels.make(f"c{len(self.seen)}", owner, self.now_s)
        mine = sum(channel.owner == owner for channel in open_ones)
        if mine >= 3:
            assert answer == "too_many_transfers"
        elif len(open_ones) >= 6:
            assert answer == "overloaded"
        else:
            assert isinstance(answer, Channel)
            self.seen.append(answer)

    @rule(data=st.data(), side=SIDES)
    def join(self, data: st.DataObject, side: Side) -> None:
        if self.seen:
            channel = data.draw(st.sampled_from(self.seen))
            was_open, taken = self.is_open(channel), getattr(channel, side)
            answer = self.channels.join(channel.id, side, "x", self.now_s)
            assert (answer is channel) == (
                was_open and not taken and (self.now_s < channel.expires_at_s or channel.paired)
            )

    @rule(data=st.data(), side=SIDES)
    def leave(self, data: st.DataObject, side: Side) -> None:
        if self.seen:
            channel = data.draw(st.sampled_from(self.seen))
            if getattr(channel, side):
                self.channels.leave(channel, side, self.now_s)

    @rule(by_s=st.floats(0.1, 8))
    def pass_time(self, by_s: float) -> None:
        self.now_s += by_s
        for channel in self.seen:
            self.channels.expire(channel, self.now_s)

    def is_open(self, channel: Channel) -> bool:
        return channel.id in self.channels._open

    @invariant()
    def counted_exactly(self) -> None:
        open_ones = [channel for channel in self.seen if self.is_open(channel)]
        assert len(self.channels) == len(open_ones) <= 6
        for owner in ("anna", "ben", "carl"):
            assert self.channels.of(owner) == sum(channel.owner == owner for channel in open_ones) <= 3
        for channel in open_ones:
            assert channel.paired or self.now_s < channel.expires_at_s


TestMachine = Machine.TestCase
