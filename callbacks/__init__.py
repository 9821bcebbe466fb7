"""What a run can do without, but would be blinder or slower: checkpoints, progress, grids, rewards."""
