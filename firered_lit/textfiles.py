"""Text that users write, read with care: regular files alone, of bounded size.

A FIFO would block for ever, a device as /dev/zero would fill the memory. Whatever is wrong with a path or with what
lies there is an OSError, whose `strerror` says it in a few words.
"""

import errno
import json
import os
import stat
from io import BufferedReader
from typing import Any

from firered_lit.errors import UserError

MEGABYTE = 1 << 20


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file to read its bytes.

    Raises:
        OSError: it cannot be opened, it is no regular file, or its name is none that a file can have.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except ValueError:  # a NUL, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have this name", ascii(os.fspath(path))) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return a regular file's content.

    Args:
        path: the file.
        limit: bytes that it may hold.

    Raises:
        OSError: as `open_regular`, and for a larger file.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit / MEGABYTE:g} MB", os.fspath(path))
    return content


def read_text(path: str | os.PathLike[str], limit: int = 64 * MEGABYTE, encoding: str = "utf-8") -> str:
    """Return a regular file's text, its line ends as `\\n`.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is not text in `encoding`.
    """
    text = read_bytes(path, limit).decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: str | os.PathLike[str], *needed: str) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: the file.
        needed: entries without which it is of no use.

    Raises:
        UserError: there is no such file, it is no regular one, or it holds something else.
    """
    try:
        content = json.loads(read_text(path))
    except OSError as problem:
        raise UserError(f"{os.fspath(path)}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{os.fspath(path)}: not valid JSON ({problem})") from None
    if not isinstance(content, dict):
        raise UserError(f"{os.fspath(path)}: expected a JSON object, not a {type(content).__name__}")
    for name in needed:
        if name not in content:
            raise UserError(f"{os.fspath(path)}: damaged: the entry {name!r} is missing")
    return content
