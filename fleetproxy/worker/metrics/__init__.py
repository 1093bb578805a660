"""`fleetproxy worker metrics`: what a server's machine is doing, for the fleet's dashboard and for Prometheus."""
