"""Transfer channels as a ledger: who made one, which ends are taken, what is over. No clock, no ids, no I/O.

    made ──► one end waits ──► both ends there ──► over (kept in mind for a while)
      └──────────┴── time passes ──► expired (kept in mind as long)

A channel has one reader and one writer, ever. One that waits and leaves again frees its end: nothing has moved yet.
Once both were there the channel is used up, however it ends. `now_s` is any monotonic clock's seconds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Literal

import msgspec

Side = Literal["reader", "writer"]
#: What an end that wants to come in is told instead, as codes of `errors.py`.
Refusal = Literal["transfer_not_found", "transfer_in_use", "transfer_expired", "forbidden"]

#: Channels that are over and kept in mind; beyond it the oldest are forgotten (and then not found, instead of in use).
MAX_REMEMBERED = 100_000


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The section `transfer` of the settings, as far as the ledger asks."""

    ttl_s: float = 60.0
    channels: int = 10_000
    channels_per_key: int = 100
    same_key: bool = False


class Channel(msgspec.Struct, eq=False):
    """One channel that is not over."""

    id: str
    owner: str
    expires_at_s: float
    reader: bool = False
    writer: bool = False

    @property
    def paired(self) -> bool:
        return self.reader and self.writer


class Channels:
    """All channels of one hub."""

    def __init__(self, rules: Rules = Rules()) -> None:
        self.rules = rules
        self._open: dict[str, Channel] = {}
        self._of: Counter[str] = Counter()
        #: Id of a channel that is over -> (what whoever comes late is told, until when).
        self._over: OrderedDict[str, tuple[Refusal, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def remembered(self) -> int:
        """Channels that are over and still known."""
        return len(self._over)

    def of(self, owner: str) -> int:
        """Open channels of one owner."""
        return self._of[owner]

    def make(self, channel_id: str, owner: str, now_s: float) -> Channel | Literal["too_many_transfers", "overloaded"]:
        """A new channel under an id nobody can guess; the code of an error when there may not be another one."""
        rules = self.rules
        self.forget(now_s)
        if self._of[owner] >= rules.channels_per_key:
            return "too_many_transfers"
        if len(self._open) >= rules.channels:
            return "overloaded"
        channel = self._open[channel_id] = Channel(channel_id, owner, now_s + rules.ttl_s)
        self._of[owner] += 1
        return channel

    def join(self, channel_id: str, side: Side, owner: str, now_s: float) -> Channel | Refusal:
        """Take one end of a channel."""
        channel = self._open.get(channel_id)
        if channel is None:
            self.forget(now_s)
            return self._over.get(channel_id, ("transfer_not_found", 0.0))[0]
        if self.rules.same_key and owner != channel.owner:
            return "forbidden"
        if getattr(channel, side):
            return "transfer_in_use"
        if not channel.paired and channel.expires_at_s <= now_s:
            return self._end(channel, "transfer_expired", now_s)
        setattr(channel, side, True)
        return channel

    def leave(self, channel: Channel, side: Side, now_s: float) -> None:
        """An end is gone. Before the other one came its place is free again; after that the channel is over."""
        if self._open.get(channel.id) is not channel:
            return
        if channel.paired:
            self._end(channel, "transfer_in_use", now_s)
        else:
            setattr(channel, side, False)

    def expire(self, channel: Channel, now_s: float) -> bool:
        """Whether the channel's time is over now, without both ends having come."""
        if self._open.get(channel.id) is not channel or channel.paired or channel.expires_at_s > now_s:
            return False
        self._end(channel, "transfer_expired", now_s)
        return True

    def forget(self, now_s: float) -> None:
        """Let go of what has been over for long enough."""
        over = self._over
        while over:
            channel_id, (_, until_s) = next(iter(over.items()))
            if until_s > now_s and len(over) <= MAX_REMEMBERED:
                return
            del over[channel_id]

    def _end(self, channel: Channel, told: Refusal, now_s: float) -> Refusal:
        del self._open[channel.id]
        self._of[channel.owner] -= 1
        if self._of[channel.owner] <= 0:
            del self._of[channel.owner]
        self._over[channel.id] = (told, now_s + self.rules.ttl_s)
        self.forget(now_s)
        return told
