"""The list of chunks, as a table that is mapped: a process's memory does not grow with the data."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firered_lit.errors import UserError
from firered_lit.files import replacing

INDEX = "index.json"  # LitData's
TABLE = "table.npy"  # (5, chunks) int64: part, number in the part, samples, bytes, and samples up to its end
NAMED = re.compile(r"part-(\d+)-(\d+)\.bin")


class Listing:
    """The chunks of a folder, by number.

    Args:
        folder: Folder with chunks and their list.

    Raises:
        UserError: The folder has neither a table nor an index.json, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] | None = None  # of chunks that are called otherwise than `prepare` does
        try:
            self.columns = np.load(folder / TABLE, "r") if (folder / TABLE).exists() else self._read()
            if self.columns.shape[0] != 5 or self.columns.dtype != np.int64:
                raise ValueError("not a table of chunks")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as problem:
            name = TABLE if (folder / TABLE).exists() else INDEX
            raise UserError(f"{folder / name}: cannot be read ({problem}); run prepare again") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Listing, (self.folder,)  # a worker maps it again, rather than being sent it

    def _read(self) -> np.ndarray:
        """Return the table of a folder that has LitData's own list alone."""
        chunks = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["chunks"]
        self.names = [chunk["filename"] for chunk in chunks]
        return _table(chunks, [(0, number) for number in range(len(chunks))])

    def __len__(self) -> int:
        return self.columns.shape[1]

    @property
    def samples(self) -> int:
        """Number of samples in all chunks."""
        if len(self) == 0:
            return 0
        return int(self.columns[4, -1])

    @property
    def sizes(self) -> list[int]:
        """Samples of every chunk."""
        return self.columns[2].tolist()

    def name(self, number: int) -> str:
        """Return a chunk's file name."""
        if self.names is not None:
            return self.names[number]
        return f"part-{int(self.columns[0, number]):05d}-{int(self.columns[1, number])}.bin"

    def count(self, number: int) -> int:
        """Return the number of samples of a chunk."""
        return int(self.columns[2, number])

    def bytes(self, number: int) -> int:
        """Return the size of a chunk."""
        return int(self.columns[3, number])

    def find(self, position: int) -> tuple[int, int]:
        """Return (chunk, place in it) of a sample by its number."""
        if not 0 <= position < self.samples:
            raise IndexError(f"{self.folder}: no sample {position} of {self.samples}")
        number = int(np.searchsorted(self.columns[4], position, "right"))
        return number, position - int(self.columns[4, number]) + self.count(number)


def write_listing(folder: Path, chunks: Sequence[Mapping[str, Any]]) -> None:
    """Write the table of the chunks that LitData describes, all of them named as `prepare` names them."""
    numbers = [_numbers(chunk["filename"]) for chunk in chunks]
    with replacing(folder / TABLE, "wb") as file:
        np.save(file, _table(chunks, numbers))


def _numbers(name: str) -> tuple[int, int]:
    """Return the part of a chunk, and its number in the part, from its name."""
    match = NAMED.fullmatch(name)
    if match is None:
        raise ValueError(f"{name}: not the name of a chunk")
    return int(match[1]), int(match[2])


def _table(chunks: Sequence[Mapping[str, Any]], numbers: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the table of chunks, see `TABLE`."""
    rows = []
    for (part, number), chunk in zip(numbers, chunks, strict=True):
        rows.append((part, number, chunk["chunk_size"], chunk["chunk_bytes"], 0))
    columns = np.array(rows, np.int64).reshape(-1, 5).T.copy()
    columns[4] = np.cumsum(columns[2])
    return columns
