"""The settings as they are: mistakes, strangers let in, secrets that are none, certificates that end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from fleetproxy.core.password_policy import password_fault
from fleetproxy.doctor.finding import Finding, fail, ok, warn
from fleetproxy.settings import Settings
from fleetproxy.settings.files import certificate_end
from fleetproxy.settings.load import Loaded
from fleetproxy.settings.problems import ConfigError
from fleetproxy.settings.servers import is_loopback

#: Fewer characters than this can be tried out.
SHORTEST_KEY = 16
#: Certificates are renewed by then, as a rule.
RENEW_DAYS = 14


def mistakes(error: ConfigError) -> Iterator[Finding]:
    """What `config check` says."""
    for problem in error.problems:
        yield fail("configuration", str(problem), "mend it there; `fleetproxy config check` says whether it is good")


def configuration(loaded: Loaded, now: datetime) -> Iterator[Finding]:
    """Of settings that can be read."""
    settings = loaded.settings
    read = ", ".join(map(str, loaded.files)) or "no file; `fleetproxy init` writes one"
    yield ok("configuration", f"valid ({read})")
    for note in loaded.notes:
        yield warn("configuration", note, "set it by our own name, or take the variable away")
    if not settings.servers:
        yield warn(
            "servers",
            "none configured",
            "name one in the file or with `fleetproxy servers add`, or let workers dial in",
        )
    yield from _strangers(settings)
    yield from _secrets(settings)
    yield from _certificate(settings, now)
    yield ok("telemetry", "none: nothing is sent to anybody")


def _strangers(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.host}:{settings.port}"
    if is_loopback(settings.host):
        yield ok("access", f"listens on {where}: this machine alone")
    elif settings.auth.proxy == "required":
        if settings.tls.cert:
            yield ok("access", f"listens on {where} with TLS; callers need a key")
        else:
            yield warn(
                "access",
                f"listens on {where} without TLS: keys cross the network readable",
                "set tls.cert and tls.key, or put a TLS proxy in front and listen on 127.0.0.1",
            )
    else:
        yield warn(
            "access",
            f"listens on {where} and asks nobody for a key",
            'set auth.proxy = "required" unless everybody on that network may use it',
        )
    if settings.hub.listen or not is_loopback(settings.host):
        if settings.auth.client_key or settings.client_keys:
            yield ok("workers", "need a client key to dial in")
        else:
            yield warn("workers", "may dial in without a key", "set auth.client_key")


def _secrets(settings: Settings) -> Iterator[Finding]:
    auth = settings.auth
    named = {"auth.api_key": auth.api_key, "auth.admin_key": auth.admin_key, "auth.client_key": auth.client_key}
    named |= {f"the key of {key.name}": key.key for key in settings.keys}
    named |= {f"the client key of {key.name}": key.key for key in settings.client_keys}
    weak = [name for name, value in named.items() if value and _is_weak(value)]
    fix = "make a new one: openssl rand -hex 32"
    for name in weak:
        yield warn("secrets", f"{name} can be guessed", fix)
    fault = password_fault(auth.admin_password, auth.admin_username or "admin") if auth.admin_password else None
    if fault:
        yield fail("secrets", f"auth.admin_password: {fault}", "choose another one")
    if not weak and not fault:
        given = sum(1 for value in named.values() if value)
        yield ok("secrets", f"{given} in the settings, none that can be guessed" if given else "none in the settings")


def _is_weak(secret: str) -> bool:
    return not secret.startswith("sha256:") and (len(secret) < SHORTEST_KEY or len(set(secret)) < 6)


def _certificate(settings: Settings, now: datetime) -> Iterator[Finding]:
    if not settings.tls.cert:
        return
    ends = certificate_end(settings.tls.cert)
    if ends is None:
        yield warn("certificate", f"the end of {settings.tls.cert} cannot be read", "look at it: openssl x509 -enddate")
    else:
        yield until_end(settings.tls.cert, ends, now)


def until_end(name: str, ends: datetime, now: datetime) -> Finding:
    """How long a certificate holds."""
    days = (ends - now).days
    if ends <= now:
        return fail(
            "certificate", f"{name} ended {ends:%Y-%m-%d}", "renew it, then restart: certificates are read at start"
        )
    if days < RENEW_DAYS:
        return warn("certificate", f"{name} ends in {days} days ({ends:%Y-%m-%d})", "renew it")
    return ok("certificate", f"{name} holds {days} days more")
