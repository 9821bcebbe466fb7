"""Fingerprints of models: hashes of their files and settings."""

import hashlib
import json
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError

WHOLE = 1 << 26  # bytes up to which every byte of a file counts
WINDOW = 1 << 16  # bytes of one sample of a larger file
WINDOWS = 64


def of_settings(**settings: Any) -> str:
    """Return a hash of plain settings."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]


def of_file(path: Path) -> str:
    """Return a hash of a file. A large one is sampled: its size, 64 windows over it and its end.

    Raises:
        UserError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        digest.update(str(size).encode())
        step = WINDOW if size <= WHOLE else size // WINDOWS
        with path.open("rb") as file:
            for offset in range(0, size, step):
                file.seek(offset)
                digest.update(file.read(WINDOW))
            file.seek(max(0, size - WINDOW))
            digest.update(file.read(WINDOW))
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    return digest.hexdigest()[:24]


def of_folder(folder: Path, endings: tuple[str, ...] = ()) -> str:
    """Return a hash of the names, sizes and times of a folder's files, without reading them.

    Args:
        folder: The folder.
        endings: Only files that end so; all when empty.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (not endings or path.suffix.lower() in endings):
            facts = path.stat()
            digest.update(f"{path.relative_to(folder)}\n{facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]
