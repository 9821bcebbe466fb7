"""Models that draw: which weights, where their parts lie, which prompts."""
