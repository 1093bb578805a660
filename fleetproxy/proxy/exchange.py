"""One request's life, from first byte in to audit record: the data plane's only mutable thing, with one owner."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fleetproxy.core.operation import Endpoint, Operation
from fleetproxy.core.record import Attempt, AuditRecord, Outcome
from fleetproxy.core.usage import NOTHING, Usage
from fleetproxy.errors import FleetError

if TYPE_CHECKING:
    from fleetproxy.core.backend import Backend
    from fleetproxy.core.table import Principal, Snapshot
    from fleetproxy.listen import Receive, Scope, Send
    from fleetproxy.wire.head import Head
    from fleetproxy.wire.tap import Tap


class Exchange:
    """What is known so far of one request. Times are seconds of the monotonic clock."""

    # Most exchanges never touch most of these: defaults live on the class, and making an exchange sets few attributes.
    remote_ip: str | None = None
    principal: Principal | None = None
    key_unknown = False
    #: Who the record names.
    source = ""
    #: Credentials that are not ours, as wire lines: they go on to the backend.
    credentials = b""
    operation: Operation | None = None
    backend: Backend | None = None
    model_served: str | None = None
    route_reason: str | None = None
    #: The pinned server was not to be had and the pin was dropped (`routing.pin_fallback`).
    pin_ignored = False
    #: Attempts that have ended.
    attempts: tuple[Attempt, ...] = ()
    #: When the attempt under way began; None between attempts.
    attempt_began: float | None = None
    #: Reads the answer as it passes.
    tap: Tap | None = None
    retries = 0
    queue_s = 0.0
    #: When the request was written to the backend that answered.
    sent_at: float | None = None
    first_byte_at: float | None = None
    status: int | None = None
    outcome: Outcome = "ok"
    error: str | None = None
    bytes_in = 0
    bytes_out = 0
    chunks_out = 0
    usage: Usage = NOTHING
    #: The first byte of the backend's answer has been handed over: nothing is resent.
    committed = False
    #: A response head of our own is out (comment lines while waiting): errors go into the stream.
    started_by_us = False
    #: The answer under way is a stream in the endpoint's own format, of no announced length.
    takes_event = False
    recorded = False
    #: It ends when its caller has enough (an event stream of control): leaving does not wait for it.
    lasting = False
    # For the sweeper, which alone compares them with the clock.
    progress = 0
    last_progress = -1
    tick_of_progress = 0.0
    time_limit_s: float | None = None
    timeout_error: type[FleetError] | None = None
    watching = False
    interruption: FleetError | None = None

    def __init__(
        self,
        *,
        scope: Scope,
        receive: Receive,
        send: Send,
        endpoint: Endpoint,
        head: Head,
        snapshot: Snapshot,
        request_id: str,
        started_at: float,
        started_at_us: int,
        task: asyncio.Task[None] | None,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.endpoint = endpoint
        self.head = head
        #: The snapshot it began with is the one it ends with.
        self.snapshot = snapshot
        self.request_id = request_id
        self.started_at = started_at
        self.started_at_us = started_at_us
        self.task = task
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        #: Nobody else reads `receive()` any more: it may be watched for the caller leaving.
        self.body_read = not head.has_body

    def limit(self, seconds: float | None, error: type[FleetError] | None) -> None:
        """From now on, `seconds` without progress end the exchange with `error`; None lifts the limit."""
        self.progress += 1
        self.time_limit_s = seconds
        self.timeout_error = error

    def interrupt(self, error: FleetError) -> None:
        """End it from outside: the client left, a limit passed, we are being stopped."""
        if self.interruption is None and self.task is not None:
            self.interruption = error
            self.task.cancel()

    def fail(self, error: FleetError, outcome: Outcome) -> None:
        self.error = error.code
        self.outcome = outcome

    def close_attempt(self, now: float, status: int | None, failure: str | None) -> None:
        """The attempt under way has ended; does nothing when none is."""
        began = self.attempt_began
        if began is None:
            return
        self.attempt_began = None
        sent, first, backend = self.sent_at, self.first_byte_at, self.backend
        self.attempts += (
            Attempt(
                backend=backend.name if backend is not None else "",
                status=status,
                error=failure,
                started_ms=_ms(began - self.started_at),
                connect_ms=_ms(sent - began) if sent is not None and sent >= began else None,
                first_byte_ms=_ms(first - began) if first is not None else None,
                total_ms=_ms(now - began),
            ),
        )

    def record(self, *, now: float, process: str, sequence: int) -> AuditRecord:
        """The row of this exchange, as it stands at `now`."""
        self.close_attempt(now, self.status, self.error)
        started = self.started_at
        first = self.first_byte_at
        sent = self.sent_at
        usage = self.usage
        principal = self.principal
        operation = self.operation
        backend = self.backend
        own = self.head.own
        agent = own.get(b"user-agent")
        return AuditRecord(
            request_id=self.request_id,
            started_at_us=self.started_at_us,
            process=process,
            sequence=sequence,
            source=self.source,
            user=principal.name if principal is not None else None,
            user_id=principal.user_id if principal is not None else None,
            key_prefix=principal.key_prefix if principal is not None else None,
            key_unknown=self.key_unknown,
            remote_ip=self.remote_ip,
            user_agent=agent[:256].decode("latin-1") if agent is not None else None,
            family=self.endpoint.family,
            dialect=self.endpoint.dialect,
            endpoint=self.endpoint.path,
            method=self.method,
            path=self.raw_path[:256].decode("latin-1"),
            model=operation.model if operation is not None else None,
            model_served=self.model_served,
            backend=backend.name if backend is not None else None,
            server_id=backend.id if backend is not None else None,
            route_reason=self.route_reason,
            status=self.status,
            outcome=self.outcome,
            error=self.error,
            retries=self.retries,
            streamed=operation.stream if operation is not None else False,
            # Whole microseconds as milliseconds, written out: a call each would cost more than the rest of the line.
            queue_ms=self.queue_s * 1e6 // 1 / 1e3,
            ttft_ms=(first - started) * 1e6 // 1 / 1e3 if first is not None else None,
            overhead_ms=(sent - started - self.queue_s) * 1e6 // 1 / 1e3 if sent is not None else None,
            total_ms=(now - started) * 1e6 // 1 / 1e3,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            chunks_out=self.chunks_out,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            load_ms=usage.load_ms,
            prompt_eval_ms=usage.prompt_eval_ms,
            eval_ms=usage.eval_ms,
            attempts=self.attempts,
        )


def _ms(seconds: float) -> float:
    # A quarter of what round() costs, eight times a request.
    return int(seconds * 1_000_000) / 1000
