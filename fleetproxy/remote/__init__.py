"""Speaking to a running fleetproxy by its address: what the command line's verbs are made of."""
