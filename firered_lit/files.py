"""Durable writes: a file or a folder stands under its name when all of it is on the disk, or not at all.

Whatever is written here is made beside its place under the name `.NAME.NUMBER.part`, forced to the disk and renamed in
one step. A process that is killed leaves such a part behind, which nothing reads. Files and folders have the mode that
the process's umask gives, whatever the library that wrote them chose.
"""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, overload

SUFFIX = ".part"
_NUMBERS = itertools.count()


@overload
def replacing(path: Path | str, mode: Literal["w"] = "w") -> contextlib.AbstractContextManager[IO[str]]: ...


@overload
def replacing(path: Path | str, mode: Literal["wb"]) -> contextlib.AbstractContextManager[IO[bytes]]: ...


@contextlib.contextmanager
def replacing(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when the block ends without an error.

    Until then, and after an error, what was there stays as it was. Folders above it are made. Several processes may
    write the same path: the last one to finish counts, and what it wrote is whole.

    Args:
        path: the file.
        mode: "w" for UTF-8 text, in which half of a surrogate pair is escaped as in JSON; "wb" for bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_name(path)
    try:
        encoding = None if "b" in mode else "utf-8"
        errors = None if "b" in mode else "backslashreplace"
        with staging.open(mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put_in_place(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Put `text` in the place of a file."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path | str, content: Any, indent: int | None = 2) -> None:
    """Put `content` as JSON in the place of a file."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def appearing(folder: Path | str) -> Iterator[Path]:
    """Make an empty folder that stands as `folder` when the block ends without an error.

    Folders above it are made. After an error nothing is left.

    Args:
        folder: absent, or empty.

    Raises:
        OSError: `folder` holds something, as when another process was faster.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=SUFFIX, dir=folder.parent))
    try:
        yield staging
        settle(staging)
        put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def settle(folder: Path) -> None:
    """Give a folder and all in it the umask's mode, and force all of it to the disk."""
    probe = folder / f".mode{SUFFIX}"
    probe.mkdir()
    mode = probe.stat().st_mode & 0o777
    probe.rmdir()
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if file.is_symlink():
                continue
            _set_mode(file, mode & 0o666)
            sync(file)
        _set_mode(Path(place), mode)
        sync(Path(place))


def put_in_place(staging: Path, path: Path) -> None:
    """Rename what is whole and on the disk to `path`, and force the new name to the disk too."""
    os.replace(staging, path)
    sync(path.parent)


def staging_name(path: Path) -> Path:
    """Return a name beside `path` that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_NUMBERS)}{SUFFIX}")


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _set_mode(path: Path, mode: int) -> None:
    """Change a mode where it differs and the file system lets it be changed."""
    if path.stat().st_mode & 0o777 != mode:
        with contextlib.suppress(PermissionError):
            path.chmod(mode)
