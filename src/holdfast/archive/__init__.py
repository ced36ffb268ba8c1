"""Trees to bytes and back, on this machine, without the network."""
