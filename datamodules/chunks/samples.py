"""Samples in LitData chunks: packed, and read again at random, with every byte checked."""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from firered_lit.errors import UserError

from .listing import Listing
from .ranges import Folder, Ranges
from .remote import Gone, Remote, patiently

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of stored tensors


@dataclass(frozen=True)
class Sample:
    """One encoded edit.

    Args:
        id: The record's id.
        meta: Facts, as JSON holds them.
        tensors: Latents `target`, of a pair also `loser`, `reference.0`, ..., each (16, h, w), and embeddings
            `text.original/en`, ..., `text.unconditional`, each (T, D).
        images: The crops as PNG files, `target`, `loser`, `reference.0`, ..., or nothing.
        orders: Embeddings `text...` for other orders of the references, by order, such as "2,1".
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
    """Return the leaves that LitData stores. `meta` has checksums of itself and the blobs, and the place of each order.

    The blob of tensors is an array: rows of text and bytes alone would be stored as Arrow tables, and to read one of
    them LitData decodes all that lie with it.
    """
    tensors = safetensors.torch.save(sample.tensors)
    images = _join(sample.images)

    # The texts of other orders, one after another, each to be read by itself.
    orders = b""
    places = {}
    for name, texts in sample.orders.items():
        blob = safetensors.torch.save(texts)
        places[name] = len(orders), len(blob), zlib.crc32(blob)
        orders += blob

    # Facts and checksums.
    meta = dict(sample.meta)
    if places:
        meta["orders"] = places
    checksums = [_checksum(sample.id, meta), zlib.crc32(tensors), zlib.crc32(images)]
    return {
        "id": sample.id,
        "meta": json.dumps({**meta, "crc": checksums}, ensure_ascii=False),
        "tensors": np.frombuffer(tensors, np.uint8),
        "images": images,
        "orders": orders,
    }


def unpack(leaves: dict[str, Any], images: bool = False, order: Sequence[int] = ()) -> Sample:
    """Return the sample of stored leaves.

    Args:
        leaves: The stored leaves.
        images: Read its images too.
        order: Order of its references whose embeddings and instructions it has; () for the one of its tensors. Those
            of others are not read.

    Raises:
        ValueError: A checksum is wrong, or the order is not stored.
    """
    meta = json.loads(leaves["meta"])
    meta_checksum, tensors_checksum, images_checksum = meta.pop("crc")
    if _checksum(leaves["id"], meta) != meta_checksum:
        raise ValueError("its checksum is wrong")

    # The blobs that are wanted.
    blob = leaves["tensors"].tobytes()
    if zlib.crc32(blob) != tensors_checksum:
        raise ValueError("the checksum of its tensors is wrong")
    pictures = b""
    if images:
        pictures = bytes(leaves["images"])
        if zlib.crc32(pictures) != images_checksum:
            raise ValueError("the checksum of its images is wrong")

    # With the texts of an order in the place of its own.
    tensors = safetensors.torch.load(blob)
    places = meta.pop("orders", {})
    reindexed = meta.pop("reindexed", {})
    if order:
        name = ",".join(str(number) for number in order)
        tensors |= _ordered(leaves, places, name)
        meta["instructions"] |= reindexed.get(name, {})
    return Sample(leaves["id"], meta, tensors, _split(pictures))


def _ordered(leaves: dict[str, Any], places: dict[str, list[int]], order: str) -> dict[str, Tensor]:
    """Return the embeddings of an order.

    Args:
        leaves: The stored leaves.
        places: Start, size and checksum of each order's embeddings in the leaf `orders`.
        order: The order, such as "2,1".
    """
    if order not in places:
        raise ValueError(f"it has no texts for its references in the order {order}")
    start, size, checksum = places[order]
    blob = bytes(leaves["orders"][start : start + size])
    if zlib.crc32(blob) != checksum:
        raise ValueError(f"the checksum of its texts for the order {order} is wrong")
    return safetensors.torch.load(blob)


class Chunks:
    """The samples of a folder of chunks, by number.

    Args:
        folder: Folder of the chunks.
        remote: The store whose local copy the folder is; a chunk is fetched when it is first read.
        whole: Fetch whole chunks. Else only the parts of a sample that are read are fetched, and nothing is kept.
    """

    def __init__(self, folder: Path, remote: Remote | None = None, whole: bool = True) -> None:
        self.folder = folder
        self.remote = remote
        self.listing = Listing(folder)
        self.whole = whole or remote is None
        if remote is None or whole:
            self.ranges = Ranges(Folder(folder), self.listing)
        else:
            self.ranges = Ranges(remote, self.listing, "chunks/")
        self.checked = np.zeros(len(self.listing), bool)

    def __len__(self) -> int:
        return self.listing.samples

    def where(self, position: int) -> str:
        """Return the chunk of a sample and the place in it, for messages."""
        number, place = self.listing.find(position)
        folder = f"{self.remote.url}/chunks" if self.remote else self.folder
        return f"{folder}/{self.listing.name(number)}: sample {place} (number {position} of all)"

    def read(self, position: int, images: bool = False, order: Sequence[int] = ()) -> Sample:
        """Return a sample by its number, see `unpack`. Errors that may pass are tried again.

        Raises:
            UserError: It cannot be read; the message names chunk and sample.
        """
        number, place = self.listing.find(position)
        try:
            if self.whole:
                self._check(number)
            return unpack(self.ranges.item(number, place), images, order)
        except Exception as problem:  # safetensors, JSON and stores each fail in their own ways
            reason = " ".join(str(problem).split()) or type(problem).__name__
            may_pass = self.remote and isinstance(problem, OSError) and not isinstance(problem, Gone)
            advice = "restore the chunk, or remove it and prepare again"
            if may_pass:
                advice = "run again when the store answers"
            raise UserError(f"{self.where(position)}: cannot be read: {reason}; {advice}") from problem

    def _check(self, number: int) -> None:
        """Raise an error unless a chunk is there in its full size; a chunk of a store is fetched.

        That is looked at once, or each time where copies make room for others.
        """
        may_vanish = self.remote is not None and self.remote.limit is not None
        if self.checked[number] and not may_vanish:
            return
        name = self.listing.name(number)
        expected = self.listing.bytes(number)
        if self.remote:
            self.remote.fetch(f"chunks/{name}", expected)
        size = patiently(lambda: os.stat(self.folder / name).st_size)
        if size != expected:
            raise ValueError(f"the chunk has {size} bytes, not {expected}")
        self.checked[number] = True


def _checksum(name: str, meta: dict[str, Any]) -> int:
    """Return the checksum of a sample's id and facts."""
    return zlib.crc32(json.dumps([name, meta], ensure_ascii=False).encode())


def _join(files: dict[str, bytes]) -> bytes:
    """Return files as one: a JSON line of (name, size), then the files; nothing for no files."""
    if not files:
        return b""
    sizes = [[name, len(file)] for name, file in files.items()]
    return b"".join([json.dumps(sizes).encode(), b"\n", *files.values()])


def _split(blob: bytes) -> dict[str, bytes]:
    """Return the files that `_join` made one."""
    files = {}
    start = blob.find(b"\n") + 1
    for name, size in json.loads(blob[:start] or b"[]"):
        files[name] = blob[start : start + size]
        start += size
    return files
