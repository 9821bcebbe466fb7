"""A part's samples in chunks by bucket, so that who reads a bucket fetches few chunks, and uses them whole.

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

from .chunks import Packed, Sample, pack
from .listing import INDEX

CHUNK_BYTES = 64 << 20
SHARED = 4  # a bucket with less than a fourth of a chunk shares chunks with others: else they would be too many


def write_chunks(
    folder: Path, samples: Iterable[Sample], chunk_bytes: int = CHUNK_BYTES
) -> tuple[dict[str, Any], list[int]]:
    """Write samples as LitData chunks into an empty folder.

    Returns LitData's description, `chunks` and `config`, and which of the samples stands at each place in the chunks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch, keys, chunks, config = folder / ".samples", [], [], None
    with scratch.open("w+b") as file:
        waiting = Waiting(file)
        for sample in samples:
            waiting.add(sample.leaves if isinstance(sample, Packed) else pack(sample))
            keys.append(_bucket(sample.meta))
        groups = grouped(keys, waiting.sizes, chunk_bytes)
        for group in groups:
            described = _write(folder, len(chunks), map(waiting.leaves, group), 2 * chunk_bytes)
            chunks += described["chunks"]
            config = config or described["config"]
    scratch.unlink()
    return {"chunks": chunks, "config": config}, [number for group in groups for number in group]


class Waiting:
    """Packed samples in a scratch file, which are read back in any order."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.places = file, []

    def add(self, leaves: Mapping[str, Any]) -> None:
        blobs = [leaf.encode() if isinstance(leaf, str) else bytes(leaf) for leaf in leaves.values()]
        self.places.append((self.file.tell(), {name: len(blob) for name, blob in zip(leaves, blobs)}))
        self.file.writelines(blobs)

    @property
    def sizes(self) -> list[int]:
        """Bytes of every sample."""
        return [sum(sizes.values()) for _, sizes in self.places]

    def leaves(self, number: int) -> dict[str, Any]:
        """What was added, the `number`-th."""
        start, sizes = self.places[number]
        self.file.seek(start)
        found: dict[str, Any] = {name: self.file.read(size) for name, size in sizes.items()}
        texts = {name: found[name].decode() for name in ("id", "meta")}
        return found | texts | {"tensors": np.frombuffer(found["tensors"], np.uint8)}


def grouped(keys: Sequence[Any], sizes: Sequence[int], chunk_bytes: int) -> list[list[int]]:
    """Which samples make each chunk, by their number: those of one bucket, in their order.

    Of a bucket that fills more than one chunk all are alike in size; buckets that fill little of one share some.
    """
    buckets: dict[Any, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        buckets[key].append(number)
    groups, shared, filled = [], [], 0
    for key in sorted(buckets):
        own = buckets[key]
        ends = np.cumsum([sizes[number] for number in own])
        if SHARED * ends[-1] >= chunk_bytes:
            pieces = max(1, round(int(ends[-1]) / chunk_bytes))
            cuts = np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces, "right")
            groups += [piece.tolist() for piece in np.split(np.array(own), np.unique(cuts)) if len(piece)]
            continue
        shared, filled = [*shared, *own], filled + int(ends[-1])
        if SHARED * filled >= chunk_bytes:
            groups, shared, filled = [*groups, shared], [], 0
    return [*groups, shared] if shared else groups


def _bucket(meta: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides over a sample's bucket; held-out samples are read by themselves."""
    references = tuple(map(tuple, meta["references"]))
    held_out, droppable = bool(meta.get("held_out")), tuple(meta.get("droppable", ()))
    fixed = bool(meta.get("fixed"))
    return held_out, meta["task"], len(references), tuple(meta["target"]), references, droppable, fixed


def _write(folder: Path, first: int, samples: Iterable[dict[str, Any]], chunk_bytes: int) -> dict[str, Any]:
    """One chunk, or more when one sample fills it, numbered from `first`; described as LitData does."""
    writer = BinaryWriter(str(folder), chunk_bytes=chunk_bytes, chunk_index=first)
    for place, leaves in enumerate(samples):
        writer.add_item(place, leaves)
    writer.done()
    (described,) = folder.glob(f"*.{INDEX}")
    return json.loads(described.read_text())
