"""Places that users name: what `~` stands for; where a command writes, made and tried before the work ends there."""

import os
import re
import tempfile
from pathlib import Path

from firered_lit.errors import UserError

# Of an object store, as it was named, and as a path that was made of it: s3://bucket/data, .../s3:/bucket/data.
_ADDRESS = re.compile(r"(?:^|/)([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")


def user_path(name: str | os.PathLike[str]) -> Path:
    """Return a path with `~` as the user's home; the `~` of a user that nobody knows stays as it is."""
    return Path(os.path.expanduser(name))


def on_this_machine(place: str | os.PathLike[str]) -> None:
    """Refuse an address in an object store where a file or a folder is needed.

    Raises:
        UserError: It is one.
    """
    found = _ADDRESS.search(os.fspath(place))
    if found is not None:
        address = f"{found[1]}://{os.fspath(place)[found.end() :]}"
        raise UserError(
            f"{address}: an address where a file or a folder of this machine is needed; mount the store, or copy what"
            " is in it (only data.root of a training reads s3://BUCKET/PREFIX itself)"
        )


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it.

    Raises:
        UserError: It cannot be made, or is no folder.
    """
    on_this_machine(folder)
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
