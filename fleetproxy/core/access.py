"""Who is asking, and may they: keys, sources, hosts and origins, decided from the head alone."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from fleetproxy.core.table import Principal

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Own = Mapping[bytes, bytes]
Header = tuple[bytes, bytes]

MAX_KEY_BYTES = 1024
MAX_SOURCE_CHARACTERS = 128


# --- keys ----------------------------------------------------------------------------------------------------------


class Caller(msgspec.Struct, frozen=True, gc=False):
    """What the credentials of a request say."""

    principal: Principal | None
    #: A key was sent that we do not know.
    key_unknown: bool
    #: Credentials that are not ours, as wire lines: they go on to the backend (signed Ollama requests, for example).
    forwarded: bytes


NOBODY = Caller(None, False, b"")


def identify(own: Own, principals: Mapping[bytes, Principal], now_s: float) -> Caller:
    """One resolver for every carrier: X-Ollama-Api-Key, then Bearer, then x-api-key; the first known one wins.

    `principals` maps SHA-256 of a key to whom it stands for; `now_s` is seconds since the epoch.
    """
    ollama_key = own.get(b"x-ollama-api-key")
    authorization = own.get(b"authorization")
    api_key = own.get(b"x-api-key")
    if authorization is None and api_key is None and ollama_key is None:
        return NOBODY
    principal = None
    unknown = False
    forwarded = b""
    if ollama_key is not None:
        principal = find(ollama_key.strip(), principals, now_s)
        unknown = principal is None
    if authorization is not None:
        bearer = bearer_token(authorization)
        known = find(bearer, principals, now_s) if bearer is not None else None
        if known is None:
            forwarded = b"authorization: %b\r\n" % authorization
            unknown = unknown or bearer is not None
        principal = principal or known
    if api_key is not None:
        known = find(api_key.strip(), principals, now_s)
        if known is None:
            forwarded += b"x-api-key: %b\r\n" % api_key
            unknown = True
        principal = principal or known
    return Caller(principal, unknown and principal is None, forwarded)


def bearer_token(authorization: bytes) -> bytes | None:
    """The token of a Bearer header (scheme in any case); None for other schemes."""
    return authorization[7:].strip() if authorization[:7].lower() == b"bearer " else None


def find(key: bytes, principals: Mapping[bytes, Principal], now_s: float) -> Principal | None:
    """Whom a key stands for. Looked up by its hash, so nothing about near misses shows in the time it takes."""
    if not key or len(key) > MAX_KEY_BYTES:
        return None
    principal = principals.get(hashlib.sha256(key).digest())
    if principal is not None and principal.expires_at_s is not None and principal.expires_at_s <= now_s:
        return None
    return principal


def source(own: Own, principal: Principal | None, address: str, names: Mapping[str, str]) -> str:
    """Who the record names: the key's owner, else X-Ollama-Source, else the address (by its name if it has one)."""
    if principal is not None:
        return principal.name
    given = own.get(b"x-ollama-source")
    if given is not None:
        text = given.decode("utf-8", "replace").strip()
        if text:
            return "".join(c if c.isprintable() else "\ufffd" for c in text[:MAX_SOURCE_CHARACTERS])
    return names.get(address, address)


# --- addresses -----------------------------------------------------------------------------------------------------


def networks(cidrs: tuple[str, ...]) -> tuple[Network, ...]:
    """Trusted networks, parsed once. Raises ValueError on what is none."""
    return tuple(ipaddress.ip_network(cidr, strict=False) for cidr in cidrs)


def trusted(address: str, proxies: tuple[Network, ...]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed.version == network.version and parsed in network for network in proxies)


def client_address(peer: str, own: Own, proxies: tuple[Network, ...]) -> str:
    """The caller's address: X-Forwarded-For read from the right, as far as those who wrote it are trusted."""
    peer = peer.removeprefix("::ffff:")
    if not proxies or not trusted(peer, proxies):
        return peer
    address = peer
    for hop in reversed(own.get(b"x-forwarded-for", b"").split(b",")):
        parsed = _parsed(hop.strip().decode("latin-1"))
        if parsed is None:
            return address
        address = str(parsed)
        if not trusted(address, proxies):
            return address
    return address


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, IPv4 also where it was written as IPv6; None for what is none."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, ipaddress.IPv6Address) else parsed


