"""Samples in LitData chunks: how they are packed, and read again at random, with every byte checked."""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from litdata import StreamingDataset
from torch import Tensor

from firered_lit.errors import UserError

from .ranges import Ranges
from .remote import Gone, Remote, patiently

INDEX = "index.json"


@dataclass(frozen=True)
class Sample:
    """One encoded edit.

    meta: what is not a tensor, as JSON holds it. tensors: latents `target`, of a pair also `loser`, `reference.0`, ...,
    each (16, h, w), and embeddings `text.original/en`, ..., `text.unconditional`, each (T, D). images: the
    crops as PNG files, `target`, `loser`, `reference.0`, ..., or nothing. orders: for other orders of the references,
    named as "2,1", the embeddings `text...` that belong to them.
    """

    id: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    images: dict[str, bytes]
    orders: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def pack(sample: Sample) -> dict[str, Any]:
    """The leaves that LitData stores. `meta` carries checksums of itself and of the blobs, and where each order lies.

    The blob of tensors is an array: rows of text and bytes alone would be stored as Arrow tables, and to read one of
    them LitData decodes all that lie with it.
    """
    tensors = safetensors.torch.save(sample.tensors)
    images = _join(sample.images)
    orders, places = b"", {}
    for name, texts in sample.orders.items():
        blob = safetensors.torch.save(texts)
        places[name] = len(orders), len(blob), zlib.crc32(blob)
        orders += blob
    meta = sample.meta | ({"orders": places} if places else {})
    checks = {"crc": [_checksum(sample.id, meta), zlib.crc32(tensors), zlib.crc32(images)]}
    text = json.dumps(meta | checks, ensure_ascii=False)
    return {
        "id": sample.id,
        "meta": text,
        "tensors": np.frombuffer(tensors, np.uint8),
        "images": images,
        "orders": orders,
    }


def unpack(leaves: dict[str, Any], images: bool = False, order: Sequence[int] = ()) -> Sample:
    """The sample of stored leaves, with the embeddings and instructions of an order of its references; () is its own.

    Its images, and other orders, are not read. ValueError when a checksum is wrong or the order is not there.
    """
    meta = json.loads(leaves["meta"])
    wanted = {"tensors": leaves["tensors"].tobytes(), "images": bytes(leaves["images"]) if images else b""}
    own, *blobs = meta.pop("crc")
    if _checksum(leaves["id"], meta) != own:
        raise ValueError("its checksum is wrong")
    for (name, blob), checksum in zip(wanted.items(), blobs):
        if (name == "tensors" or images) and zlib.crc32(blob) != checksum:
            raise ValueError(f"the checksum of its {name} is wrong")
    places, texts = meta.pop("orders", {}), meta.pop("reindexed", {})
    loaded = safetensors.torch.load(wanted["tensors"])
    if name := ",".join(map(str, order)):
        loaded |= _ordered(leaves, places, name)
        meta["instructions"] |= texts.get(name, {})
    return Sample(leaves["id"], meta, loaded, _split(wanted["images"]))


def _ordered(leaves: dict[str, Any], places: dict[str, list[int]], order: str) -> dict[str, Tensor]:
    """The embeddings of an order."""
    if order not in places:
        raise ValueError(f"it has no texts for its references in the order {order}")
    start, size, checksum = places[order]
    blob = bytes(leaves["orders"][start : start + size])
    if zlib.crc32(blob) != checksum:
        raise ValueError(f"the checksum of its texts for the order {order} is wrong")
    return safetensors.torch.load(blob)


class Chunks:
    """The samples of a folder of chunks, by number. LitData maps the chunks when the first one is read.

    remote: the data whose local copy the folder is; a chunk is fetched when it is first asked for. whole: else only
    the parts of a sample that are asked for are fetched, and nothing is kept.
    """

    def __init__(self, folder: Path, remote: Remote | None = None, whole: bool = True) -> None:
        self.folder, self.remote = folder, remote
        try:
            self.chunks = json.loads((folder / INDEX).read_text())["chunks"]
        except (OSError, ValueError, KeyError) as problem:
            raise UserError(f"{folder / INDEX}: cannot be read ({problem}); run prepare again") from None
        self.ends = np.cumsum([chunk["chunk_size"] for chunk in self.chunks])
        self.checked: set[int] = set()
        self.dataset: StreamingDataset | None = None
        self.ranges = Ranges(remote, self.chunks) if remote and not whole else None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0  # not StreamingDataset's, which is a rank's share

    def where(self, position: int) -> str:
        """The chunk and the place in it of a sample, for messages."""
        number = int(np.searchsorted(self.ends, position, "right"))
        first = int(self.ends[number]) - self.chunks[number]["chunk_size"]
        folder = f"{self.remote.url}/chunks" if self.remote else self.folder
        return f"{folder}/{self.chunks[number]['filename']}: sample {position - first} (number {position} of all)"

    def read(self, position: int, images: bool = False, order: Sequence[int] = ()) -> Sample:
        """A sample by its number, see `unpack`. What may pass is tried again. UserError, naming chunk and sample, when
        it cannot be read."""
        try:
            number = int(np.searchsorted(self.ends, position, "right"))
            if self.ranges is not None:
                place = position - int(self.ends[number]) + self.chunks[number]["chunk_size"]
                return unpack(self.ranges.item(number, place), images, order)
            self._check(number)
            return unpack(patiently(lambda: self._leaves(position)), images, order)
        except Exception as problem:  # LitData, safetensors and JSON each fail in their own ways on broken bytes
            reason = " ".join(str(problem).split()) or type(problem).__name__
            passing = self.remote and isinstance(problem, OSError) and not isinstance(problem, Gone)
            then = "run again when the store answers" if passing else "restore it or prepare again"
            raise UserError(f"{self.where(position)}: cannot be read: {reason}; {then}") from problem

    def _leaves(self, position: int) -> dict[str, Any]:
        if self.dataset is None:
            self.dataset = StreamingDataset(str(self.folder))
        return self.dataset[position]

    def _check(self, number: int) -> None:
        """Whether the chunk is there in its full size, once, or each time where copies make room for others; LitData
        would wait for a missing one."""
        if number not in self.checked or (self.remote and self.remote.limit is not None):
            chunk = self.chunks[number]
            if self.remote:
                self.remote.fetch(f"chunks/{chunk['filename']}", chunk["chunk_bytes"])
            size = patiently(lambda: os.stat(self.folder / chunk["filename"]).st_size)
            if size != chunk["chunk_bytes"]:
                raise ValueError(f"the chunk has {size} bytes, not {chunk['chunk_bytes']}")
            self.checked.add(number)


def _checksum(name: str, meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps([name, meta], ensure_ascii=False).encode())


def _join(files: dict[str, bytes]) -> bytes:
    """A JSON line of (name, size), then the files; nothing for no files."""
    if not files:
        return b""
    return json.dumps([[name, len(file)] for name, file in files.items()]).encode() + b"\n" + b"".join(files.values())


def _split(blob: bytes) -> dict[str, bytes]:
    files, start = {}, blob.find(b"\n") + 1
    for name, size in json.loads(blob[:start] or b"[]"):
        files[name] = blob[start : start + size]
        start += size
    return files
