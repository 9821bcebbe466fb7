"""Samples of chunks by parts: of each, only the bytes that a visit shows are read, from a folder or from a store.

A chunk of LitData's holds a uint32 count n, n + 1 uint32 offsets, and the samples. A sample is the uint32 sizes of its
leaves, and the leaves: `id` and `meta` first, then `tensors`, `images` and `orders` (`chunks.pack`).
"""

import os
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from .listing import Listing
from .remote import patiently

LEAVES = ("id", "meta", "tensors", "images", "orders")
HEAD = 1 << 14  # bytes read to begin with: sizes, id and, as a rule, meta
TABLES = 4096  # chunks of which is remembered where their samples begin


class Files(Protocol):
    """What chunks lie in."""

    def part(self, name: str, begin: int, end: int) -> bytes:
        """Bytes begin to end - 1 of a file. OSError when they cannot be had."""
        ...


class Folder:
    """Files on disk; the last one stays open."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.file = path, "", None

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.path,)

    def part(self, name: str, begin: int, end: int) -> bytes:
        """See `Files`."""
        file = self._open(name)
        try:
            return os.pread(file.fileno(), end - begin, begin)
        except OSError:
            self.name = ""  # another try opens it again
            raise

    def _open(self, name: str) -> IO[bytes]:
        if self.file is None or name != self.name:
            if self.file is not None:
                self.file.close()
            self.name, self.file = "", None
            self.file, self.name = (self.path / name).open("rb", buffering=0), name
        return self.file


class Ranges:
    """The samples of chunks. `fetched` counts bytes."""

    def __init__(self, files: Files, listing: Listing, prefix: str = "") -> None:
        self.files, self.listing, self.prefix, self.fetched = files, listing, prefix, 0
        self.tables: dict[int, np.ndarray] = {}

    def item(self, number: int, place: int) -> dict[str, Any]:
        """The leaves of the sample at a place of a chunk; those after `meta` are read when they are asked for."""
        begin, end = map(int, self._table(number)[place : place + 2])
        if not 0 < begin < end <= self.listing.bytes(number):
            raise ValueError("it does not lie in its chunk")
        head = self.fetch(number, begin, min(end, begin + HEAD))
        sizes = np.frombuffer(head[: 4 * len(LEAVES)], "<u4").astype(np.int64)
        starts = 4 * len(LEAVES) + np.concatenate([[0], np.cumsum(sizes)])
        if begin + starts[-1] != end:
            raise ValueError("it is not as long as its parts")
        known = int(starts[2])
        if known > len(head):
            head += self.fetch(number, begin + len(head), begin + known)
        texts = {name: head[starts[i] : starts[i + 1]].decode() for i, name in enumerate(LEAVES[:2])}
        places = {name: (begin + int(starts[i]), int(sizes[i])) for i, name in enumerate(LEAVES) if i > 1}
        return texts | {name: Leaf(self, number, *place) for name, place in places.items()}

    def _table(self, number: int) -> np.ndarray:
        """Where each sample of a chunk begins, and the last ends."""
        if number not in self.tables:
            if len(self.tables) >= TABLES:
                self.tables.clear()
            count = self.listing.count(number)
            self.tables[number] = np.frombuffer(self.fetch(number, 4, 4 * (count + 2)), "<u4")
        return self.tables[number]

    def fetch(self, number: int, begin: int, end: int) -> bytes:
        """Bytes of a chunk. OSError when they cannot be had, ValueError when there are not so many."""
        name = f"{self.prefix}{self.listing.name(number)}"
        found = patiently(lambda: self.files.part(name, begin, end))
        self.fetched += len(found)
        if len(found) != end - begin:
            raise ValueError(f"the chunk ends {end - begin - len(found)} bytes too early")
        return found


class Leaf:
    """Bytes that are read when they are looked at."""

    def __init__(self, ranges: Ranges, number: int, begin: int, size: int) -> None:
        self.ranges, self.number, self.begin, self.size = ranges, number, begin, size

    def __bytes__(self) -> bytes:
        return self[: self.size]

    def tobytes(self) -> bytes:
        return bytes(self)

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self.size)
        return self.ranges.fetch(self.number, self.begin + first, self.begin + end) if end > first else b""
