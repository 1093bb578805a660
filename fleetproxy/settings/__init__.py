"""Every setting of fleetproxy: what there is (`model`), where it comes from (`load`), what it must be (`check`)."""

from __future__ import annotations

from fleetproxy.settings.model import (
    Analytics,
    Auth,
    Cors,
    Dashboard,
    Discovery,
    Hub,
    Key,
    Limits,
    Log,
    Metrics,
    Poll,
    Queue,
    Routing,
    Section,
    Server,
    Settings,
    Telegram,
    Timeouts,
    Tls,
    Wan,
)

__all__ = [
    "Analytics",
    "Auth",
    "Cors",
    "Dashboard",
    "Discovery",
    "Hub",
    "Key",
    "Limits",
    "Log",
    "Metrics",
    "Poll",
    "Queue",
    "Routing",
    "Section",
    "Server",
    "Settings",
    "Telegram",
    "Timeouts",
    "Tls",
    "Wan",
]
