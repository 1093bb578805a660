"""The lanes of one split embeddings request: each takes slice after slice to one backend.

A lane holds a slot of its backend for every slice it asks. When the backend is full it ends and leaves its slices to
the others; the last one stands in line. A slice that fails is given to somebody who has not tried it; when there is
nobody, and when a backend's own refusal is the answer, all lanes end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fleetproxy.core import batching
from fleetproxy.core.backend import Backend
from fleetproxy.core.batching import BadAnswer, Ledger, Part, Slice
from fleetproxy.core.failover import CannotServe, ModelMissing, pass_on
from fleetproxy.core.operation import Operation
from fleetproxy.core.record import Attempt
from fleetproxy.core.selection import is_full, renames
from fleetproxy.core.table import Route
from fleetproxy.errors import BackendError, BackendTimeout, BadResponse, ConnectionStale, FleetError, WorkerRefused
from fleetproxy.families.llm import errors as dialect_errors
from fleetproxy.proxy.exchange import Exchange
from fleetproxy.proxy.line import Line
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.relay import Relay, verdict
from fleetproxy.transport.base import Answer, Headers, Upstream
from fleetproxy.wire.peek import Peek, around, elements, peek, rewrite_model

#: Backends one request is shared out over, and slices one of them has under way at once (without a limit of its own).
MAX_BACKENDS, MAX_LANES, LANES = 8, 4, 2
#: Attempts of one request that its record names; failed ones are never left out.
MAX_ATTEMPTS = 128


class BadVectors(BadResponse):
    """The server did not answer with one vector for each input."""

    resendable = True


class Declined(Exception):
    """A backend's own answer is the answer to the whole request."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.body = body


