"""Rewards as callbacks: each scores edits in validation, reinforcement and mining."""
