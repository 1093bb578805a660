"""Who is calling: told once, at the door, from the listener the call came in by.

    linked(app)    on control.sock: the proxies relay here and say whom for (`x-fleet-client`, `x-fleet-scheme`);
                   our own command line talks here too
    direct(app)    on a TCP listener of control: those headers are a stranger's and are dropped

Both answer HEAD with GET's head: one policy, one handler.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping

import msgspec

from fleetproxy.core.roles import read_roles
from fleetproxy.listen import App, Message, Receive, Scope, Send

KEY = "fleet.peer"
_HEAD = "fleet.head"
_OURS = (b"x-fleet-client", b"x-fleet-scheme", b"x-fleet-roles")
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    #: The caller's IP address; "" on control.sock without a proxy in between.
    address: str = ""
    https: bool = False
    #: Roles that a trusted proxy vouches for.
    roles: frozenset[str] = frozenset()

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False


#: What an app that was wrapped in neither way gets: nobody we know.
UNKNOWN = Peer(address="unknown")


def peer_of(scope: Mapping[str, object]) -> Peer:
    peer = scope.get(KEY, UNKNOWN)
    assert isinstance(peer, Peer)
    return peer


def is_head(scope: Mapping[str, object]) -> bool:
    """GET's handler answers a HEAD: what it would send without end must not begin."""
    return _HEAD in scope


def linked(app: App) -> App:
    """For control.sock: believe the link's headers."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            own = dict(reversed([pair for pair in scope["headers"] if pair[0] in _OURS]))
            scope[KEY] = Peer(
                address=own.get(b"x-fleet-client", b"").decode("latin-1"),
                https=own.get(b"x-fleet-scheme") == b"https",
                roles=read_roles(own.get(b"x-fleet-roles")),
            )
        await _one_policy(app, scope, receive, send)

    return call


def direct(app: App, trusted_proxies: Callable[[], Iterable[str]]) -> App:
    """For a TCP listener: the socket's address, or, from a trusted proxy, what that proxy says."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _OURS]
            client = scope.get("client")
            address = str(client[0]) if client else ""
            https = scope.get("scheme") == "https"
            networks = _networks(trusted_proxies())
            roles = frozenset[str]()
            if _within(address, networks):
                roles = read_roles(next((value for name, value in scope["headers"] if name == b"x-user-roles"), None))
                address, https = _told(scope["headers"], address, https, networks)
            scope[KEY] = Peer(address=address, https=https, roles=roles)
        await _one_policy(app, scope, receive, send)

    return call


async def _one_policy(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http" or scope["method"] != "HEAD":
        await app(scope, receive, send)
        return
    scope["method"], scope[_HEAD] = "GET", True

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    await app(scope, receive, send_head)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(texts: Iterable[str]) -> list[Network]:
    return [ipaddress.ip_network(text, strict=False) for text in texts]


def _within(address: str, networks: list[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def _told(headers: list[tuple[bytes, bytes]], address: str, https: bool, networks: list[Network]) -> tuple[str, bool]:
    """The nearest address that is not a trusted proxy's own, walking back through X-Forwarded-For."""
    hops = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1").split(",")
    for hop in reversed([hop.strip() for hop in hops if hop.strip()]):
        address = hop
        if not _within(hop, networks):
            break
    scheme = next((value for name, value in headers if name == b"x-forwarded-proto"), None)
    return address, https if scheme is None else scheme.strip().lower() == b"https"