class Job:
    """`run` it; then `parts` are the answers to all slices. `close` it in any case."""

    def __init__(
        self,
        plane: Plane,
        relay: Relay,
        *,
        exchange: Exchange,
        operation: Operation,
        body: bytes,
        seen: Peek,
        routes: Sequence[Route],
        spare: Sequence[Route],
        granted: bool,
    ) -> None:
        self._plane = plane
        self._relay = relay
        self._exchange = exchange
        self._operation = operation
        self._inputs = elements(seen, "input")
        self._frame = around(body, seen, "input")
        #: Model name -> the frame with that name in it.
        self._frames: dict[str, tuple[bytes, bytes]] = {}
        #: The slot of the first route is counted already.
        self._granted = granted
        self._active = 0
        self._failures: list[FleetError] = []
        #: Places where a slice has failed: others are asked before them.
        self._failed: set[int] = set()
        #: Those that serve it from the beginning, then those that help out, full ones (`spare`) last.
        team = self._team(routes)
        self.routes = (*team, *(route for route in routes if route not in team), *spare)
        self._lanes = [self._lanes_of(self._backend(place)) for place in range(len(team))]
        sizes = [self._backend(place).embedding_batch_size or len(self._inputs) for place in range(len(team))]
        weights = [size * lanes for size, lanes in zip(sizes, self._lanes, strict=True)]
        helpers = [None] * (len(self.routes) - len(team))
        self._ledger = Ledger(batching.slices(len(self._inputs), weights, sizes), [*sizes, *helpers])
        self.rows_key = batching.OLLAMA_ROWS if exchange.endpoint.dialect == "ollama" else batching.OPENAI_ROWS
        self.parts: list[Part] = []
        self.used: set[str] = set()
        self.slices = 0
        self.held_bytes = 0
        self.sent_at: float | None = None

    async def run(self) -> None:
        """Serve every slice. Raises FleetError, or Declined."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for place, lanes in enumerate(self._lanes):
                    for _ in range(lanes):
                        self._start(place)
        except BaseExceptionGroup as errors:
            raise self._exchange.interruption or _first(errors) from None

    def close(self) -> None:
        """Give back what is still held."""
        if self._granted:
            self._free(0)
        self._plane.budget.release(self.held_bytes)

    # --- choosing ------------------------------------------------------------------------------------------------

    def _team(self, routes: Sequence[Route]) -> tuple[Route, ...]:
        """The best route and those as well placed as it that say how much they take at once."""
        backends = self._exchange.snapshot.table.backends
        best, tripped = routes[0], self._plane.loads.tripped
        return (
            best,
            *(
                route
                for route in routes[1:]
                if route.tier == best.tier
                and (backend := backends[route.backend].backend).embedding_batch_size is not None
                and not tripped(backend.column)
            ),
        )[:MAX_BACKENDS]

    def _lanes_of(self, backend: Backend) -> int:
        """Slices it gets at once."""
        limit = backend.max_concurrent
        if limit is None:
            return LANES
        return max(1, min(MAX_LANES, limit - self._plane.board.load(backend.column)))

    def _backend(self, place: int) -> Backend:
        return self._exchange.snapshot.table.backends[self.routes[place].backend].backend

    def _body(self, place: int, piece: Slice) -> bytes:
        """The request for a slice: the caller's bytes but for the inputs, and the model's name where it must differ."""
        route = self.routes[place]
        frame = self._frame
        if route.model and renames(self._backend(place), self._operation, route):
            known = self._frames.get(route.model)
            if known is None:
                bare = rewrite_model(frame[0] + b"[]" + frame[1], route.model)
                known = self._frames[route.model] = around(bare, peek(bare), "input")
            frame = known
        return b"%b[%b]%b" % (frame[0], b",".join(map(bytes, self._inputs[piece.start : piece.stop])), frame[1])

    # --- lanes ---------------------------------------------------------------------------------------------------

    def _start(self, place: int) -> None:
        lane = self._lane(place)
        try:
            self._group.create_task(lane)
        except RuntimeError:  # the group is ending: somebody failed for good, or the caller left
            lane.close()
        else:
            self._active += 1

    async def _lane(self, place: int) -> None:
        """One slice after the other at one backend, until there is none for it."""
        try:
            while (piece := self._ledger.take(place)) is not None:
                if not await self._slot(place):
                    self._ledger.give_back(piece)
                    break
                try:
                    self.parts.append(await self._ask(place, piece))
                except BackendError as error:
                    if isinstance(error, WorkerRefused) and self._active > 1:
                        self._ledger.give_back(piece)  # too many at once; the others go on
                    else:
                        self._pass_on(piece.failed_at(place), place, error)
                    break
        finally:
            self._active -= 1
        if not self._active:
            for piece in self._ledger.waiting():
                # Nobody is left at work: who may take the next slice goes on, and stands in line if he must.
                places = [other for other in range(len(self.routes)) if other not in piece.tried]
                self._start(min(places, key=self._failed.__contains__))
                break

    async def _slot(self, place: int) -> bool:
        """Count a slot. False when the backend is full and others are at work; the last one stands in line for it."""
        backend = self._backend(place)
        if self._granted and place == 0:
            self._granted = False
            return True
        if is_full(backend, self._plane.loads):
            if self._active > 1:
                return False
            await Line(self._plane, self._exchange, self._operation).stand((backend.column,))
            self._exchange.limit(self._exchange.snapshot.limits.first_byte_s, BackendTimeout)
            return True
        self._plane.board.add(backend.column, 1)
        return True

    def _free(self, place: int) -> None:
        column = self._backend(place).column
        self._plane.board.add(column, -1)
        self._plane.freed(column)

    def _pass_on(self, piece: Slice, place: int, error: BackendError) -> None:
        """A slice has failed: somebody else gets it, or the request has failed. Raises FleetError."""
        plane = self._plane
        self._failures.append(error)
        others = [place for place in range(len(self.routes)) if place not in piece.tried]
        if not others or not pass_on(error, self._operation.endpoint, [error]) or not plane.retries.retry(error):
            raise verdict(self._exchange, self._operation, self._failures)
        self._exchange.retries += 1
        plane.counters[f"retries:{error.code}"] += 1
        self._ledger.give_back(piece)
        self._ledger.give_up(place)
        self._failed.add(place)
        self._start(min(others, key=lambda other: (other in self._failed, is_full(self._backend(other), plane.loads))))

    async def _ask(self, place: int, piece: Slice) -> Part:
        """One slice at one backend, on a slot counted for it."""
        plane, backend = self._plane, self._backend(place)
        began = plane.clock()
        upstream: Upstream | None = None
        status: int | None = None
        failure: str | None = None
        self.slices += 1
        plane.retries.request(began)  # the budget for retries is a share of what servers are asked
        self.used.add(backend.name)
        plane.trips.probing(backend.column)
        try:
            body = self._body(place, piece)
            try:
                upstream, answer = await self._open(place, backend, body, fresh=False)
            except ConnectionStale:
                upstream, answer = await self._open(place, backend, body, fresh=True)
            status = answer.status
            plane.trips.answered(backend, status, answer.headers)
            text = await self._read(upstream, answer)
            if status != 200:
                self._refused(answer, text, last=len(piece.tried) + 1 >= len(self.routes))
            try:
                return batching.read(text, self.rows_key, piece)
            except BadAnswer as error:
                raise BadVectors(f"The server's answer cannot be used: {error}.") from None
        except BackendError as error:
            failure = error.code
            if not isinstance(error, (ModelMissing, CannotServe)):
                plane.trips.failed(backend, error)
            raise
        except asyncio.CancelledError:
            interruption = self._exchange.interruption
            failure = interruption.code if interruption is not None else "aborted"
            raise
        finally:
            if upstream is not None:
                upstream.close()
            self._free(place)
            self._name(backend, began, status, failure)

    async def _open(self, place: int, backend: Backend, body: bytes, *, fresh: bool) -> tuple[Upstream, Answer]:
        plane, exchange = self._plane, self._exchange
        call = self._relay.call(exchange, self.routes[place], body, fresh=fresh)
        upstream = await plane.transport(backend).open(backend, call, exchange.snapshot.limits.connect_s)
        self.sent_at = self.sent_at or plane.clock()
        try:
            answer = await upstream.answer()
        except BaseException:
            upstream.close()
            raise
        exchange.progress += 1
        return upstream, answer

    async def _read(self, upstream: Upstream, answer: Answer) -> bytes:
        """The whole answer, within the process's budget. Raises BackendLost, Overloaded."""
        held = _Held(self._plane, self._exchange)
        try:
            if answer.complete:
                held.piece(upstream.take(), True)
            else:
                upstream.pipe(held)
            await held.done
        finally:
            self.held_bytes += held.held_bytes
        return b"".join(held.pieces)

    def _refused(self, answer: Answer, text: bytes, *, last: bool) -> None:
        """What another status than 200 means. Raises ModelMissing or CannotServe (ask elsewhere), else Declined."""
        if answer.status == 404 and dialect_errors.is_model_missing(text):
            raise ModelMissing(self._operation.model or "")
        if answer.status in (500, 502, 503) and not (last and not self._failures):
            raise CannotServe(answer.status)
        raise Declined(answer.status, answer.headers, text)

    def _name(self, backend: Backend, began: float, status: int | None, failure: str | None) -> None:
        """Put the attempt into the record."""
        exchange = self._exchange
        if len(exchange.attempts) >= MAX_ATTEMPTS and failure is None:
            self._plane.counters["attempts_unnamed"] += 1
            return
        attempt = Attempt(
            backend=backend.name,
            status=status,
            error=failure,
            started_ms=round((began - exchange.started_at) * 1000, 3),
            total_ms=round((self._plane.clock() - began) * 1000, 3),
        )
        exchange.attempts += (attempt,)


class _Held:
    """A sink that keeps a body within the budget of the process."""

    def __init__(self, plane: Plane, exchange: Exchange) -> None:
        self.pieces: list[bytes] = []
        self.held_bytes = 0
        self.done: asyncio.Future[None] = plane.loop.create_future()
        self._budget = plane.budget
        self._exchange = exchange

    def piece(self, data: bytes, last: bool) -> None:
        if self.done.done():
            return
        self._exchange.progress += 1
        try:
            self._budget.hold(len(data))
        except FleetError as error:
            self.done.set_exception(error)
            return
        self.held_bytes += len(data)
        self.pieces.append(data)
        if last:
            self.done.set_result(None)

    def broken(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error if isinstance(error, FleetError) else BadResponse())


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What all of it failed of: a backend's own answer before our errors, those before faults of ours."""
    flat = list(errors.exceptions)
    for kind in (Declined, FleetError):
        for error in flat:
            if isinstance(error, kind):
                return error
    return flat[0]
