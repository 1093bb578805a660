"""Making a configuration of ours out of those of the programs people come from."""
