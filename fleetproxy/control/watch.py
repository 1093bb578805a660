"""What watchers of the state are shown, kept up to date by whatever happens in control."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fleetproxy.control.bulletin import Bulletin
from fleetproxy.control.envelope import Counter, Envelope, Guests, Members
from fleetproxy.control.tallies import Tallies
from fleetproxy.link.messages import Count
from fleetproxy.settings import Settings


class Watch:
    """One per control process; the app's state `watch`."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        fleet: Members,
        visitors: Guests,
        board: Counter,
        *,
        draining: Callable[[], bool],
        processes: Callable[[], Sequence[str]],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.tallies = Tallies()
        self.envelope = Envelope(
            settings, fleet, visitors, board, self.tallies, draining=draining, processes=processes, wall=wall
        )
        self.bulletin = Bulletin(self.envelope.make)

    def count(self, process: str, message: Count) -> None:
        """A process has told how it is doing."""
        self.envelope.count(process, message.gauges)

    def left(self, process: str) -> None:
        self.envelope.left(process)
        self.bulletin.changed()

    def changed(self) -> None:
        """Something watchers would like to know has happened."""
        self.bulletin.changed()

    def close(self) -> None:
        """Control leaves: streams end."""
        self.bulletin.close()
