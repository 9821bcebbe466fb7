"""Detection of damaged checkpoints by a CRC-32 of every file, kept beside it.

A single file is the ZIP archive that torch writes; its seal, a CRC-32 of all its other bytes, is the archive's comment,
which every reader skips. A sharded checkpoint is a folder whose complete.json has the size and the CRC-32 of each file,
and one of itself. A CRC-32 finds every flipped bit and every damaged stretch of up to four bytes, and misses one in
four thousand million of other damages; one core computes it at 2 to 4 GB/s.

Earlier versions wrote no seals. Of their files the CRC-32 that the archive has of each record is checked, so a flip
in the archive's own bookkeeping that changes nothing that is read stays unnoticed.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..textfiles import MEGABYTE, open_regular, read_bytes

COMPLETE = "complete.json"  # in a sharded checkpoint's folder
_END, _NO_COMMENT = b"PK\x05\x06", b"\x00\x00"  # of an archive: how its last 22 bytes begin and end
_END_SIZE = 22
_SEAL = "firered_lit crc32 {:08x}"
_SEAL_SIZE = len(_SEAL.format(0))
_PIECE = 1 << 24
_MANIFEST = {"processes", "files", "crc32", "own"}
_MANIFEST_BEFORE = {"processes", "files"}


class SealedFile:
    """A file for `torch.save`, which writes in order, that sums what is written and remembers why a write failed.

    `torch.save` itself reports only that it did.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.crc = 0
        self.end = b""
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.crc = zlib.crc32(data, self.crc)
        self.end = (self.end + bytes(data[-_END_SIZE:]))[-_END_SIZE:]
        return written

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        """Add the sum of all bytes as the archive's comment."""
        if not (self.end.startswith(_END) and self.end.endswith(_NO_COMMENT)):
            return
        self.file.seek(-len(_NO_COMMENT), os.SEEK_END)
        self.file.write(_SEAL_SIZE.to_bytes(2, "little") + _SEAL.format(self.crc).encode())


def is_archive(path: Path) -> bool:
    """Return whether a file looks like a whole archive, by a few bytes at its end."""
    try:
        with open_regular(path) as file:
            return zipfile.is_zipfile(file)
    except (zipfile.BadZipFile, ValueError, OSError):  # its end is there, and says what cannot be
        return False


def damage_of_file(path: Path) -> str | None:
    """Read an archive whole and return what is wrong with it; None when its bytes are those that were written."""
    size = path.stat().st_size
    with open_regular(path) as file:
        file.seek(max(0, size - _END_SIZE - _SEAL_SIZE))
        tail = file.read()
        sealed = tail.startswith(_END) and tail[_END_SIZE - 2 : _END_SIZE] == _SEAL_SIZE.to_bytes(2, "little")
        if sealed:
            file.seek(0)
            crc = _crc_of(file, size - _SEAL_SIZE - 2)
            crc = zlib.crc32(_NO_COMMENT, crc)
            return None if tail[_END_SIZE:] == _SEAL.format(crc).encode() else "its checksum is wrong"
    if tail[-_END_SIZE:].startswith(_END) and tail.endswith(_NO_COMMENT):
        return damage_of_records(path)
    return "not a checkpoint file, or cut short"


def damage_of_records(archive: Path | IO[bytes]) -> str | None:
    """Read every record of an archive and return the first that is not what its CRC-32 says; None when all are."""
    try:
        with zipfile.ZipFile(archive) as opened:
            wrong = opened.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        return f"its records cannot be read: {error}"
    return None if wrong is None else f"the checksum of its record {wrong} is wrong"


def manifest(folder: Path, processes: int, sums: Mapping[str, int]) -> str:
    """Return what complete.json says of a folder's files.

    Args:
        folder: holds the files.
        processes: that have written them.
        sums: the CRC-32 of each.
    """
    sizes = {name: (folder / name).stat().st_size for name in sorted(sums)}
    content = {"processes": processes, "files": sizes, "crc32": dict(sorted(sums.items()))}
    return _text(content | {"own": _crc_of_content(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read complete.json. Of earlier versions it has no checksums.

    Raises:
        ValueError: it is missing, or is not what was written.
    """
    try:
        text = read_bytes(folder / COMPLETE, 64 * MEGABYTE).decode()
        content = json.loads(text)
        names = set(content)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"no {COMPLETE}: not a checkpoint's folder, or half copied") from error
    if names == _MANIFEST_BEFORE and isinstance(content["files"], dict):
        return content
    own = content.pop("own", None) if names == _MANIFEST else None
    if own != _crc_of_content(content) or text != _text(content | {"own": own}):
        raise ValueError(f"{COMPLETE} is damaged")
    return content


def crc_of(path: Path) -> int:
    """Return the CRC-32 of a file."""
    with open_regular(path) as file:
        return _crc_of(file, path.stat().st_size)


def damage_of_slice(file: IO[bytes], begin: int, length: int) -> str | None:
    """Return what is wrong with an archive that lies inside a file; None when nothing is."""
    file.seek(begin)
    return damage_of_records(io.BytesIO(file.read(length)))


def _crc_of(file: IO[bytes], length: int) -> int:
    """Sum the next `length` bytes of a file."""
    crc = 0
    while length > 0:
        piece = file.read(min(_PIECE, length))
        if not piece:
            break
        crc = zlib.crc32(piece, crc)
        length -= len(piece)
    return crc


def _crc_of_content(content: Mapping[str, Any]) -> int:
    return zlib.crc32(_text(content).encode())


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
