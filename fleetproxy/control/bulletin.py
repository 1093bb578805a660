"""The envelope for those who watch: made once for all of them, at most four times a second, never piled up.

A watcher always gets the newest one; what he was too slow for is left out, and who does not read at all is let go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleetproxy.errors import ProxyError

#: Between two frames when nothing changes; when everything does.
EVERY_S, LEAST_S = 2.0, 0.25
MAX_WATCHERS = 64


class TooManyWatchers(ProxyError):
    """Too many watch the state already; ask for `/api/state` instead, or try again shortly."""

    code, retry_after_s = "too_many_watchers", 5.0


class Bulletin:
    """`make` gives the envelope."""

    def __init__(self, make: Callable[[], bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._news = asyncio.Event()
        self._frame = b""
        self._made_at = float("-inf")
        self._stale = True
        self.watchers = 0
        #: Watchers since start that were let go because they did not read; that were refused.
        self.dropped = 0
        self.refused = 0
        #: Set when control leaves: streams end.
        self.closed = asyncio.Event()

    def changed(self) -> None:
        """Something watchers would like to know has happened."""
        self._stale = True
        self._news.set()
        self._news = asyncio.Event()

    def close(self) -> None:
        self.closed.set()
        self.changed()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For as long as somebody watches. Raises TooManyWatchers."""
        if self.watchers >= MAX_WATCHERS:
            self.refused += 1
            raise TooManyWatchers
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1

    def frame(self) -> bytes:
        """The newest envelope as one event."""
        now = self._clock()
        if self._stale or now - self._made_at >= LEAST_S:
            self._stale = False
            self._frame = b"data: " + self._make().strip() + b"\n\n"
            self._made_at = now
        return self._frame

    def goodbye(self, reason: str) -> bytes:
        """nfrx's stream has no last words: it ends."""
        return b""

    def too_slow(self) -> None:
        self.dropped += 1

    async def next(self) -> None:
        """Until there is reason for another frame."""
        news = self._news
        await asyncio.sleep(LEAST_S)
        try:
            async with asyncio.timeout(EVERY_S - LEAST_S):
                await news.wait()
        except TimeoutError:
            pass
