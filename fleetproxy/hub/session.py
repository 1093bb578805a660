"""One worker's socket, from the first message to the last: who it is, whether it lives, whether it keeps the rules."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

import msgspec

from fleetproxy.core import dialin
from fleetproxy.core.worker import Host, Offer, Status
from fleetproxy.hub.agent_link import AgentLink
from fleetproxy.hub.nfrx_link import MAX_BODY_BYTES, Held, NfrxLink
from fleetproxy.hub.sockets import Socket
from fleetproxy.hub.streams import Link
from fleetproxy.hub.workers import Connected, Credentials, Workers, known_as
from fleetproxy.wire import frames, nfrx, payloads
from fleetproxy.wire.frames import FrameError
from fleetproxy.wire.relays import ID_IN_USE

_log = logging.getLogger("fleetproxy.hub")

#: From the handshake to the register message.
REGISTER_S = 5.0
#: A worker that says nothing for this long is dead.
SILENCE_S = 15.0
#: One that takes nothing of what is sent to it for this long is as good as dead.
STALL_S = 30.0
#: Messages a second that nobody asked for a worker may send, on average; and at once, beyond that.
CHATTER_PER_S, CHATTER_BURST = 2_000, 5_000
#: Breaches of its protocol until a worker has to go.
MAX_VIOLATIONS = 100

POLICY, PROTOCOL, TRY_LATER = 1008, 1002, 1013


class Sessions:
    """What all sessions share."""

    def __init__(self, workers: Workers, loop: asyncio.AbstractEventLoop) -> None:
        self.workers = workers
        self.loop = loop
        self.rules = dialin.Rules()
        self.held = Held()
        #: The largest form for a stock speech worker.
        self.max_json_body = MAX_BODY_BYTES
        #: The largest answer of a stock MCP relay.
        self.max_response_bytes = 10 * 1024 * 1024
        #: Of sockets that have not registered yet.
        self.strangers = 0
        self.open: set[Session] = set()
        #: Since start, by word: "unauthorized", "expected_register", "silent", "stalled", "flood", "protocol",
        #: and of messages: "late", "foreign", "ignored", "violations", "slow_caller".
        self.counts: Counter[str] = Counter()
        #: Told the address of each socket that showed a wrong key.
        self.on_wrong_key: Callable[[str], None] = lambda address: None

    def sweep(self) -> None:
        """Once a second: who is silent, who is stuck."""
        now_s = self.loop.time()
        for session in tuple(self.open):
            session.look(now_s)

    def count(self, word: str) -> None:
        self.counts[word] += 1

    def close(self, code: int, reason: str) -> None:
        for session in tuple(self.open):
            session.close(code, reason)


class Session:
    """A `sockets.Guest`: the far end is a worker, or wants to be one."""

    #: After this much silence it is dismissed, with this code and reason.
    silence_s, silence_code, silence_reason = SILENCE_S, POLICY, "silent"

    def __init__(
        self,
        socket: Socket,
        sessions: Sessions,
        *,
        family: str,
        ours: bool,
        header_key: str,
        roles: tuple[str, ...],
    ) -> None:
        """`ours`: the subprotocol fleetproxy.v1 was agreed on."""
        self._socket = socket
        self._sessions = sessions
        self._family = family
        self._ours = ours
        self._header_key = header_key
        self._roles = roles
        self._connected: Connected | None = None
        self._link: Link | None = None
        self._closing = False
        self._violations = 0
        now_s = sessions.loop.time()
        self._heard_s = self._moved_s = self._counted_s = now_s
        self._unsent = 0
        self._allowance = float(CHATTER_BURST)
        self._timer = sessions.loop.call_later(REGISTER_S, self._nothing_came)
        sessions.strangers += 1
        sessions.open.add(self)
        if dialin.authorised(sessions.rules, header_key=header_key, message_key="", roles=roles):
            socket.trust()

    # --- Guest -------------------------------------------------------------------------------------------------------

    def message(self, data: str | bytes) -> int:
        if self._closing:
            return 1
        self._heard_s = self._sessions.loop.time()
        chatter = 1
        if self._link is not None:
            try:
                chatter = self._link.message(data)
            except FrameError as error:
                _log.warning("worker %s broke the protocol: %s", self._name, error)
                self._dismiss("protocol", PROTOCOL)
        elif self._ours:
            self._enrol(data)
        else:
            self._register(data)
        if chatter:
            self.chatter(chatter)
        return chatter

    def chatter(self, amount: int) -> None:
        self._allowance -= amount
        if self._allowance < 0.0:
            now_s = self._sessions.loop.time()
            self._allowance += min(CHATTER_BURST, (now_s - self._counted_s) * CHATTER_PER_S)
            self._counted_s = now_s
            if self._allowance < 0.0:
                self._dismiss("flood", POLICY)

    def lost(self) -> None:
        self._timer.cancel()
        self._sessions.open.discard(self)
        if self._connected is None:
            self._sessions.strangers -= 1
        else:
            self._sessions.workers.leave(self._connected)
        self._closing = True

    # --- coming in ---------------------------------------------------------------------------------------------------

    def _nothing_came(self) -> None:
        self._refuse(nfrx.EXPECTED_REGISTER)

    def _register(self, data: str | bytes) -> None:
        try:
            message = nfrx.read_agent(data)
        except nfrx.NfrxError:
            message = nfrx.Other(type="")
        if not isinstance(message, nfrx.Register):
            self._refuse(nfrx.EXPECTED_REGISTER)
            return
        offer = merged(Offer(), message.max_concurrency, message.models, message.agent_config)
        self._enter(
            message.client_key,
            Credentials(
                family=self._family,
                worker_id=message.worker_id,
                worker_name=message.worker_name,
                protocol="nfrx",
                version=message.version,
                build_sha=message.build_sha,
                build_date=message.build_date,
                remote=self._socket.remote,
            ),
            offer,
            self._nfrx_link(),
        )

    def _nfrx_link(self) -> NfrxLink:
        sessions = self._sessions
        most = sessions.max_json_body if self._family == "asr" else MAX_BODY_BYTES
        return NfrxLink(self._socket, self, sessions.count, sessions.held, most)

    def _enrol(self, data: str | bytes) -> None:
        try:
            if isinstance(data, str):
                raise FrameError("text")
            decoder = frames.Decoder()
            (frame,) = decoder.feed(data)
            if frame.kind != frames.REGISTER:
                raise FrameError("another frame")
            enrol = payloads.decode(frame.payload, payloads.Enrol)
        except ValueError:  # also for none, or several
            self._refuse(nfrx.EXPECTED_REGISTER)
            return
        connected = self._enter(
            enrol.client_key,
            Credentials(
                family=self._family,
                worker_id=enrol.worker_id,
                worker_name=enrol.worker_name,
                protocol="fleetproxy.v1",
                version=enrol.version,
                build_sha=enrol.build_sha,
                build_date=enrol.build_date,
                remote=self._socket.remote,
            ),
            enrol.offer,
            AgentLink(self._socket, self, self._sessions.count),
        )
        if connected is not None:
            worker = connected.worker
            welcome = payloads.Enrolled(worker_id=worker.id, worker_name=worker.name)
            self._socket.send(frames.encode(frames.REGISTER, 0, payloads.encode(welcome)))

    def _enter(self, message_key: str, who: Credentials, offer: Offer, link: Link) -> Connected | None:
        sessions = self._sessions
        owner = dialin.owner(sessions.rules, header_key=self._header_key, message_key=message_key, roles=self._roles)
        if owner is None:
            if self._header_key or message_key:
                sessions.on_wrong_key(self._socket.remote)
            self._refuse(nfrx.UNAUTHORIZED)
            return None
        objection = self._objection(who.worker_id, owner)
        if objection is not None:
            self._refuse(objection)
            return None
        who = msgspec.structs.replace(who, owner=owner)
        connected = sessions.workers.join(who, offer, link, lambda reason: self._dismiss(reason, POLICY))
        if connected is None:
            self._dismiss("full", TRY_LATER)
            return None
        self._timer.cancel()
        self._socket.trust()
        sessions.strangers -= 1
        self._connected = connected
        self._link = link
        return connected

    def _objection(self, worker_id: str, owner: str) -> str | None:
        """Why somebody who may come in may not do so under this id; None: he may.

        The same key again is the same worker, whose old connection is half open; another key is somebody else.
        """
        taken = self._sessions.workers.connected(self._family, known_as(worker_id))
        if taken is None or taken.owner == owner:
            return None
        _log.warning(
            "worker %s (%s) of %s stays: its id was asked for by %s, from %s",
            taken.worker.id,
            self._family,
            taken.owner,
            owner,
            self._socket.remote,
        )
        return ID_IN_USE

    def _refuse(self, reason: str) -> None:
        self._dismiss(reason, POLICY)

    # --- agent_link.Ears ---------------------------------------------------------------------------------------------

    def standing(self, standing: payloads.Standing) -> None:
        connected = self._connected
        if connected is None:
            return
        if standing.offer is not None:
            self.alive()
            self._sessions.workers.update(connected, standing.offer)
        else:
            self._sessions.workers.heard(connected, standing.cpu_percent, standing.ram_percent)

    def alive(self) -> None:
        connected = self._connected
        if connected is not None:
            worker = connected.worker
            self._sessions.workers.heard(connected, worker.cpu_percent, worker.ram_percent)

    def update(self, update: nfrx.StatusUpdate) -> None:
        connected = self._connected
        if connected is not None:
            offer = merged(
                connected.worker.offer, update.max_concurrency, update.models, update.agent_config, update.status
            )
            self._sessions.workers.update(connected, offer)

    def leaving(self) -> None:
        connected = self._connected
        if connected is not None:
            offer = msgspec.structs.replace(connected.worker.offer, status="draining")
            self._sessions.workers.update(connected, offer)

    def violation(self, what: str) -> None:
        self._sessions.count("violations")
        self._violations += 1
        if self._violations > MAX_VIOLATIONS and not self._closing:
            _log.warning("worker %s broke its protocol too often, last with %s", self._name, what)
            self._dismiss("protocol", PROTOCOL)

    # --- going -------------------------------------------------------------------------------------------------------

    def look(self, now_s: float) -> None:
        """Once a second."""
        if self._connected is None or self._closing:
            return
        unsent = self._socket.unsent_bytes
        if unsent == 0 or unsent < self._unsent:
            self._moved_s = now_s
        self._unsent = unsent
        if now_s - self._heard_s > self.silence_s:
            self._dismiss(self.silence_reason, self.silence_code)
        elif unsent and now_s - self._moved_s > STALL_S:
            self._sessions.count("stalled")
            self._socket.abort()

    def close(self, code: int, reason: str) -> None:
        """The hub leaves: our own agents hear that they should come again."""
        if not self._closing:
            if self._ours and self._connected is not None:
                goaway = payloads.Goaway(reason=reason)
                self._socket.send(frames.encode(frames.GOAWAY, 0, payloads.encode(goaway)))
            self._closing = True
            self._socket.close(code, reason)

    def _dismiss(self, reason: str, code: int) -> None:
        """Close with a reason. What it was doing for us fails now, not when its side of the closing has come."""
        if self._closing:
            return
        self._closing = True
        self._sessions.count(reason.replace(" ", "_"))
        if self._connected is not None:
            self._sessions.workers.leave(self._connected)
        self._socket.close(code, reason)

    @property
    def _name(self) -> str:
        return self._connected.worker.name if self._connected is not None else self._socket.remote


_STATUS: dict[str, Status] = {"not_ready": "not_ready", "draining": "draining", "gone": "not_ready"}


def merged(
    offer: Offer,
    max_concurrency: int,
    models: tuple[str, ...] | None,
    config: dict[str, str],
    status: str = "",
) -> Offer:
    """An nfrx worker's offer after it has said these things: what it left out stays, but for the two numbers."""
    batch = config.get("embedding_batch_size", "")
    host = offer.host
    return Offer(
        models=offer.models if models is None else models,
        max_concurrency=max_concurrency,
        embedding_batch_size=int(batch) if batch.isascii() and batch.isdigit() and len(batch) < 10 else 0,
        status=_STATUS.get(status, "idle") if status or max_concurrency > 0 else "not_ready",
        kind="worker",
        host=Host(*(config.get(field) or getattr(host, field) for field in host.__struct_fields__)),
    )
