"""Annotators of the corpus engine that need a model: vectors, and the area of text."""
