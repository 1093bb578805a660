"""One request to one backend after another until one answers, then its answer to the caller.

    attempt ──► answer ──► commit ──► pump
       │           │
       └───────────┴──► next route (reads before the commit point only) or the error

What may be tried again is decided in `core/failover.py`; this module acts on it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleetproxy.core.backend import Backend
from fleetproxy.core.failover import Next, next_step
from fleetproxy.core.operation import Operation
from fleetproxy.core.record import Attempt
from fleetproxy.core.table import Route
from fleetproxy.errors import BackendError, BackendTimeout, ClientGone, FleetError, ModelUnknown
from fleetproxy.families.llm import errors as dialect_errors
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.pump import Pump
from fleetproxy.transport.base import Answer, Call, Headers, Upstream
from fleetproxy.wire.headers import response_headers
from fleetproxy.wire.peek import rewrite_model
from fleetproxy.wire.tap import Tap

#: Bytes of a refusal (404, 5xx) read to learn what it says before another server is asked.
REFUSAL_BYTES = 64 * 1024
_STREAM_TYPES = (b"text/event-stream", b"application/x-ndjson")
