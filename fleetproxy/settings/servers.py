"""How a server is written, and the backend it means."""

from __future__ import annotations

import ipaddress
import re

import msgspec

from fleetproxy.core.backend import Backend
from fleetproxy.settings.model import Server, Settings

OLLAMA_PORT = 11434
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<rest>[?#].*)?", re.DOTALL
)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?")
_GIB = 1024**3


class BadAddress(ValueError):
    """An address that cannot be used; the text says what is wrong with it and what is wanted."""


class Address(msgspec.Struct, frozen=True):
    """Where a server is."""

    scheme: str
    host: str
    port: int
    #: "" or "/prefix", without a trailing slash.
    prefix: str = ""


def parse_url(url: str, kind: str = "ollama") -> Address:
    """`[http(s)://]host[:port][/prefix]`; raises BadAddress."""
    if url != url.strip() or any(ord(letter) < 33 or ord(letter) == 127 for letter in url):
        raise BadAddress("an address has no spaces or control characters")
    found = _URL.fullmatch(url)
    if found is None or not found["authority"]:
        raise BadAddress("wants http(s)://host[:port][/prefix]")
    scheme = (found["scheme"] or "http").lower()
    if scheme not in _DEFAULT_PORTS:
        raise BadAddress(f'"{scheme}" is no scheme of a server; use http or https')
    if "@" in found["authority"]:
        raise BadAddress("an address carries no user or password; put the token in api_key")
    if found["rest"]:
        raise BadAddress("an address has no query or fragment")
    path = found["path"] or ""
    if not _PATH.fullmatch(path) or any(part in {".", ".."} for part in path.split("/")):
        raise BadAddress("a prefix is plain path segments, such as /ollama")
    host, port = _host_and_port(found["authority"])
    if port is None:
        port = OLLAMA_PORT if kind == "ollama" and scheme == "http" else _DEFAULT_PORTS[scheme]
    prefix = path.rstrip("/")
    if kind == "openai" and prefix.endswith("/v1"):
        # People paste the base URL their client wants; we add /v1 with every path.
        prefix = prefix.removesuffix("/v1")
    return Address(scheme, host, port, prefix)


def parse_listen(text: str, default_host: str) -> tuple[str, int]:
    """`host:port`, `:port` or `port` of a listening address; the last two listen on `default_host`."""
    host, colon, number = text.strip().rpartition(":")
    if not number.isascii() or not number.isdigit() or int(number) > 65535:
        raise BadAddress("wants host:port, such as 127.0.0.1:9090")
    if not colon or not host:
        return default_host, int(number)
    return check_host(host), int(number)


def check_host(text: str) -> str:
    """A host name or address, brackets of an IPv6 address removed; raises BadAddress."""
    if text.startswith("["):
        if not text.endswith("]"):
            raise BadAddress("the bracket of an IPv6 address is not closed")
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise BadAddress(f'"{text[1:-1]}" is no IPv6 address') from None
    if ":" in text:
        try:
            return str(ipaddress.IPv6Address(text))
        except ValueError:
            raise BadAddress(f'"{text}" is no host name or address') from None
    if not text.isascii():
        raise BadAddress(f'write the host name in its ASCII form ("{_ascii(text)}")')
    labels = text.rstrip(".").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadAddress(f'"{text}" is no host name or address')
    if labels[-1].isdigit() or labels[-1][:2].lower() == "0x":  # ends in a number: must be an address (WHATWG URL)
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise BadAddress(f'"{text}" is no IPv4 address') from None
    return text.lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that listening address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def without_password(text: str) -> str:
    """An address as it may be shown: whoever wrote a password into it did not mean to show it."""
    return re.sub(r"[^/=+]*@", "***@", text)


def public_url(settings: Settings) -> str:
    """Where this fleetproxy is reached from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls.cert else 'http'}://{host}:{settings.port}"


def dashboard_url(settings: Settings, url: str) -> str | None:
    """Where the dashboard is: on the public address `url`, or on one of its own; None when it is on neither."""
    if settings.dashboard.on_public_port:
        return f"{url}/dashboard/"
    if not settings.dashboard.listen:
        return None
    host, port = parse_listen(settings.dashboard.listen, settings.host)
    own = msgspec.structs.replace(settings, host=host, port=port)
    return f"{public_url(own)}/dashboard/"


def short_server(text: str) -> dict[str, str]:
    """`[name=][openai+]url` as the keys of a server. Without a name the host and port are the name.

    >>> short_server("gpu1=10.0.0.5:11434")
    {'name': 'gpu1', 'url': '10.0.0.5:11434', 'kind': 'ollama'}
    """
    name, equals, url = text.strip().partition("=")
    if not equals or "/" in name:
        name, url = "", text.strip()
    kind = "ollama"
    for prefix in ("openai", "ollama"):
        if url.lower().startswith(f"{prefix}+"):
            kind, url = prefix, url[len(prefix) + 1 :]
            break
    else:
        if re.search(r"/v1/?$", url):
            kind = "openai"
    if not name:
        address = parse_url(url, kind)
        usual = OLLAMA_PORT if kind == "ollama" else _DEFAULT_PORTS[address.scheme]
        name = address.host if address.port == usual else f"{address.host}:{address.port}"
    return {"name": name.strip(), "url": url, "kind": kind}


def to_backend(server: Server, *, id: int, column: int) -> Backend:
    """The backend a server means; its number and its column on the load board come from control."""
    address = parse_url(server.url, server.kind)
    return Backend(
        name=server.name,
        id=id,
        column=column,
        kind=server.kind,
        scheme=address.scheme,
        host=address.host,
        port=address.port,
        path_prefix=address.prefix,
        host_header=server.host_header,
        api_key=server.api_key,
        http2=server.http2,
        tls_ca_file=server.tls_ca_file,
        tls_verify=server.tls_verify,
        tls_server_name=server.tls_server_name,
        max_concurrent=server.max_concurrent,
        embedding_batch_size=server.embedding_batch_size,
        vram_bytes=None if server.vram_gb is None else int(server.vram_gb * _GIB),
        enabled=server.enabled,
    )


def resolve(settings: Settings) -> tuple[Backend, ...]:
    """The backends of these settings in order, numbered from 1, on columns from 0."""
    return tuple(to_backend(server, id=place + 1, column=place) for place, server in enumerate(settings.servers))


def _host_and_port(authority: str) -> tuple[str, int | None]:
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadAddress("an IPv6 address stands in brackets: [::1]:11434")
        return check_host(host + bracket), _port(rest[1:]) if rest else None
    if authority.count(":") > 1:
        raise BadAddress(f"an IPv6 address stands in brackets: [{authority}]")
    host, colon, number = authority.partition(":")
    return check_host(host), _port(number) if colon else None


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise BadAddress("a port is a number from 1 to 65535")
    return int(text)


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return "xn--..."
