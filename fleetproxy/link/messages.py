"""What the processes tell each other over `link.sock`: length-prefixed msgpack, whole values, no deltas of the table.

Frame: 4 bytes big-endian length, then one msgpack-encoded message (a tagged struct). At most 64 MiB.
"""

from __future__ import annotations

import msgspec

from fleetproxy.core.table import Snapshot
from fleetproxy.core.worker import Worker

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Hello(msgspec.Struct, tag=True, frozen=True):
    """First message of a process to control."""

    #: "proxy-0", "proxy-1", "hub".
    process: str
    pid: int
    boot: str


class Publish(msgspec.Struct, tag=True, frozen=True):
    """Control to processes: use this snapshot from now on."""

    snapshot: Snapshot


class Acknowledge(msgspec.Struct, tag=True, frozen=True):
    """A process has swapped to this version."""

    version: int


class Rotate(msgspec.Struct, tag=True, frozen=True):
    """Control to processes: close your spool segment now; answer with Rotated carrying the same number."""

    number: int


class Rotated(msgspec.Struct, tag=True, frozen=True):
    number: int


class Observe(msgspec.Struct, tag=True, frozen=True):
    """A process saw a backend fail or recover in passing; control polls it at once.

    `kind` is an error code of `errors.py` ("connect_failed", ...), "ejected" or "recovered".
    """

    backend: str
    kind: str


class Count(msgspec.Struct, tag=True, frozen=True):
    """Counters of a process since its start, sent each second: name -> value. Labels are in the name, Prometheus style.

    Absolute values: a lost message loses nothing; control adds up processes and the last values of dead ones.
    """

    counters: dict[str, int]
    gauges: dict[str, float]
    #: Columns of backends that are not plainly healthy -> "open" or "half_open".
    breakers: dict[int, str] = {}


class WorkersSeen(msgspec.Struct, tag=True, frozen=True):
    """The hub to control: dial-in workers that came, changed or left.

    A hub that has just connected sends `whole`: these are all there are, others known from before are gone.
    """

    present: tuple[Worker, ...] = ()
    #: (family, id) of those that have left.
    left: tuple[tuple[str, str], ...] = ()
    whole: bool = False


class Pulse(msgspec.Struct, frozen=True, array_like=True):
    """How one connected worker is doing."""

    family: str
    id: str
    #: Seconds since the epoch.
    last_heartbeat_s: float
    cpu_percent: float = 0.0
    ram_percent: float = 0.0
    in_flight: int = 0
    #: Requests since it connected that have ended, and of them those its leaving broke off.
    processed: int = 0
    failed: int = 0


class WorkersPulse(msgspec.Struct, tag=True, frozen=True):
    """The hub to control, every few seconds: signs of life of all connected workers."""

    pulses: tuple[Pulse, ...] = ()


class RelayedCall(msgspec.Struct, frozen=True, array_like=True):
    """An MCP call under way."""

    id: str
    #: The relay's id.
    relay: str
    method: str
    #: Seconds since the epoch.
    started_at_s: float


class RelaysPulse(msgspec.Struct, tag=True, frozen=True):
    """The hub to control, each second while relays are connected: what they are at."""

    #: The oldest ones.
    calls: tuple[RelayedCall, ...] = ()
    #: Relay -> method -> calls under way; methods stay, at 0, while their relay does.
    functions: dict[str, dict[str, int]] = {}


Message = Hello | Publish | Acknowledge | Rotate | Rotated | Observe | Count | WorkersSeen | WorkersPulse | RelaysPulse
