"""A log of requests and their answers, a line of JSON each: all the state that asking has."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from firered_lit.errors import UserError
from firered_lit.textfiles import open_regular

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]


def append(path: Path, row: Row) -> None:
    """Add a row as a line of its own. Threads and processes may do so at once; a line is written whole.

    A line that a killed process left torn is closed first, so that nothing is lost but that line.
    """
    text = json.dumps(row, ensure_ascii=False)
    line = text.encode("utf-8", "backslashreplace") + b"\n"  # half of a surrogate pair, escaped as JSON does
    with path.open("ab+") as file:
        with contextlib.suppress(OSError):  # a file system without locks: small lines are whole all the same
            fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a log. Lines that are no JSON object, as a torn one, are left out; one warning counts them."""
    for row, _ in _placed(path):
        yield row


def _placed(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows, and where their lines begin."""
    torn = 0
    offset = 0
    with open_regular(path) as file:
        for line in file:
            row = _row(line)
            if row is not None:
                yield row, offset
            elif line.strip():
                torn += 1
            offset += len(line)
    if torn:
        logger.warning("%s: %d lines are no JSON objects and are left out", path, torn)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class Log:
    """Rows by key, found again without holding them: 16 bytes a row.

    Args:
        path: the file; it and its folder are made with the first row.
        key: the columns that tell rows apart; "facts.item" is the entry "item" of column "facts". Of equal ones the
            last counts.
        counts: which rows are found; all of them without it.

    Raises:
        UserError: the file's name does not end in .jsonl. A recipe names the file and a server the words in it, which
            must not become part of a file that is run.
    """

    def __init__(self, path: str | Path, key: tuple[str, ...], counts: Callable[[Row], bool] | None = None) -> None:
        if Path(path).suffix != ".jsonl":
            raise UserError(f"log {path}: a file of answers is named NAME.jsonl")
        self.path = Path(path)
        self.key = key
        self.counts = counts
        self._lock = threading.Lock()
        self._index: _Index | None = None

    def add(self, row: Row) -> None:
        """Append a row. From here on it survives the process.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append(self.path, row)
        except OSError as problem:
            raise UserError(f"log {self.path}: cannot be written: {problem.strerror}") from problem

    def find(self, *values: object) -> dict[str, Any] | None:
        """Return the row of these values of the key that was there when this object first looked; None without one."""
        with self._lock:
            if self._index is None:
                self._index = self._read()
        for offset in self._index.offsets(_hash(values)):
            row = self._row_at(offset)
            if row is not None and self._values(row) == values:
                return row
        return None

    def _row_at(self, offset: int) -> dict[str, Any] | None:
        with self.path.open("rb") as file:
            file.seek(offset)
            return _row(file.readline())

    def _values(self, row: Row) -> tuple[Any, ...]:
        return tuple(_column(row, name) for name in self.key)

    def _read(self) -> "_Index":
        index = _Index()
        if not self.path.exists():
            return index
        try:
            for row, offset in _placed(self.path):
                if self.counts is None or self.counts(row):
                    index.add(_hash(self._values(row)), offset)
        except OSError as problem:
            raise UserError(f"log {self.path}: cannot be read: {problem.strerror}") from problem
        index.sort()
        return index


class _Index:
    """The places where lines begin, by a 64-bit hash of their key."""

    def __init__(self) -> None:
        self._hashes: Any = array("Q")
        self._offsets: Any = array("Q")

    def add(self, key: int, offset: int) -> None:
        """Add a line, before `sort`."""
        self._hashes.append(key)
        self._offsets.append(offset)

    def sort(self) -> None:
        """Make ready to be searched."""
        order = np.argsort(np.asarray(self._hashes), kind="stable")
        self._hashes = np.asarray(self._hashes)[order]
        self._offsets = np.asarray(self._offsets)[order]

    def offsets(self, key: int) -> list[int]:
        """Return where the lines of a key begin, the last one first."""
        if len(self._hashes) == 0:
            return []
        first, last = (int(np.searchsorted(self._hashes, np.uint64(key), side)) for side in ("left", "right"))
        return [int(offset) for offset in self._offsets[first:last][::-1]]


def _hash(values: tuple[Any, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "little")


def _column(row: Row, name: str) -> Any:
    """Return a row's column, or an entry of it."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
