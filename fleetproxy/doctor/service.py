"""The fleetproxy that runs, met where its clients meet it: is it well, and does what lies between spoil streams?"""

from __future__ import annotations

import base64
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

from fleetproxy.doctor.clocks import SKEW_S, skew_s
from fleetproxy.doctor.configuration import until_end
from fleetproxy.doctor.finding import Finding, fail, ok, warn
from fleetproxy.remote.address import Target
from fleetproxy.remote.call import CallError, Fleet
from fleetproxy.remote.models import known_servers

#: The state stream sends its first event at once.
FIRST_EVENT_S = 3.0
_SOCKET_S = 5.0
_HEALTH_S = 5.0


def service(target: Target) -> Iterator[Finding]:
    """Health, clock, certificate, streams and sockets of the address its clients use."""
    fleet = Fleet(target, timeout_s=_HEALTH_S)
    began_s = time.monotonic()
    try:
        health = fleet.ask("GET", "/healthz")
    except CallError as error:
        if target.origin == "settings":
            yield warn("service", "no fleetproxy runs with these settings", "start it: fleetproxy serve")
        else:
            yield fail("service", str(error), "start it, or name another with --url")
        return
    took_ms = (time.monotonic() - began_s) * 1000
    if health.status != 200:
        yield fail("service", f"/healthz is answered with HTTP {health.status}", "is it a fleetproxy at all?")
        return
    yield ok("service", f"{target.url} answers in {took_ms:.0f} ms")
    yield _ready(fleet)
    yield from _elsewhere(fleet)
    yield from _clock(health.headers.get("date", ""))
    yield from _certificate(target)
    yield _events(target)
    yield _socket(target)


def _ready(fleet: Fleet) -> Finding:
    try:
        answer = fleet.ask("GET", "/readyz")
    except CallError as error:
        return fail("readiness", str(error), "is it being stopped?")
    if answer.status == 200:
        return ok("readiness", "requests can be served")
    failed = answer.value.get("failed", []) if isinstance(answer.value, dict) else []
    return fail(
        "readiness",
        f"requests cannot be served: {', '.join(map(str, failed)) or f'HTTP {answer.status}'}",
        "look at `fleetproxy status` and the log",
    )


def _elsewhere(fleet: Fleet) -> Iterator[Finding]:
    """Servers that our settings do not name: those added while it ran, all of them where it is another's fleet."""
    try:
        servers = known_servers(fleet)
    except CallError:
        return  # that needs a key; the lines about streams say so
    for server in servers:
        name, url = server.get("name"), server.get("url")
        if not name or (fleet.target.live is not None and server.get("origin") == "file"):
            continue  # asked from here already
        if server.get("isDisabled"):
            yield ok(f"server {name}", "disabled, the fleet tells")
        elif server.get("isOnline"):
            yield ok(f"server {name}", f"online at {url}, the fleet tells")
        else:
            why = server.get("lastError") or f"nobody answers at {url}"
            yield fail(f"server {name}", f"offline, the fleet tells: {why}", "start it, or take it out of the fleet")


def _clock(date: str) -> Iterator[Finding]:
    ahead_s = skew_s(date)
    if ahead_s is None:
        return
    if abs(ahead_s) > SKEW_S:
        yield warn("clock", f"its clock and ours are {abs(ahead_s):.0f} s apart", "run NTP on both")
    else:
        yield ok("clock", "agrees with ours")


def _certificate(target: Target) -> Iterator[Finding]:
    parts = urlsplit(target.url)
    if parts.scheme != "https" or not target.verified:
        return
    try:
        with _connected(target, ssl.create_default_context()) as channel:
            assert isinstance(channel, ssl.SSLSocket)
            peer = channel.getpeercert() or {}
    except OSError:
        return  # the call before went through; whatever this is, it is no matter of certificates
    if "notAfter" in peer:
        ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), UTC)
        yield until_end(f"that of {parts.hostname}", ends, datetime.now(UTC))


def _events(target: Target) -> Finding:
    """An event must come at once: a proxy in between that holds streams back holds answers back too."""
    fleet = Fleet(target, timeout_s=FIRST_EVENT_S)
    began_s = time.monotonic()
    try:
        with fleet.stream("GET", "/api/state/stream", None) as stream:
            for line in stream.lines:
                if line.startswith(b"data:"):
                    took_ms = (time.monotonic() - began_s) * 1000
                    return ok("streams", f"events come through as they are sent ({took_ms:.0f} ms)")
    except CallError as error:
        if error.kind == "refused":
            return warn("streams", "not tried: that needs a key", "give one with --key or FLEETPROXY_KEY")
        if error.kind == "timeout":
            return fail(
                "streams",
                f"no event within {FIRST_EVENT_S:g} s: something in between holds streams back",
                "switch buffering off there; nginx: proxy_buffering off; proxy_read_timeout 600s",
            )
        if error.kind == "missing":
            return warn("streams", "not tried: the dashboard is not on this address", "give --url of the other one")
        return fail("streams", str(error), "look at the log of what is in between")
    return fail("streams", "the stream of events ends at once", "look at the log")


def _socket(target: Target) -> Finding:
    """Whether workers could dial in here: the upgrade must come through. It ends before it says who it is."""
    nonce = base64.b64encode(secrets.token_bytes(16)).decode()
    parts = urlsplit(target.url)
    head = (
        f"GET {parts.path}/api/llm/connect HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: Upgrade\r\n"
        f"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {nonce}\r\n\r\n"
    )
    context = ssl.create_default_context() if target.verified else ssl._create_unverified_context()  # noqa: S323
    try:
        with _connected(target, context) as channel:
            channel.sendall(head.encode())
            line = channel.recv(4096).split(b"\r\n", 1)[0].decode(errors="replace")
    except OSError as error:
        return warn("sockets", f"the upgrade to WebSocket breaks: {error}", "only needed where workers dial in here")
    status = line.split(" ")[1] if line.count(" ") else ""
    if status in ("101", "401", "403"):
        return ok("sockets", "workers can dial in here" + ("" if status == "101" else ", with a key"))
    return warn(
        "sockets",
        f"the upgrade to WebSocket is answered with {line or 'nothing'}",
        "workers could not dial in here; nginx: proxy_http_version 1.1 and the Upgrade and Connection headers",
    )


def _connected(target: Target, context: ssl.SSLContext) -> socket.socket:
    parts = urlsplit(target.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    plain = socket.create_connection((parts.hostname or "", port), timeout=_SOCKET_S)
    return context.wrap_socket(plain, server_hostname=parts.hostname) if parts.scheme == "https" else plain
