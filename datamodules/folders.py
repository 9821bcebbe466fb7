"""The files of a user's folder that count: those not hidden, by ending in upper or lower case, each name once.

Hidden is what begins with a dot: the copies that notebooks keep (`.ipynb_checkpoints`), what macOS writes beside files
on other disks (`._a.png`), and what is still being written. The folder of a `prepare` is no data either.
"""

import os
from collections.abc import Collection
from pathlib import Path

from .refusals import Refuse

PREPARED = "prepare.json"  # what `prepare` notes in its folder before anything else


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder and is not hidden, by name."""
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def places(folder: Path) -> list[Path]:
    """Return the folders in a folder that may hold data, by name: not hidden ones, and none that `prepare` fills."""
    return [path for path in visible(folder) if path.is_dir() and not (path / PREPARED).exists()]


def by_stem(folder: Path, endings: Collection[str]) -> dict[str, list[str]]:
    """Return the names in a folder that have one of the endings, in any case, by what stands before the ending."""
    found: dict[str, list[str]] = {}
    for path in visible(folder):
        if path.suffix.lower() in endings:
            found.setdefault(path.stem, []).append(path.name)
    return found


def only(names: list[str], folder: Path, field: str) -> str:
    """Return the one name. Raises Refuse when there are twins: which of them counts would be a guess."""
    if len(names) > 1:
        twins = " and ".join(names)
        raise Refuse(field, "several files", f"{twins} in {folder} differ in their ending alone; keep one of them")
    return names[0]
