"""Folders that are built on first use, and appear whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from ..files import appearing


def cache_folder() -> Path:
    """Return the folder of things built on first use: $FIRERED_LIT_CACHE, else ~/.cache/firered_lit."""
    return Path(os.environ.get("FIRERED_LIT_CACHE") or Path.home() / ".cache" / "firered_lit")


def appear(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, made by `fill(empty folder)` and moved to its place when it is whole. Several may start at once."""
    try:
        with appearing(folder) as staging:
            fill(staging)
    except OSError:  # somebody else was faster, or the folder holds an older one
        if not (folder / "model_index.json").exists():
            raise
    return folder
