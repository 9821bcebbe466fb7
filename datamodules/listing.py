"""Which chunks there are, as a table that is mapped: what a process holds of it does not grow with the data."""

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
    """The chunks of a folder by number. UserError when it has no table, nor an index.json, or not whole ones."""

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
        """Of a folder without the table, as LitData writes it."""
        chunks = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["chunks"]
        self.names = [chunk["filename"] for chunk in chunks]
        return _table(chunks, [(0, number) for number in range(len(chunks))])

    def __len__(self) -> int:
        return self.columns.shape[1]

    @property
    def samples(self) -> int:
        """How many there are in all chunks."""
        return int(self.columns[4, -1]) if len(self) else 0

    @property
    def sizes(self) -> list[int]:
        """Samples of every chunk."""
        return self.columns[2].tolist()

    def name(self, number: int) -> str:
        if self.names is not None:
            return self.names[number]
        return f"part-{int(self.columns[0, number]):05d}-{int(self.columns[1, number])}.bin"

    def count(self, number: int) -> int:
        """Samples of a chunk."""
        return int(self.columns[2, number])

    def bytes(self, number: int) -> int:
        return int(self.columns[3, number])

    def find(self, position: int) -> tuple[int, int]:
        """(chunk, place in it) of a sample by its number."""
        if not 0 <= position < self.samples:
            raise IndexError(f"{self.folder}: no sample {position} of {self.samples}")
        number = int(np.searchsorted(self.columns[4], position, "right"))
        return number, position - int(self.columns[4, number]) + self.count(number)


def write_listing(folder: Path, chunks: Sequence[Mapping[str, Any]]) -> None:
    """Write the table of the chunks that LitData describes, all of them named as `prepare` names them."""
    places = [tuple(map(int, NAMED.fullmatch(chunk["filename"]).groups())) for chunk in chunks]  # type: ignore[union-attr]
    with replacing(folder / TABLE, "wb") as file:
        np.save(file, _table(chunks, places))


def _table(chunks: Sequence[Mapping[str, Any]], places: Sequence[tuple[int, ...]]) -> np.ndarray:
    described = [(*place, c["chunk_size"], c["chunk_bytes"], 0) for place, c in zip(places, chunks, strict=True)]
    columns = np.array(described, np.int64).reshape(-1, 5).T.copy()
    columns[4] = np.cumsum(columns[2])
    return columns
