"""A part's samples in chunks by bucket, so that a reader of a bucket fetches few chunks, and uses them whole.

Samples come in the order of their rows, and a bucket's are scattered among them. They wait in a scratch file until all
are there; memory holds one chunk, and where each sample lies.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from litdata.streaming.writer import BinaryWriter

from ..chunks.listing import INDEX
from ..chunks.samples import Packed, Sample, pack

CHUNK_BYTES = 64 << 20
SHARED = 4  # a bucket with less than a fourth of a chunk shares chunks with others: else they would be too many


class ChunkWriter:
    """Chunks of samples, which are grouped by bucket when all of them are there. Use it as a context.

    Args:
        folder: Empty folder for the chunks; it is made when absent.
        chunk_bytes: Size that a full chunk has, about.
    """

    def __init__(self, folder: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.chunk_bytes = chunk_bytes
        self._buckets: list[tuple[Any, ...]] = []
        self._scratch = folder / ".samples"
        self._waiting = Waiting(self._scratch.open("w+b"))

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._waiting.file.close()
        self._scratch.unlink(missing_ok=True)

    def add(self, sample: Sample) -> None:
        """Take a sample, in the order of the rows."""
        self._waiting.add(sample.leaves if isinstance(sample, Packed) else pack(sample))
        self._buckets.append(_bucket(sample.meta))

    def finish(self) -> tuple[dict[str, Any], list[int]]:
        """Write the chunks.

        Returns:
            LitData's description, `chunks` and `config`, and the number of the sample, in the order in which they were
            added, that stands at each place in the chunks.
        """
        chunks: list[dict[str, Any]] = []
        order: list[int] = []
        config = None
        for group in grouped(self._buckets, self._waiting.sizes, self.chunk_bytes):
            samples = map(self._waiting.leaves, group)
            described = _write(self.folder, len(chunks), samples, 2 * self.chunk_bytes)
            chunks += described["chunks"]
            order += group
            config = config or described["config"]
        return {"chunks": chunks, "config": config}, order


class Waiting:
    """Packed samples in a scratch file, which are read back in any order.

    Args:
        file: Empty file, open for writing and reading.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._lying: list[tuple[int, dict[str, int]]] = []  # start, and the bytes of each leaf by name

    def add(self, leaves: Mapping[str, Any]) -> None:
        """Append the leaves of a sample."""
        blobs = {name: leaf.encode() if isinstance(leaf, str) else bytes(leaf) for name, leaf in leaves.items()}
        self._lying.append((self.file.tell(), {name: len(blob) for name, blob in blobs.items()}))
        self.file.writelines(blobs.values())

    @property
    def sizes(self) -> list[int]:
        """Bytes of every sample."""
        return [sum(sizes.values()) for _, sizes in self._lying]

    def leaves(self, number: int) -> dict[str, Any]:
        """Return the leaves of a sample by its number, from 0, in the order in which they were added."""
        start, sizes = self._lying[number]
        self.file.seek(start)
        leaves: dict[str, Any] = {name: self.file.read(size) for name, size in sizes.items()}
        for name in ("id", "meta"):
            leaves[name] = leaves[name].decode()
        leaves["tensors"] = np.frombuffer(leaves["tensors"], np.uint8)
        return leaves


def grouped(keys: Sequence[Any], sizes: Sequence[int], chunk_bytes: int) -> list[list[int]]:
    """Return the samples of each chunk, by their number: those of one bucket, in their order.

    The chunks of a bucket that fills several are about equal in size; buckets that fill little of one share some.

    Args:
        keys: Bucket of each sample; buckets are written in their sorted order.
        sizes: Bytes of each sample.
        chunk_bytes: Size that a full chunk has, about.
    """
    buckets: dict[Any, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        buckets[key].append(number)

    groups: list[list[int]] = []
    shared: list[int] = []  # samples of small buckets
    shared_bytes = 0
    for key in sorted(buckets):
        numbers = buckets[key]
        ends = np.cumsum([sizes[number] for number in numbers])

        # Chunks of its own.
        if SHARED * ends[-1] >= chunk_bytes:
            pieces = max(1, round(int(ends[-1]) / chunk_bytes))
            cuts = np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces, "right")
            groups += [piece.tolist() for piece in np.split(np.array(numbers), np.unique(cuts)) if len(piece)]
            continue

        # A chunk with others.
        shared += numbers
        shared_bytes += int(ends[-1])
        if SHARED * shared_bytes >= chunk_bytes:
            groups.append(shared)
            shared = []
            shared_bytes = 0
    if shared:
        groups.append(shared)
    return groups


def _bucket(meta: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the facts that decide a sample's bucket; held-out samples are read by themselves."""
    references = tuple(tuple(shape) for shape in meta["references"])
    return (
        bool(meta.get("held_out")),
        meta["task"],
        len(references),
        tuple(meta["target"]),
        references,
        tuple(meta.get("droppable", ())),
        bool(meta.get("fixed")),
    )


def _write(folder: Path, first: int, samples: Iterable[dict[str, Any]], chunk_bytes: int) -> dict[str, Any]:
    """Write one chunk, or more when one sample fills it.

    Args:
        folder: Folder of the chunks.
        first: Number of the first chunk.
        samples: Leaves of each sample.
        chunk_bytes: The most bytes of a chunk.

    Returns:
        LitData's description of the chunks.
    """
    writer = BinaryWriter(str(folder), chunk_bytes=chunk_bytes, chunk_index=first)
    for place, leaves in enumerate(samples):
        writer.add_item(place, leaves)
    writer.done()
    (described,) = folder.glob(f"*.{INDEX}")
    return json.loads(described.read_text())
