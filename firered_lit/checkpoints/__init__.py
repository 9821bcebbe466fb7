"""Checkpoints: written whole, in one file or sharded, checked, resumed, averaged."""
