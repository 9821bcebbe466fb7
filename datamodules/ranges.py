"""Samples of chunks in object storage by parts: of each only the bytes that a visit shows are fetched, none are kept.

A chunk of LitData's holds a uint32 count n, n + 1 uint32 offsets, and the samples. A sample is the uint32 sizes of its
leaves, and the leaves: `id` and `meta` first, then `tensors`, `images` and `orders` (`chunks.pack`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .remote import Remote, patiently

LEAVES = ("id", "meta", "tensors", "images", "orders")
HEAD = 1 << 14  # bytes fetched to begin with: sizes, id and, as a rule, meta


class Ranges:
    """The samples of remote chunks. `fetched` counts bytes."""

    def __init__(self, remote: Remote, chunks: Sequence[Mapping[str, Any]]) -> None:
        self.remote, self.chunks, self.fetched = remote, chunks, 0
        self.tables: dict[int, np.ndarray] = {}

    def item(self, number: int, place: int) -> dict[str, Any]:
        """The leaves of the sample at a place of a chunk; those after `meta` are fetched when they are asked for."""
        table = self._table(number)
        begin, end = int(table[place]), int(table[place + 1])
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
            count = int(self.chunks[number]["chunk_size"])
            self.tables[number] = np.frombuffer(self.fetch(number, 4, 4 * (count + 2)), "<u4")
        return self.tables[number]

    def fetch(self, number: int, begin: int, end: int) -> bytes:
        """Bytes of a chunk. OSError when they cannot be had."""
        name = f"chunks/{self.chunks[number]['filename']}"
        found = patiently(lambda: self.remote.part(name, begin, end))
        self.fetched += len(found)
        return found


class Leaf:
    """Bytes that are fetched when they are looked at."""

    def __init__(self, ranges: Ranges, number: int, begin: int, size: int) -> None:
        self.ranges, self.number, self.begin, self.size = ranges, number, begin, size

    def __bytes__(self) -> bytes:
        return self[: self.size]

    def tobytes(self) -> bytes:
        return bytes(self)

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self.size)
        return self.ranges.fetch(self.number, self.begin + first, self.begin + end) if end > first else b""
