"""A local page to try a model: drop photos, write an instruction, see its checkpoints side by side."""
