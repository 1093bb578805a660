"""CPU time, delay and memory of fleetproxy as ratios to nginx, measured in one run (bench/README.md)."""
