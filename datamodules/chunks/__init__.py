"""Encoded samples in chunks, on a disk or in a store."""
