"""A log of requests and their answers, a line of JSON each: all the state that asking has."""

import contextlib
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.textfiles import open_regular

logger = logging.getLogger(__name__)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row as a line of its own. Threads and processes may do so at once; a line is written whole.

    A line that a killed process left torn is closed first, so that nothing is lost but that line.
    """
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
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
    """Rows by key, found again without holding them: some bytes a row.

    Args:
        path: the file; it and its folder are made with the first row.
        key: the columns that tell rows apart. Of equal ones the last counts.

    Raises:
        UserError: the file's name does not end in .jsonl. A recipe names the file and a server the words in it, which
            must not become part of a file that is run.
    """

    def __init__(self, path: str | Path, key: tuple[str, ...]) -> None:
        if Path(path).suffix != ".jsonl":
            raise UserError(f"log {path}: a file of answers is named NAME.jsonl")
        self.path = Path(path)
        self.key = key
        self._lock = threading.Lock()
        self._places: dict[tuple[Any, ...], int] | None = None

    def add(self, row: Mapping[str, Any]) -> None:
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
            if self._places is None:
                self._places = self._read()
            place = self._places.get(values)
        if place is None:
            return None
        with self.path.open("rb") as file:
            file.seek(place)
            return _row(file.readline())

    def _read(self) -> dict[tuple[Any, ...], int]:
        if not self.path.exists():
            return {}
        try:
            return {tuple(row.get(name) for name in self.key): place for row, place in _placed(self.path)}
        except OSError as problem:
            raise UserError(f"log {self.path}: cannot be read: {problem.strerror}") from problem
