"""fleetproxy: one address in front of a fleet of inference servers."""

__version__ = "0.1.0"
