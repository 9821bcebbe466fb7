"""A request and the pictures that models made for it: what crosses from data to preference mining."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..batch import EditBatch


@dataclass(frozen=True)
class ShownCandidate:
    """A candidate with its pixels (1, 3, H, W), and its request as a batch of one."""

    model: str
    expert: bool
    image: str  # its file
    pixels: Tensor
    sample: EditBatch


@dataclass(frozen=True)
class MiningRequest:
    """A request and what was made for it. line: what is known of it; its `source_image` are paths to open, or URLs."""

    line: dict[str, Any]
    shown: tuple[ShownCandidate, ...]


def relative_to(folder: Path, path: str) -> str:
    """Return a picture's path relative to a folder; a URL as it is."""
    if "://" in path:
        return path
    return os.path.relpath(path, folder)