# --- hosts (DNS rebinding) -----------------------------------------------------------------------------------------

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def host_allowed(host: bytes, hosts: frozenset[str]) -> bool:
    """Whether we answer to this Host header. Addresses and local names always; others by the list, if there is one.

    `hosts` empty means any name (the operator has not restricted them); "" as an element means "no other names".
    """
    if not hosts or not host:
        return True
    name = host.decode("latin-1").lower()
    name = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.rsplit(":", 1)[0]
    if name in hosts or name == "localhost" or name.endswith(_LOCAL_SUFFIXES):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


# --- origins (CORS) --------------------------------------------------------------------------------------------------

#: Pages that may always call, as Ollama has it: local ones and local applications.
BUILTIN_ORIGINS = tuple(
    [
        f"{scheme}://{host}{port}"
        for host in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - a name in a list, nothing is bound
        for scheme in ("http", "https")
        for port in ("", ":*")
    ]
    + ["app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"]
)
_METHODS = b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
_REQUEST_HEADERS = (
    b"Authorization, Content-Type, User-Agent, Accept, X-Requested-With, OpenAI-Beta, X-Api-Key, Anthropic-Version, "
    b"Anthropic-Beta, Anthropic-Dangerous-Direct-Browser-Access, X-Ollama-Api-Key, X-Ollama-Source, "
    b"X-Ollama-Pin-Server, X-Request-Id, X-Stainless-Arch, X-Stainless-Async, X-Stainless-Custom-Poll-Interval, "
    b"X-Stainless-Helper-Method, X-Stainless-Lang, X-Stainless-Os, X-Stainless-Package-Version, "
    b"X-Stainless-Poll-Helper, X-Stainless-Retry-Count, X-Stainless-Runtime, X-Stainless-Runtime-Version, "
    b"X-Stainless-Timeout"
)
_EXPOSED = (
    b"X-Request-Id, X-Fleet-Backend, X-Fleet-Route, X-Fleet-Retries, X-Fleet-Queue-Ms, Server-Timing, Retry-After"
)


class Cors(msgspec.Struct, frozen=True, gc=False):
    """What a request with an Origin header gets."""

    allowed: bool
    #: It is an OPTIONS preflight: `headers` are the whole answer.
    preflight: bool
    headers: tuple[Header, ...]


def cors(method: str, own: Own, origins: tuple[str, ...]) -> Cors | None:
    """None without an Origin header. Credentials are never allowed across origins."""
    origin = own.get(b"origin")
    if origin is None:
        return None
    allowed = origin_allowed(origin, own.get(b"host", b""), origins)
    preflight = method == "OPTIONS" and b"access-control-request-method" in own
    headers: tuple[Header, ...] = ((b"vary", b"Origin"),)
    if allowed:
        headers += ((b"access-control-allow-origin", origin),)
        if preflight:
            headers += (
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", _REQUEST_HEADERS),
                (b"access-control-max-age", b"43200"),
            )
        else:
            headers += ((b"access-control-expose-headers", _EXPOSED),)
    return Cors(allowed, preflight, headers)


def origin_allowed(origin: bytes, host: bytes, origins: tuple[str, ...]) -> bool:
    """Same origin, one of Ollama's built-in ones, or one of the operator's (`*` inside a pattern matches anything)."""
    text = origin.decode("latin-1").lower()
    if text == "null":
        return "*" in origins
    if host and text.split("://", 1)[-1] == host.decode("latin-1").lower():
        return True
    return any(_matches(text, pattern.lower()) for pattern in (*BUILTIN_ORIGINS, *origins))


def _matches(origin: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.endswith(":*"):
        base, _, port = origin.rpartition(":")
        return base == pattern[:-2] and port.isdigit()
    patterns = (pattern,) if "://" in pattern else (f"http://{pattern}", f"https://{pattern}")
    return any(_wildcard(one).fullmatch(origin) for one in patterns)


@lru_cache(maxsize=256)
def _wildcard(pattern: str) -> re.Pattern[str]:
    """`*` stands for anything but a slash; all else for itself."""
    return re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
