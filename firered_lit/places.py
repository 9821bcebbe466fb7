"""Places that users name: what `~` stands for; where a command writes, made and tried before the work ends there."""

import os
import tempfile
from pathlib import Path

from firered_lit.errors import UserError


def user_path(name: str | os.PathLike[str]) -> Path:
    """Return a path with `~` as the user's home; the `~` of a user that nobody knows stays as it is."""
    return Path(os.path.expanduser(name))


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it.

    Raises:
        UserError: It cannot be made, or is no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder to write into: {error.strerror}") from None


def writable(folder: Path) -> None:
    """Make a folder, and see that files can be written there.

    Raises:
        UserError: It cannot be made, or nothing can be written in it.
    """
    make_folder(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
