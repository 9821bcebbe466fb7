"""Rows of any layout that `prepare` reads, as what an evaluation asks its models for."""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.rubric_rows import RubricRow
from firered_lit.places import user_path

from . import images
from .parquet import Embedded
from .records import Record, Refusal, rows

WINDOW = 64  # rows whose pictures, where they lie in the table itself, are held together


class EvaluationRows:
    """A table's edits: their source pictures and instructions. Targets are not looked at.

    Args:
        source: A table, or a folder with one folder per task, as `prepare` reads them.
        layout: Layout of the rows, when their columns fit several.
        held_out: Only the rows that say that they are held out.
    """

    def __init__(self, source: str, layout: str = "", held_out: bool = False) -> None:
        self.source = str(user_path(source))
        self.layout = layout
        self.held_out = held_out
        self._lock = threading.Lock()
        self._window: tuple[int, dict[str, list[bytes]]] = (-1, {})

    def rows(self) -> Sequence[RubricRow]:
        """Return all edits, in the order of the table.

        Raises:
            UserError: A row cannot be used, or there is none.
        """
        return [_row(record) for _, record in self._records.values()]

    def sources(self, name: str) -> list[bytes]:
        """Return the source pictures' files of the edit with an id."""
        number, record = self._records[name]
        if any(isinstance(reference, Embedded) for reference in record.references):
            return self._embedded(number, name)
        return _files(record)

    def fingerprint(self) -> str:
        """Return a hash of all edits."""
        digest = hashlib.sha256()
        for _, record in self._records.values():
            parts = (record.id, record.task, record.references, sorted(record.instructions.items()))
            digest.update(repr(parts).encode())
        return digest.hexdigest()

    @cached_property
    def _records(self) -> dict[str, tuple[int, Record]]:
        """Return id -> number of the row, and the edit in it."""
        found: dict[str, tuple[int, Record]] = {}
        refused: list[Refusal] = []
        count = 0
        for number, row in enumerate(self._read()):
            count += 1
            if isinstance(row, Refusal):
                refused.append(row)
                continue
            record = row[0]
            if not self.held_out or record.held_out:
                found[record.id] = (number, record)
        if refused:
            raise UserError(f"{len(refused)} of {count} rows cannot be evaluated, first {refused[0]}")
        if not found:
            kind = "held-out rows" if self.held_out else "rows"
            raise UserError(f"{self.source}: no {kind} to evaluate")
        return found

    def _read(self, first: int = 0, last: int = 0) -> Iterator[list[Record] | Refusal]:
        """Return the table's rows; pictures that lie in it only of the rows from `first` to before `last`."""

        def is_wanted(number: int) -> bool:
            return first <= number < last

        return rows(self.source, inverse=False, layout=self.layout, wanted=is_wanted)

    def _embedded(self, number: int, name: str) -> list[bytes]:
        """Return pictures that lie in the table itself. Those of the rows around are read with them."""
        start = number // WINDOW * WINDOW
        with self._lock:
            if self._window[0] != start:
                held: dict[str, list[bytes]] = {}
                for position, row in enumerate(self._read(start, start + WINDOW)):
                    if position >= start + WINDOW:
                        break
                    if position >= start and not isinstance(row, Refusal):
                        held[row[0].id] = _files(row[0])
                self._window = (start, held)
            return self._window[1][name]


def _row(record: Record) -> RubricRow:
    instructions = {}
    for language in ("en", "cn"):
        text = record.instructions.get(f"original/{language}")
        if text:
            instructions[language] = text
    return RubricRow(record.id, record.task, instructions, tuple(os.path.basename(name) for name in record.references))


def _files(record: Record) -> list[bytes]:
    try:
        return [images.read(name) for name in record.references]
    except images.BadImageError as problem:
        raise UserError(f"{record.where}: {problem}") from None
