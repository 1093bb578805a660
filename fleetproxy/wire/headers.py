"""A backend's response headers on their way to the caller: what is left out, and why.

Upstream output is as hostile as client input. Hop-by-hop fields end here (RFC 9110 section 7.6.1), framing is made
anew, what would act on our own origin in a browser is dropped (cookies ignore ports: a backend could overwrite the
dashboard's session), and what we say ourselves is not said twice.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from fleetproxy.core.backend import Backend

Header = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_FRAMING = frozenset({b"content-length"})
#: They would act on our origin, not on the backend's.
_ORIGIN_WIDE = frozenset(
    {
        b"set-cookie",
        b"set-cookie2",
        b"clear-site-data",
        b"strict-transport-security",
        b"public-key-pins",
        b"public-key-pins-report-only",
        b"alt-svc",
        b"refresh",
        b"service-worker-allowed",
        b"content-security-policy",
        b"content-security-policy-report-only",
        b"report-to",
        b"reporting-endpoints",
        b"nel",
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
    }
)
#: Ours to say.
_OURS = frozenset(
    {
        b"x-request-id",
        b"request-id",
        b"server-timing",
        b"server",
        b"x-content-type-options",
        b"x-fleet-backend",
        b"x-fleet-route",
        b"x-fleet-pin",
        b"x-fleet-retries",
        b"x-fleet-queue-ms",
    }
)
_NOT_RETURNED = HOP_BY_HOP | _FRAMING | _ORIGIN_WIDE | _OURS
#: These may name a host of the fleet.
_POINTERS = frozenset({b"location", b"content-location"})
_LOOKED_AT = _NOT_RETURNED | _POINTERS
_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})
#: A backend's HTML or script is never run as if it were ours (faults X-3).
GUARDS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox"),
)
_UNSAFE = re.compile(rb"[\x00-\x20\x7f\\]|[\x80-\xff]")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home", ".arpa")


def response_headers(headers: list[Header], *, backend_host: Backend | None = None) -> list[Header]:
    """The headers the caller gets, in order, as a new list to add to. Names are lower-case, as transports give them."""
    kept = [pair for pair in headers if pair[0] not in _LOOKED_AT]
    if len(kept) != len(headers):
        for name, value in headers:
            if name in _POINTERS:
                target = location(value, backend_host)
                if target is not None:
                    kept.append((name, target))
            elif name == b"connection" and value not in _PLAIN_CONNECTION:
                named = {token.strip().lower() for token in value.split(b",")}
                kept = [pair for pair in kept if pair[0] not in named]
    kept += GUARDS
    return kept


def location(value: bytes, backend: Backend | None) -> bytes | None:
    """A redirect's target as the caller may see it; None when it would show or reach into the fleet.

    Redirects are never followed. A path stays; the backend's own address becomes a path on ours; other hosts stay when
    they are plainly public, and go when they are addresses or names of inner networks (an open door to them, and news).
    """
    if not value or _UNSAFE.search(value):
        return None
    text = value.decode("ascii")
    if text.startswith("//"):
        text = "http:" + text
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not parts.scheme and not parts.netloc:
        return _own_path(text, backend)
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        return None
    if backend is not None and host == backend.host.lower() and (port or _PORTS[parts.scheme]) == backend.port:
        query = f"?{parts.query}" if parts.query else ""
        return _own_path((parts.path or "/") + query, backend)
    return value if _is_public(host) else None


_PORTS = {"http": 80, "https": 443}


def _own_path(path: str, backend: Backend | None) -> bytes:
    prefix = backend.path_prefix if backend is not None else ""
    if prefix and path.startswith(prefix + "/"):
        path = path[len(prefix) :]
    # Two slashes at the front would make a host of what follows.
    return ("/" + path.lstrip("/") if path.startswith("//") else path).encode()


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host.rstrip(".") and not host.rstrip(".").endswith(_LOCAL_SUFFIXES) and not _is_number(host)


def _is_number(host: str) -> bool:
    """An address written in a way that only some programs read (decimal, octal, short)."""
    return re.fullmatch(r"(?:0[xX][0-9A-Fa-f]*|\d+)(?:\.(?:0[xX][0-9A-Fa-f]*|\d+))*\.?", host) is not None


def content_type(headers: list[Header]) -> bytes:
    """The media type as the backend wrote it; empty when it named none."""
    for name, value in headers:
        if name == b"content-type":
            return value
    return b""
