"""Every route of the operational half of control, for the app to mount."""

from __future__ import annotations

from litestar.types import ControllerRouterHandler

from fleetproxy.control.api import auth, users
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS

HANDLERS: list[ControllerRouterHandler] = [
    *auth.handlers,
    *users.handlers,
]

__all__ = ["EXCEPTION_HANDLERS", "HANDLERS"]
