"""The dial-in workers, as the hub tells of them: merged into the fleet, kept for showing."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.core.worker import Worker, backend_of, state_of
from fleetproxy.link.messages import Pulse, RelaysPulse, WorkersPulse, WorkersSeen


class Visitor(msgspec.Struct, frozen=True):
    """One connected worker and its latest sign of life."""

    worker: Worker
    pulse: Pulse | None = None


class Visitors:
    """All that are connected. The hub is believed: it has cut down what workers say."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Visitor] = {}
        #: What MCP relays are at.
        self.relays = RelaysPulse()

    def seen(self, message: WorkersSeen) -> None:
        """Workers came, changed or left."""
        known = {} if message.whole else dict(self._known)
        for worker in message.present:
            identity = (worker.family, worker.id)
            before = self._known.get(identity)
            known[identity] = Visitor(worker, before.pulse if before else None)
        for family, worker_id in message.left:
            known.pop((family, worker_id), None)
        self._known = known

    def pulse(self, message: WorkersPulse | RelaysPulse) -> None:
        """Signs of life; of workers that have left meanwhile they count for nothing."""
        if isinstance(message, RelaysPulse):
            self.relays = message
            return
        for pulse in message.pulses:
            identity = (pulse.family, pulse.id)
            known = self._known.get(identity)
            if known is not None:
                self._known[identity] = Visitor(known.worker, pulse)

    def clear(self) -> None:
        """The hub is gone, and they with it."""
        self._known = {}
        self.relays = RelaysPulse()

    def all(self) -> tuple[Visitor, ...]:
        """In the order they came."""
        return tuple(self._known.values())

    def guests(self) -> Iterable[tuple[Backend, BackendState]]:
        """Those that answer like inference servers, as the fleet wants them."""
        for visitor in self._known.values():
            worker = visitor.worker
            if worker.family == "llm":
                yield backend_of(worker), state_of(worker)
