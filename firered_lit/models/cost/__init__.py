"""The cost of a training step before it is run: operations and memory."""
