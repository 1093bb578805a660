"""A request's head, read once: what we act on is picked out, what goes on to a backend is ready as wire lines.

The server below has already refused what is not HTTP (bad names, control characters in values); this module decides
what each header means to a gateway (RFC 9110 section 7.6.1, faults C-12...C-19, C-44).
"""

from __future__ import annotations

from fleetproxy.errors import BadRequest, HeadersTooLarge

MAX_HEADER_BYTES = 32 * 1024

#: Meant for us or for one hop: never forwarded as they came. What we need of them is kept in `Head.own`.
NOT_FORWARDED = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
        b"expect",
        # Compressed answers would hide their usage from the tap, and nothing gained is worth a buffered stream.
        b"accept-encoding",
        b"authorization",
        b"x-api-key",
        b"x-ollama-api-key",
        b"x-ollama-source",
        b"x-ollama-pin-server",
        b"x-request-id",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-forwarded-user",
        b"x-real-ip",
        b"x-remote-user",
        b"x-user-roles",
        b"forwarded",
        b"cookie",
        b"via",
        b"max-forwards",
        b"origin",
        b"access-control-request-method",
        b"access-control-request-headers",
        b"x-fleet-client",
        b"x-fleet-scheme",
        b"x-fleet-roles",
        b"x-fleet-queue-events",
    }
)
#: Forwarded, and also looked at.
LOOKED_AT = frozenset({b"user-agent", b"content-type", b"content-encoding", b"sec-fetch-site"})
_PICKED = NOT_FORWARDED | LOOKED_AT
#: Twice the same is ambiguous for these: one interpretation or none.
_SINGLE = frozenset({b"host", b"content-length", b"authorization", b"x-api-key", b"x-ollama-api-key", b"expect"})
_ALIASES = frozenset(name.replace(b"-", b"_") for name in NOT_FORWARDED if b"-" in name)


class Head:
    """`own` holds the picked headers (first value of each), `lines` the forwarded ones, each with its line end."""

    __slots__ = ("lines", "own")

    def __init__(self, own: dict[bytes, bytes], lines: bytes) -> None:
        self.own = own
        self.lines = lines

    @property
    def content_length(self) -> int | None:
        value = self.own.get(b"content-length")
        return int(value) if value is not None and value.isdigit() else None

    @property
    def has_body(self) -> bool:
        return self.own.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.own


def read_head(headers: list[tuple[bytes, bytes]]) -> Head:
    """Read ASGI headers (names lower-case). Raises BadRequest or HeadersTooLarge."""
    own: dict[bytes, bytes] = {}
    forward: list[tuple[bytes, bytes]] = []
    for pair in headers:
        name = pair[0]
        if name in _PICKED:
            if name in own:
                if name in _SINGLE:
                    raise BadRequest(f"The {name.decode()} header was sent twice.")
                if name in (b"x-forwarded-for", b"via"):
                    own[name] = own[name] + b", " + pair[1]
            else:
                own[name] = pair[1]
            if name not in LOOKED_AT:
                continue
        elif name in _ALIASES:
            raise BadRequest("Header names with underscores that stand for ours are not taken; use hyphens.")
        forward.append(pair)
    nominated = own.get(b"connection")
    if nominated is not None and nominated not in _COMMON_CONNECTION:
        named = {token.strip().lower() for token in nominated.split(b",")}
        forward = [pair for pair in forward if pair[0] not in named]
    lines = b"".join([b"%b: %b\r\n" % pair for pair in forward])
    if len(lines) > MAX_HEADER_BYTES:
        raise HeadersTooLarge
    return Head(own, lines)


_COMMON_CONNECTION = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})
