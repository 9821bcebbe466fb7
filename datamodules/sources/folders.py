"""The files of a user's folder that count: those not hidden, by ending in upper or lower case, each name once.

Hidden names begin with a dot: copies that notebooks keep (`.ipynb_checkpoints`), files that macOS writes beside others
on foreign disks (`._a.png`), and files that are still being written. The folder of a `prepare` is no data either.
"""

import os
from collections.abc import Collection
from pathlib import Path

from .refusals import Refuse

PREPARED = "prepare.json"  # the file that `prepare` writes into its folder before anything else


def visible(folder: Path) -> list[Path]:
    """Return the files and folders in a folder that are not hidden, sorted by name."""
    names = sorted(os.listdir(folder))
    return [folder / name for name in names if not name.startswith(".")]


def places(folder: Path) -> list[Path]:
    """Return the folders in a folder that may hold data, sorted by name.

    Hidden folders and those that `prepare` fills are left out.
    """
    folders = []
    for path in visible(folder):
        if path.is_dir() and not (path / PREPARED).exists():
            folders.append(path)
    return folders


def by_stem(folder: Path, endings: Collection[str]) -> dict[str, list[str]]:
    """Return the names of a folder's files, grouped by their stem.

    Args:
        folder: The folder to list.
        endings: Endings, in lower case with their dot, of the files to take; they match in any case.
    """
    names: dict[str, list[str]] = {}
    for path in visible(folder):
        if path.suffix.lower() in endings:
            names.setdefault(path.stem, []).append(path.name)
    return names


def only(names: list[str], folder: Path, field: str) -> str:
    """Return the one name of a list.

    Raises:
        Refuse: There are twins; which of them counts would be a guess.
    """
    if len(names) > 1:
        twins = " and ".join(names)
        raise Refuse(field, "several files", f"{twins} in {folder} differ in their ending alone; keep one of them")
    return names[0]
