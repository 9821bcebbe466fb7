"""Grids of pictures that a run draws."""
