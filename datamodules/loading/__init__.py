"""Prepared samples become typed batches."""
