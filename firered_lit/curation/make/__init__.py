"""Edits made from pictures alone, without a model: each with its exact mask, and words for what happens."""
