"""The door for everybody who dials in, at `hub.listen` and through the public port: who may come in, and as what."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict

from fleetproxy.core import access, backoff, dialin
from fleetproxy.hub.relays import RelaySession
from fleetproxy.hub.session import Session, Sessions
from fleetproxy.hub.sockets import Admission, Guest, Refusal, Socket
from fleetproxy.settings import Settings
from fleetproxy.wire import payloads
from fleetproxy.wire.frames import SUBPROTOCOL

#: Sockets at once, and of them such that have not registered.
MAX_SOCKETS, MAX_STRANGERS = 2560, 512
#: Addresses whose wrong keys are remembered; the oldest are forgotten first.
MAX_ADDRESSES = 4096
#: Families whose workers speak the worker protocol.
WORKER_FAMILIES = frozenset({"llm", "asr", "mcp"})

DRAINING = Refusal(503, "draining")
NOT_FOUND = Refusal(404, "404 page not found")
FOREIGN_ORIGIN = Refusal(403, "browser pages of other origins may not connect here")
FULL = Refusal(503, "too many connections")
TOO_MANY_FAILURES = Refusal(429, "too many wrong keys from this address; try again later")


class Door:
    """Implements `sockets.Door`."""

    def __init__(self, sessions: Sessions, loop: asyncio.AbstractEventLoop) -> None:
        self._sessions = sessions
        self._loop = loop
        self._sockets = 0
        self._families: frozenset[str] = frozenset()
        self._hosts: frozenset[str] = frozenset()
        self._proxies: tuple[access.Network, ...] = ()
        self._failures: OrderedDict[str, backoff.Failures] = OrderedDict()
        self.draining = False
        #: Since start, by the refusal's status.
        self.counts: Counter[str] = Counter()
        sessions.on_wrong_key = self._wrong_key

    def __len__(self) -> int:
        return self._sockets

    def configure(self, settings: Settings) -> None:
        """Use these settings for who comes from now on."""
        auth = settings.auth
        self._families = WORKER_FAMILIES.intersection(settings.plugins)
        self._hosts = frozenset(host.lower() for host in settings.hosts) or frozenset({""})
        self._proxies = access.networks(auth.trusted_proxies)
        self._sessions.max_json_body = settings.asr.max_json_body
        self._sessions.max_response_bytes = settings.mcp.max_response_bytes
        self._sessions.rules = dialin.Rules(
            client_key=auth.client_key,
            named=tuple((key.name, dialin.digest(key.key)) for key in settings.client_keys),
            roles=auth.client_http_roles,
            strict=auth.strict_client_key,
        )

    def offered(self) -> bool:
        if self._sockets >= MAX_SOCKETS:
            self.counts["full"] += 1
            return False
        self._sockets += 1
        return True

    def left(self) -> None:
        self._sockets -= 1

    def knock(self, knock: payloads.Knock) -> Admission | Refusal:
        verdict = self._decide(knock)
        if isinstance(verdict, Refusal):
            self.counts[str(verdict.status)] += 1
        return verdict

    def _decide(self, knock: payloads.Knock) -> Admission | Refusal:
        family = _family(knock.path)
        if family not in self._families:
            return NOT_FOUND
        if self.draining:
            return DRAINING
        own = dict(reversed(knock.headers))
        if not self._origin_allowed(own):
            return FOREIGN_ORIGIN
        header_key = dialin.bearer(own.get(b"authorization"))
        if dialin.key_owner(self._sessions.rules, header_key) is None and self._must_wait(knock.remote):
            return TOO_MANY_FAILURES
        if self._sessions.strangers >= MAX_STRANGERS:
            return FULL
        believed = knock.trusted or access.trusted(knock.remote, self._proxies)
        roles = dialin.role_list(own.get(b"x-user-roles")) if believed else ()
        ours = SUBPROTOCOL in _subprotocols(knock)

        kind = RelaySession if family == "mcp" else Session

        def guest(socket: Socket) -> Guest:
            return kind(socket, self._sessions, family=family, ours=ours, header_key=header_key, roles=roles)

        return Admission(SUBPROTOCOL if ours else "", guest)

    def _origin_allowed(self, own: dict[bytes, bytes]) -> bool:
        """Agents send no Origin. A page may come from where it was served, under a name that is ours."""
        origin = own.get(b"origin")
        if origin is None:
            return True
        host = own.get(b"host", b"")
        same = origin.split(b"://", 1)[-1].lower() == host.lower()
        return same and access.host_allowed(host, self._hosts)

    def _must_wait(self, address: str) -> bool:
        failures = self._failures.get(backoff.address_key(address), backoff.NONE)
        return backoff.wait_s(failures, self._loop.time()) > 0.0

    def _wrong_key(self, address: str) -> None:
        key = backoff.address_key(address)
        failures = self._failures.pop(key, backoff.NONE)
        self._failures[key] = backoff.after_failure(failures, self._loop.time())
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)


def _family(path: str) -> str:
    """The word of /api/<family>/connect, "" for any other path."""
    segments = path.split("/")
    return segments[2] if len(segments) == 4 and segments[:2] == ["", "api"] and segments[3] == "connect" else ""


def _subprotocols(knock: payloads.Knock) -> set[str]:
    return {
        word.strip().decode("latin-1")
        for name, value in knock.headers
        if name == b"sec-websocket-protocol"
        for word in value.split(b",")
    }
