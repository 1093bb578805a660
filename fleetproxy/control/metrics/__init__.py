"""`/metrics`: one exporter for all processes of this fleetproxy."""

from __future__ import annotations

from fleetproxy.control.metrics.exporter import Metrics

__all__ = ["Metrics"]
