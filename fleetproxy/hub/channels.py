"""Transfer channels: the writer's bytes go to the reader's proxy process as they come, within the reader's credit.

Nothing is kept here: a writer sends nothing before the reader is there, and then only what the reader has given credit
for. Which ends may come in is decided in `core/channels.py`; ids are secrets and are never logged.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from fleetproxy.core.channels import Channel, Channels, Rules, Side
from fleetproxy.families import transfer
from fleetproxy.settings import Settings
from fleetproxy.wire import frames, payloads
from fleetproxy.wire.frames import FrameError

if TYPE_CHECKING:
    from fleetproxy.hub.proxies import Proxy

#: Unless the writer says what it writes.
_OCTETS = b"application/octet-stream"
_SIDES: dict[str, Side] = {"read": "reader", "write": "writer"}


class End:
    """One end of a channel: a stream of some proxy process. Implements `streams.StreamEnd`."""

    __slots__ = ("meeting", "number", "over", "proxy", "request", "side")

    def __init__(self, proxy: Proxy, number: int, side: Side, request: payloads.Transfer, meeting: Meeting) -> None:
        self.proxy = proxy
        self.number = number
        self.side = side
        self.request = request
        self.meeting = meeting
        self.over = False

    def say(self, kind: int, payload: bytes = b"") -> None:
        self.proxy.send(frames.encode(kind, self.number, payload))

    def reset(self, code: str) -> None:
        """Tell this end that it is over."""
        if not self.over:
            self.say(frames.RESET, payloads.encode(payloads.Reset(code)))
            self.forget()

    def forget(self) -> None:
        self.over = True
        self.proxy.streams.pop(self.number, None)

    # --- StreamEnd ---------------------------------------------------------------------------------------------------

    def frame(self, kind: int, payload: bytes) -> None:
        if kind == frames.RESET:
            self.abandon()
        elif self.side == "writer":
            self.meeting.from_writer(kind, payload)
        else:
            self.meeting.from_reader(kind, payload)

    def abandon(self) -> None:
        self.forget()
        self.meeting.left(self)


class Meeting:
    """A channel with the ends that have come."""

    __slots__ = ("_ends", "_taken", "_timer", "_transfers", "_whole", "_written", "channel")

    def __init__(self, channel: Channel, transfers: Transfers) -> None:
        self.channel = channel
        self._transfers = transfers
        self._ends: dict[Side, End] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: Something of the body has been passed on, or its end.
        self._written = False
        #: The reader has all of it.
        self._taken = False
        #: The writer has said that it is done.
        self._whole = False

    def arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Expire when the time comes, unless both ends are there by then."""
        self._timer = loop.call_at(self.channel.expires_at_s, self._due, loop)

    def join(self, end: End) -> None:
        self._ends[end.side] = end
        if self.channel.paired:
            if self._timer is not None:
                self._timer.cancel()
            self._ends["writer"].say(frames.HEAD, payloads.encode(payloads.Head(200)))

    def left(self, end: End) -> None:
        """An end broke off: the other one hears it now, if it was there already."""
        if self._ends.get(end.side) is not end:
            return
        if self.channel.paired:
            self._transfers.counts["broken"] += 1
            self.close("transfer_failed")
        else:
            del self._ends[end.side]
        self._transfers.leave(self.channel, end.side)

    def close(self, code: str) -> None:
        """Over, for the ends that are left."""
        if self._timer is not None:
            self._timer.cancel()
        for end in self._ends.values():
            end.reset(code)
        self._ends.clear()

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._transfers.expire(self.channel):
            self.close("transfer_expired")
        else:  # the timer was a hair too early
            self.arm(loop)

    # --- both are there ----------------------------------------------------------------------------------------------

    def from_writer(self, kind: int, payload: bytes) -> None:
        if not self.channel.paired or self._whole:
            raise FrameError("a writer may not send now")
        reader = self._ends["reader"]
        if kind not in (frames.DATA, frames.END):
            raise FrameError(f"a {frames.NAMES[kind]} frame does not come from a writer")
        if not self._written:
            self._written = True
            request = self._ends["writer"].request
            headers = ((b"content-type", request.content_type or _OCTETS),)
            reader.say(frames.HEAD, payloads.encode(payloads.Head(200, headers, request.content_length)))
        if kind == frames.DATA:
            self._transfers.passed_bytes += len(payload)
            reader.proxy.send_data(frames.header(frames.DATA, reader.number, len(payload)), payload)
        else:
            self._whole = True
            if self._taken:
                self._complete()
            else:
                reader.say(frames.END)

    def from_reader(self, kind: int, payload: bytes) -> None:
        writer = self._ends.get("writer")
        if kind == frames.WINDOW and writer is not None and self.channel.paired:
            writer.say(frames.WINDOW, payload)
        elif kind == frames.END and self._written and not self._taken:
            # A reader that was told the length knows that it has all of it, maybe before the writer's END is here.
            self._taken = True
            if self._whole:
                self._complete()
        elif kind == frames.WINDOW:
            raise FrameError("a reader that has nothing may not give credit")
        else:
            raise FrameError(f"a {frames.NAMES[kind]} frame does not come from a reader now")

    def _complete(self) -> None:
        self._ends["writer"].say(frames.END)
        for end in self._ends.values():
            end.forget()
        self._ends.clear()
        self._transfers.counts["completed"] += 1
        self._transfers.leave(self.channel, "reader")


