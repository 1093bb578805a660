"""Roles that a trusted proxy vouches for (`X-User-Roles`): they stand for a key on the families' surface."""

from __future__ import annotations

from collections.abc import Iterable

from fleetproxy.core.access import Network, trusted

MAX_ROLES_BYTES = 4096


def vouched(header: bytes | None, peer: str, proxies: tuple[Network, ...]) -> frozenset[str]:
    """The roles of a request: none unless the connection itself comes from a trusted proxy.

    `header` is the value of X-User-Roles: names between commas, case counts. `peer` is the socket's address.
    """
    if not header or not proxies or not trusted(peer.removeprefix("::ffff:"), proxies):
        return frozenset()
    return read_roles(header)


def read_roles(header: bytes | None) -> frozenset[str]:
    """The names in a list of roles whose writer is trusted."""
    if not header or len(header) > MAX_ROLES_BYTES:
        return frozenset()
    return frozenset(role.strip() for role in header.decode("utf-8", "replace").split(",")) - {""}


def any_of(roles: frozenset[str], wanted: Iterable[str]) -> bool:
    """Whether one of the roles is wanted."""
    return not roles.isdisjoint(wanted)
