"""What the settings say to the data plane: who may come in, what is bounded. Values in, values out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from fleetproxy.core.names import canonical
from fleetproxy.core.table import Access, Limits, Principal
from fleetproxy.settings import Settings
from fleetproxy.settings.servers import is_loopback

#: Characters of a key that are shown to tell it from others, of keys long enough to give them away.
PREFIX_CHARACTERS = 8
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")


def principals(settings: Settings, users: Mapping[bytes, Principal]) -> dict[bytes, Principal]:
    """SHA-256 of every key in force -> whom it stands for: keys of users, of the file, the static key, the admin key.

    Where two of them are the same key, the later of these wins; it stays an administrator's if either was.
    """
    found = {
        digest: msgspec.structs.replace(principal, models=_models(principal.models))
        for digest, principal in users.items()
    }
    for key in settings.keys:
        digest, prefix = _digest(key.key)
        found[digest] = Principal(
            name=key.name,
            key_prefix=prefix,
            max_in_flight=key.max_in_flight,
            requests_per_minute=key.requests_per_minute,
            models=_models(key.models),
        )
    auth = settings.auth
    if auth.api_key:
        digest, prefix = _digest(auth.api_key)
        found[digest] = Principal(name="api key", key_prefix=prefix)
    if auth.admin_key:
        digest, prefix = _digest(auth.admin_key)
        known = found.get(digest) or Principal(name="admin key", key_prefix=prefix)
        found[digest] = msgspec.structs.replace(known, admin=True)
    return found


def access(settings: Settings, machine: str) -> Access:
    """Who may do what on the public port. `machine` is this machine's own name."""
    auth, routing = settings.auth, settings.routing
    proxy_required = auth.proxy == "required" or (
        auth.proxy is None and not settings.open and not is_loopback(settings.host)
    )
    hosts = frozenset(host.lower() for host in settings.hosts)
    own = {machine.lower(), machine.lower().partition(".")[0]} - {""}
    families_required = proxy_required or auth.api_key is not None or bool(auth.api_http_roles)
    return Access(
        proxy_required=proxy_required,
        protect_writes=auth.protect_writes,
        families_required=families_required,
        transfer_required=families_required or bool(auth.client_key or settings.client_keys or auth.client_http_roles),
        client_http_roles=auth.client_http_roles,
        client_key_digest=hashlib.sha256(auth.client_key.encode()).digest() if auth.client_key else b"",
        client_keys=tuple((key.name, _digest(key.key)[0]) for key in settings.client_keys),
        pin_fallback=routing.pin_fallback,
        hide_backends=routing.hide_backends,
        hosts=frozenset() if "*" in hosts else hosts | own,
        origins=settings.cors.origins,
        trusted_proxies=auth.trusted_proxies,
        source_names=routing.source_names,
        api_http_roles=auth.api_http_roles,
        plugins=settings.plugins,
        passthrough=settings.passthrough,
        dashboard_on_public_port=settings.dashboard.on_public_port,
        metrics_on_public_port=settings.metrics.listen is None,
    )


def limits(settings: Settings) -> Limits:
    """Bounds of the data plane: every field of `Limits` that a section of the settings has under its own name."""
    routing, queue = settings.routing, settings.queue
    return Limits(
        **_shared(settings.limits),
        **_shared(settings.timeouts),
        retry_budget=routing.retry_budget,
        eject_failures=routing.eject_failures,
        eject_s=routing.eject_s,
        eject_max_s=routing.eject_max_s,
        min_num_ctx=routing.min_num_ctx,
        default_keep_alive=routing.default_keep_alive,
        queue_size=queue.size,
        queue_wait_s=queue.wait_s,
    )


def _shared(section: msgspec.Struct) -> dict[str, Any]:
    ours = Limits.__struct_fields__
    return {name: getattr(section, name) for name in section.__struct_fields__ if name in ours}


def _models(models: tuple[str, ...] | frozenset[str] | None) -> frozenset[str] | None:
    return None if models is None else frozenset(canonical(model) for model in models)


def _digest(key: str) -> tuple[bytes, str]:
    """The SHA-256 of a key, given as itself or as `sha256:<hex>`, and what of it may be shown."""
    hashed = _HASHED.fullmatch(key)
    if hashed:
        return bytes.fromhex(hashed[1]), ""
    return hashlib.sha256(key.encode()).digest(), key[:PREFIX_CHARACTERS] if len(key) >= 4 * PREFIX_CHARACTERS else ""
