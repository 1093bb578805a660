"""`fleetproxy restore`"""

from __future__ import annotations

from fleetproxy.cli.backup import run_restore as run

__all__ = ["run"]
