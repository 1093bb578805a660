"""What a running fleetproxy cannot change: a reload keeps the old values of these and says so."""

from __future__ import annotations

import msgspec

from fleetproxy.settings.model import Settings

FIXED = (
    "host",
    "port",
    "processes",
    "data_dir",
    "runtime_dir",
    "tls",
    "metrics",
    "dashboard.listen",
    "hub",
    "limits.connections",
    "limits.poll_body_bytes",
    "asr.spool_bytes",
    "analytics",
    "plugins",
)
#: Left open in the configuration, these were chosen at start: no change.
_CHOSEN = ("port", "data_dir", "runtime_dir")


def keep_fixed(old: Settings, fresh: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The fresh settings with the old values of `FIXED`, and the names of those that would have changed."""
    kept: list[str] = []
    for name in FIXED:
        section, _, key = name.rpartition(".")
        was = getattr(old, section) if section else old
        now = getattr(fresh, section) if section else fresh
        if getattr(was, key) == getattr(now, key):
            continue
        if not (name in _CHOSEN and not getattr(now, key)):
            kept.append(name)
        now = msgspec.structs.replace(now, **{key: getattr(was, key)})
        fresh = msgspec.structs.replace(fresh, **{section: now}) if section else now
    return fresh, tuple(kept)
