"""Samples in LitData chunks: how they are packed, and read again at random, with every byte checked."""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from firered_lit.errors import UserError

from .listing import Listing
from .ranges import Folder, Ranges
from .remote import Gone, Remote, patiently


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


@dataclass(frozen=True)
class Packed(Sample):
    """A sample with the leaves that LitData stores, so that one that cannot be stored is known with its row."""

    leaves: dict[str, Any] = field(default_factory=dict)


def packed(sample: Sample) -> Packed:
    """Return a sample with its leaves."""
    parts = {part.name: getattr(sample, part.name) for part in fields(Sample)}
    return Packed(**parts, leaves=pack(sample))


def pack(sample: Sample) -> dict[str, Any]:
    """Return the leaves that LitData stores. `meta` has checksums of itself and the blobs, and where each order lies.

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
    """The samples of a folder of chunks, by number.

    remote: the data whose local copy the folder is; a chunk is fetched when it is first asked for. whole: else only
    the parts of a sample that are asked for are fetched, and nothing is kept.
    """

    def __init__(self, folder: Path, remote: Remote | None = None, whole: bool = True) -> None:
        self.folder, self.remote, self.listing = folder, remote, Listing(folder)
        self.whole = whole or remote is None
        files, prefix = (Folder(folder), "") if remote is None or whole else (remote, "chunks/")
        self.ranges = Ranges(files, self.listing, prefix)
        self.checked = np.zeros(len(self.listing), bool)

    def __len__(self) -> int:
        return self.listing.samples

    def where(self, position: int) -> str:
        """The chunk and the place in it of a sample, for messages."""
        number, place = self.listing.find(position)
        folder = f"{self.remote.url}/chunks" if self.remote else self.folder
        return f"{folder}/{self.listing.name(number)}: sample {place} (number {position} of all)"

    def read(self, position: int, images: bool = False, order: Sequence[int] = ()) -> Sample:
        """A sample by its number, see `unpack`. What may pass is tried again. UserError, naming chunk and sample, when
        it cannot be read."""
        number, place = self.listing.find(position)
        try:
            if self.whole:
                self._check(number)
            return unpack(self.ranges.item(number, place), images, order)
        except Exception as problem:  # safetensors, JSON and stores each fail in their own ways
            reason = " ".join(str(problem).split()) or type(problem).__name__
            passing = self.remote and isinstance(problem, OSError) and not isinstance(problem, Gone)
            then = (
                "run again when the store answers" if passing else "restore the chunk, or remove it and prepare again"
            )
            raise UserError(f"{self.where(position)}: cannot be read: {reason}; {then}") from problem

    def _check(self, number: int) -> None:
        """Whether the chunk is there in its full size, once, or each time where copies make room for others."""
        if self.checked[number] and not (self.remote and self.remote.limit is not None):
            return
        name, expected = self.listing.name(number), self.listing.bytes(number)
        if self.remote:
            self.remote.fetch(f"chunks/{name}", expected)
        size = patiently(lambda: os.stat(self.folder / name).st_size)
        if size != expected:
            raise ValueError(f"the chunk has {size} bytes, not {expected}")
        self.checked[number] = True


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
