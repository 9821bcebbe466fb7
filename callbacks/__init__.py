"""Additions to a run, each of which a recipe may leave out: checkpoints, progress, grids, rewards."""
