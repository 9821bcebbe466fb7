"""Samples of chunks by parts: of each, only the bytes that a visit shows are read, from a folder or from a store.

A chunk of LitData holds a uint32 count n, n + 1 uint32 offsets, and the samples. A sample is the uint32 sizes of its
leaves, and the leaves: `id` and `meta` first, then `tensors`, `images` and `orders` (`samples.pack`).
"""

import os
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from .listing import Listing
from .remote import patiently

LEAVES = ("id", "meta", "tensors", "images", "orders")
HEAD = 1 << 14  # bytes read to begin with: sizes, id and, as a rule, meta
TABLES = 4096  # chunks whose samples' starts are remembered


class FileStore(Protocol):
    """Protocol of a place with files: a folder or a store."""

    def part(self, name: str, begin: int, end: int) -> bytes:
        """Return bytes begin to end - 1 of a file. Raises OSError."""
        ...


class Folder:
    """Files on disk; the last one stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = ""
        self.file: IO[bytes] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.path,)

    def part(self, name: str, begin: int, end: int) -> bytes:
        """Return bytes begin to end - 1 of a file. Raises OSError."""
        file = self._open(name)
        try:
            return os.pread(file.fileno(), end - begin, begin)
        except OSError:
            self.name = ""  # another try opens it again
            raise

    def _open(self, name: str) -> IO[bytes]:
        """Return a file that is open for reading; another one that was open is closed."""
        if self.file is not None:
            if name == self.name:
                return self.file
            self.file.close()
            self.file = None
            self.name = ""
        self.file = (self.path / name).open("rb", buffering=0)
        self.name = name
        return self.file


class Ranges:
    """The samples of chunks, read by parts.

    Args:
        files: The place of the chunks.
        listing: Their list.
        prefix: Beginning of their names there.

    Attributes:
        fetched: Bytes that were read.
    """

    def __init__(self, files: FileStore, listing: Listing, prefix: str = "") -> None:
        self.files = files
        self.listing = listing
        self.prefix = prefix
        self.fetched = 0
        self.tables: dict[int, np.ndarray] = {}

    def item(self, number: int, place: int) -> dict[str, Any]:
        """Return the leaves of the sample at a place of a chunk; those after `meta` are read when they are looked at.

        Raises:
            ValueError: The chunk is damaged.
            OSError: It cannot be read.
        """
        begin, end = (int(offset) for offset in self._table(number)[place : place + 2])
        if not 0 < begin < end <= self.listing.bytes(number):
            raise ValueError("it does not lie in its chunk")

        # The sizes of the leaves, and the starts within the sample.
        head = self.fetch(number, begin, min(end, begin + HEAD))
        sizes = np.frombuffer(head[: 4 * len(LEAVES)], "<u4").astype(np.int64)
        starts = 4 * len(LEAVES) + np.concatenate([[0], np.cumsum(sizes)])
        if begin + starts[-1] != end:
            raise ValueError("it is not as long as its parts")

        # The texts now, the others later.
        known = int(starts[2])
        if known > len(head):
            head += self.fetch(number, begin + len(head), begin + known)
        leaves: dict[str, Any] = {}
        for i, name in enumerate(LEAVES):
            if i < 2:
                leaves[name] = head[starts[i] : starts[i + 1]].decode()
            else:
                leaves[name] = Leaf(self, number, begin + int(starts[i]), int(sizes[i]))
        return leaves

    def _table(self, number: int) -> np.ndarray:
        """Return the start of each sample of a chunk, and the end of the last."""
        if number not in self.tables:
            if len(self.tables) >= TABLES:
                self.tables.clear()
            count = self.listing.count(number)
            self.tables[number] = np.frombuffer(self.fetch(number, 4, 4 * (count + 2)), "<u4")
        return self.tables[number]

    def fetch(self, number: int, begin: int, end: int) -> bytes:
        """Return bytes begin to end - 1 of a chunk.

        Raises:
            OSError: They cannot be read.
            ValueError: The chunk ends before them.
        """
        name = f"{self.prefix}{self.listing.name(number)}"
        content = patiently(lambda: self.files.part(name, begin, end))
        self.fetched += len(content)
        if len(content) != end - begin:
            raise ValueError(f"the chunk ends {end - begin - len(content)} bytes too early")
        return content


class Leaf:
    """Bytes that are read when they are looked at."""

    def __init__(self, ranges: Ranges, number: int, begin: int, size: int) -> None:
        self.ranges = ranges
        self.number = number
        self.begin = begin
        self.size = size

    def __bytes__(self) -> bytes:
        return self[: self.size]

    def tobytes(self) -> bytes:
        return bytes(self)

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self.size)
        if end <= first:
            return b""
        return self.ranges.fetch(self.number, self.begin + first, self.begin + end)