class Transfers:
    """Opens channels and their ends for proxy processes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wall_s: Callable[[], float] = time.time) -> None:
        self._loop = loop
        self._wall_s = wall_s
        self._channels = Channels()
        self._meetings: dict[str, Meeting] = {}
        #: Since start: "made", "completed", "broken", "expired", and refusals by their code.
        self.counts: Counter[str] = Counter()
        #: Bytes of bodies, since start.
        self.passed_bytes = 0

    def __len__(self) -> int:
        return len(self._channels)

    def configure(self, settings: Settings) -> None:
        """Use these settings for channels made from now on."""
        ours = settings.transfer
        self._channels.rules = Rules(
            ttl_s=ours.ttl_s,
            channels=ours.channels,
            channels_per_key=ours.channels_per_key,
            same_key=ours.same_key,
        )

    def open(self, proxy: Proxy, number: int, opening: payloads.Open) -> None:
        """A proxy process brings an end, or wants a new channel. Raises FrameError when it makes no sense."""
        asked = payloads.decode(opening.request, payloads.Transfer)
        if asked.action == "create":
            self._make(proxy, number, asked)
            return
        side = _SIDES.get(asked.action)
        if side is None:
            raise FrameError(f"nobody can {asked.action} a channel")
        now_s = self._loop.time()
        channel = self._channels.join(asked.channel, side, asked.owner, now_s)
        if isinstance(channel, str):
            self.counts[channel] += 1
            late = self._meetings.pop(asked.channel, None) if channel == "transfer_expired" else None
            if late is not None:
                self.counts["expired"] += 1
                late.close("transfer_expired")
            proxy.send(frames.encode(frames.RESET, number, payloads.encode(payloads.Reset(channel))))
            return
        meeting = self._meetings[channel.id]
        end = proxy.streams[number] = End(proxy, number, side, asked, meeting)
        meeting.join(end)

    def leave(self, channel: Channel, side: Side) -> None:
        """An end of a channel is gone, or both are done."""
        if channel.paired:
            self._meetings.pop(channel.id, None)
        self._channels.leave(channel, side, self._loop.time())

    def expire(self, channel: Channel) -> bool:
        if not self._channels.expire(channel, self._loop.time()):
            return False
        self.counts["expired"] += 1
        self._meetings.pop(channel.id, None)
        return True

    def close(self) -> None:
        """The hub leaves."""
        for meeting in tuple(self._meetings.values()):
            meeting.close("transfer_failed")
        self._meetings.clear()

    def _make(self, proxy: Proxy, number: int, asked: payloads.Transfer) -> None:
        now_s = self._loop.time()
        made = self._channels.make(str(uuid.UUID(bytes=secrets.token_bytes(16))), asked.owner, now_s)
        if isinstance(made, str):
            self.counts[made] += 1
            proxy.send(frames.encode(frames.RESET, number, payloads.encode(payloads.Reset(made))))
            return
        self.counts["made"] += 1
        meeting = self._meetings[made.id] = Meeting(made, self)
        meeting.arm(self._loop)
        body = transfer.made(made.id, self._wall_s() + made.expires_at_s - now_s)
        proxy.send(
            frames.encode(frames.HEAD, number, payloads.encode(payloads.Head(200, (), len(body))))
            + frames.encode(frames.DATA, number, body)
            + frames.encode(frames.END, number)
        )
