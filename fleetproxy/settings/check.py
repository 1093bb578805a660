"""What settings must be beyond their types, each rule a sentence; and what is left open is filled in. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from fleetproxy.settings.layers import dotted, near
from fleetproxy.settings.model import ClientKey, Key, Settings
from fleetproxy.settings.positions import Path
from fleetproxy.settings.problems import Origin, Origins, Problem
from fleetproxy.settings.servers import BadAddress, check_host, is_loopback, parse_listen, parse_url

SHORTEST_KEY = 8
SHORTEST_PASSWORD = 10
FAMILIES = ("llm", "asr", "mcp", "transfer")
#: First path segments that are ours on the public port and cannot be passed through.
OWN_SEGMENTS = frozenset({"api", "v1", "dashboard", "state", "metrics", "healthz", "livez", "readyz", "health"})
#: Tables of the request history with a time of their own in `analytics.table_days`.
FORGETTABLE = ("requests", "attempts", "model_events", "server_events", "system_metrics", "job_runs")
_SHA256 = re.compile(r"sha256:[0-9a-fA-F]{64}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
#: As Ollama has it: a scheme, or a `*` that may stand for one.
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+|(?=[^/]*\*)[^/?#\s:]+(:(\d+|\*))?")
_KEEP_ALIVE = re.compile(r"-?\d+|-?(\d+(\.\d+)?(ns|us|ms|s|m|h))+")

#: A mistake: the path of the key it is in, and the sentence.
Finding = tuple[Path, str]


def complete(settings: Settings) -> Settings:
    """Fill in what follows from other settings: listening addresses in full, and whether strangers need a key."""
    auth = settings.auth
    if auth.proxy is None:
        closed = not settings.open and not is_loopback(settings.host)
        auth = msgspec.structs.replace(auth, proxy="required" if closed else "open")
    public = (settings.host, settings.port)
    filled: dict[str, Any] = {"auth": auth}
    for name in ("metrics", "dashboard", "hub"):
        section = getattr(settings, name)
        if not section.listen:
            continue
        try:
            host, port = parse_listen(section.listen, settings.host)
        except BadAddress:
            continue  # `check` says so
        # METRICS_PORT equal to PORT is how nfrx spells "on the public port".
        listen = None if name == "metrics" and (host, port) == public else _joined(host, port)
        filled[name] = msgspec.structs.replace(section, listen=listen)
    return msgspec.structs.replace(settings, **filled)


def check(settings: Settings, origins: Origins | None = None, families: Sequence[str] = FAMILIES) -> list[Problem]:
    """Every mistake in complete settings."""
    origins = origins or {}
    findings = [finding for rule in RULES for finding in rule(settings)]
    findings += _unknown_families(settings, families)
    return [Problem(dotted(path), _place(origins, path), text) for path, text in findings]


def strangers(settings: Settings, origins: Origins | None = None) -> Problem | None:
    """The refusal to listen to the network with nobody able to prove who they are; None when all is well.

    Keys that users were given in the dashboard are not in the settings: whoever knows of some does not ask.
    """
    auth = settings.auth
    if auth.proxy != "required" or settings.keys or auth.api_key or auth.admin_key or auth.admin_password:
        return None
    text = (
        f"{settings.host} can be reached from the network, so callers must show a key, but none is configured; "
        "add auth.api_key, a [[keys]] entry or auth.admin_username with auth.admin_password, "
        "listen on 127.0.0.1, or start with --open to let everybody in"
    )
    return Problem("host", _place(origins or {}, ("host",)), text)


# --- rules ---


def _host(settings: Settings) -> Iterator[Finding]:
    try:
        check_host(settings.host)
    except BadAddress as error:
        yield ("host",), f"{error}; wants an address of this machine, such as 127.0.0.1 or 0.0.0.0"


def _listens(settings: Settings) -> Iterator[Finding]:
    taken: dict[tuple[str, int], str] = {(settings.host, settings.port): "the public port"}
    for name in ("metrics", "dashboard", "hub"):
        text = getattr(settings, name).listen
        if not text:
            continue
        try:
            address = parse_listen(text, settings.host)
        except BadAddress as error:
            yield (name, "listen"), str(error)
            continue
        if address[1] and address in taken:
            yield (name, "listen"), f"{text} is {taken[address]} already"
        taken[address] = f"{name}.listen"


def _servers(settings: Settings) -> Iterator[Finding]:
    names: dict[str, int] = {}
    for place, server in enumerate(settings.servers):
        here: Path = ("servers", place)
        if not server.name.isprintable() or server.name != server.name.strip():
            yield (*here, "name"), "a name has no control characters, no invisible marks and no spaces around it"
        first = names.setdefault(server.name.casefold(), place)
        if first != place:
            yield (*here, "name"), f'"{server.name}" is the name of servers[{first}] already (case does not count)'
        try:
            address = parse_url(server.url, server.kind)
        except BadAddress as error:
            yield (*here, "url"), str(error)
            continue
        if address.port == settings.port and is_loopback(address.host) and _listens_on_loopback(settings.host):
            yield (*here, "url"), "is the address of this fleetproxy itself"
        if address.scheme == "http":
            for option in ("tls_ca_file", "tls_server_name"):
                if getattr(server, option):
                    yield (*here, option), "has no meaning for an http:// server; use https://"
        if server.api_key and not _TOKEN.fullmatch(server.api_key):
            yield (*here, "api_key"), "a token is printable ASCII without spaces"
        if server.host_header and not re.fullmatch(r"[A-Za-z0-9.:_\[\]-]+", server.host_header):
            yield (*here, "host_header"), "wants host or host:port"


def _listens_on_loopback(host: str) -> bool:
    return is_loopback(host) or host in {"0.0.0.0", "::", ""}  # noqa: S104


def _keys(settings: Settings) -> Iterator[Finding]:
    lists: dict[str, Sequence[Key | ClientKey]] = {"keys": settings.keys, "client_keys": settings.client_keys}
    for table, entries in lists.items():
        names: dict[str, int] = {}
        keys: dict[str, int] = {}
        for place, key in enumerate(entries):
            here: Path = (table, place)
            first = names.setdefault(key.name.casefold(), place)
            if first != place:
                yield (*here, "name"), f'"{key.name}" is the name of {table}[{first}] already'
            yield from (((*here, "key"), text) for text in _bad_key(key.key, hashed=True))
            if (first := keys.setdefault(key.key, place)) != place:
                yield (*here, "key"), f"is the key of {table}[{first}] already"


def _bad_key(key: str, *, hashed: bool) -> Iterator[str]:
    if key.lower().startswith("sha256:"):
        if not hashed:
            yield "must be the key itself, not its hash"
        elif not _SHA256.fullmatch(key):
            yield "wants sha256: and 64 hexadecimal digits"
    elif not _TOKEN.fullmatch(key):
        yield "a key is printable ASCII without spaces"
    elif len(key) < SHORTEST_KEY:
        yield f"a key has at least {SHORTEST_KEY} characters"


def _auth(settings: Settings) -> Iterator[Finding]:
    auth = settings.auth
    for name in ("api_key", "admin_key", "client_key"):
        value = getattr(auth, name)
        if value:
            yield from ((("auth", name), text) for text in _bad_key(value, hashed=False))
    if bool(auth.admin_username) != bool(auth.admin_password):
        alone = "admin_username" if auth.admin_username else "admin_password"
        yield ("auth", alone), "admin_username and admin_password belong together"
    if auth.admin_password and len(auth.admin_password) < SHORTEST_PASSWORD:
        yield ("auth", "admin_password"), f"a password has at least {SHORTEST_PASSWORD} characters"
    for place, network in enumerate(auth.trusted_proxies):
        try:
            ipaddress.ip_network(network)
        except ValueError:
            yield ("auth", "trusted_proxies", place), f'"{network}" is no network{_meant_network(network)}'


def _meant_network(text: str) -> str:
    try:
        return f"; did you mean {ipaddress.ip_network(text, strict=False)}?"
    except ValueError:
        return "; wants an address or CIDR such as 10.0.0.0/8"


def _tls(settings: Settings) -> Iterator[Finding]:
    if bool(settings.tls.cert) != bool(settings.tls.key):
        missing = "key" if settings.tls.cert else "cert"
        yield ("tls", missing), "is missing: TLS needs both cert and key"


def _hosts(settings: Settings) -> Iterator[Finding]:
    for place, host in enumerate(settings.hosts):
        try:
            check_host(host)
        except BadAddress:
            yield ("hosts", place), f'"{host}" is no host name; wants a name without scheme, port or path'


def _passthrough(settings: Settings) -> Iterator[Finding]:
    for place, path in enumerate(settings.passthrough):
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
            yield ("passthrough", place), f'"{path}" is no plain path; wants one such as /rerank'
        elif path.split("/")[1] in OWN_SEGMENTS:
            yield ("passthrough", place), f'"{path}" is answered by fleetproxy itself'


def _origins(settings: Settings) -> Iterator[Finding]:
    for place, origin in enumerate(settings.cors.origins):
        if not _ORIGIN.fullmatch(origin):
            yield ("cors", "origins", place), f'"{origin}" is no origin; wants scheme://host[:port], *.domain, or "*"'


def _routing(settings: Settings) -> Iterator[Finding]:
    aliases = settings.routing.aliases
    for alias, target in aliases.items():
        if not alias.strip() or not target.strip():
            yield ("routing", "aliases", alias), "an alias and its model have a name"
            continue
        seen = {alias}
        end = target
        while end in aliases and end not in seen:
            seen.add(end)
            end = aliases[end]
        if end in seen:
            yield ("routing", "aliases", alias), f'"{alias}" leads back to itself'
    keep_alive = settings.routing.default_keep_alive
    if keep_alive and not _KEEP_ALIVE.fullmatch(keep_alive):
        yield ("routing", "default_keep_alive"), f'"{keep_alive}" is no duration; wants one such as "30m", or "-1"'
    for address in settings.routing.source_names:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield ("routing", "source_names", address), f'"{address}" is no IP address'


def _limits(settings: Settings) -> Iterator[Finding]:
    limits = settings.limits
    if limits.buffered_bytes < limits.body_bytes:
        yield ("limits", "buffered_bytes"), f"must hold at least one body of limits.body_bytes ({limits.body_bytes})"
    if settings.routing.eject_max_s < settings.routing.eject_s:
        yield ("routing", "eject_max_s"), f"must not be below routing.eject_s ({settings.routing.eject_s:g})"


def _tables(settings: Settings) -> Iterator[Finding]:
    for name in settings.analytics.table_days:
        if name not in FORGETTABLE:
            meant = near(name, FORGETTABLE)
            yield (
                ("analytics", "table_days", name),
                f'"{name}" is no table whose rows are forgotten{meant or "; known are " + ", ".join(FORGETTABLE)}',
            )


def _addresses(settings: Settings) -> Iterator[Finding]:
    for place, target in enumerate(settings.wan.targets):
        try:
            if parse_listen(target, "")[0]:
                continue
        except BadAddress:
            pass
        yield ("wan", "targets", place), f'"{target}" wants host:port'
    for section, key in (
        ("telegram", "api_url"),
        ("discovery", "ollama_registry_url"),
        ("discovery", "huggingface_url"),
    ):
        url = getattr(getattr(settings, section), key)
        try:
            parse_url(url, "openai")
        except BadAddress as error:
            yield (section, key), str(error)


RULES: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _host,
    _listens,
    _servers,
    _keys,
    _auth,
    _tls,
    _hosts,
    _passthrough,
    _origins,
    _routing,
    _limits,
    _tables,
    _addresses,
)


def _unknown_families(settings: Settings, families: Sequence[str]) -> Iterator[Finding]:
    for place, name in enumerate(settings.plugins):
        if name not in families:
            hint = near(name, families) or f"; there are {', '.join(families)}"
            yield ("plugins", place), f'unknown family "{name}"{hint}'


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _place(origins: Origins, path: Path) -> Origin:
    while path and path not in origins:
        path = path[:-1]
    return origins.get(path, Origin("default"))
