"""References in prompts: which ones are named, and how a prompt follows when they are permuted or dropped."""
