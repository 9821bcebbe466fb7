"""Training over several processes: sharding, and an optimizer whose state can be cut anew."""
