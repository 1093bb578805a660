"""Every route of the operational half of control, for the app to mount."""

from __future__ import annotations

from litestar.types import ControllerRouterHandler

from fleetproxy.control.api import auth, events, jobs, models, plugins, servers_admin, settings, users
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS

HANDLERS: list[ControllerRouterHandler] = [
    *auth.handlers,
    *users.handlers,
    *events.handlers,
    *jobs.handlers,
    *models.handlers,
    *plugins.handlers,
    *servers_admin.handlers,
    *settings.handlers,
]

__all__ = ["EXCEPTION_HANDLERS", "HANDLERS"]
