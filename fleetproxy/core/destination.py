"""Where we may be told to connect to. Fleets live on private networks, so private addresses are fine; what no
inference server ever is at, and what attackers want us to ask, is not."""

from __future__ import annotations

import ipaddress

#: Metadata services of clouds outside of link-local ranges.
_METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")))


def forbidden(address: str) -> str | None:
    """Why an IP address may not be connected to; None when it may."""
    try:
        parsed = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return "it is no IP address"
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is None and parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return forbidden(str(inner))
    if parsed in _METADATA or parsed.is_link_local:
        return "it is a link-local address, where machines' metadata is"
    if parsed.is_unspecified:
        return "it names no machine"
    if parsed.is_multicast:
        return "it names many machines at once"
    if parsed == ipaddress.ip_address("255.255.255.255"):
        return "it names every machine"
    return None


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
