"""Benchmarks: a user's copies read as items, and what their judges are asked, as the official scripts ask it."""
