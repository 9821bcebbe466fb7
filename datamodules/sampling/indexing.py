"""Rows in any order -> the columnar index, in bounded memory: spill to disk, counting sort, cut into blocks."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from datamodules.sampling import index
from datamodules.sampling.index import Column, IndexRow, Key, pieces, save

BLOCK = 64  # rows of a block when the chunks are not known
SCATTERED = 8  # fewer rows per chunk than this on average: the chunks give no locality, blocks are cut by number
LARGEST_BLOCK = 512
SPILL = np.dtype([("segment", "<u4"), ("position", "<u8")])


class OnDisk:
    """A column in a scratch file, read and written a part at a time: a mapped one would fill the process's memory."""

    def __init__(self, path: Path, dtype: str | np.dtype, length: int) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.length = length
        self.file = path.open("r+b" if path.exists() else "w+b", buffering=0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        first, end, _ = part.indices(self.length)
        self.file.seek(first * self.dtype.itemsize)
        return np.fromfile(self.file, self.dtype, max(0, end - first))

    def scatter(self, places: np.ndarray, values: np.ndarray) -> None:
        """Write values[i] to places[i]; runs of places are written at once."""
        order = np.argsort(places, kind="stable")
        places = places[order]
        values = values[order].astype(self.dtype)
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        for first, end in zip(starts.tolist(), [*starts[1:].tolist(), len(places)]):
            os.pwrite(self.file.fileno(), values[first:end].tobytes(), int(places[first]) * self.dtype.itemsize)


def write_index(folder: str | Path, rows: Iterable[IndexRow], chunks: Sequence[int] | None = None) -> None:
    """Write the index of `rows`, given in any order. An index that is there is replaced in one step.

    Memory does not grow with the number of rows, as long as each bucket's rows come in the order of their positions.

    Args:
        folder: Folder of the index; it is made when absent.
        rows: The samples.
        chunks: Samples in each LitData chunk, in the order of the chunks, so that the plan can read chunk by chunk.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".index-") as name:
        keys = _spill(rows, Path(name) / "spill")
        ordered = sorted(keys)
        buckets = list(dict.fromkeys(key for key, _ in ordered))
        columns: dict[str, Column]
        counts: list[int]
        if keys:
            columns, counts = _columns(keys, ordered, chunks, Path(name))
        else:
            columns = {"positions": np.empty(0, np.uint64), "blocks": np.empty(0, np.uint64)}
            counts = []
        save(folder, list(zip(buckets, counts)), sorted({cluster for _, cluster in ordered}), columns)


def _spill(rows: Iterable[IndexRow], path: Path) -> dict[tuple[Key, str], int]:
    """Write (segment, position) of every row to `path`; a segment is a (bucket, cluster), numbered as first met."""
    numbers: dict[tuple[Key, str], int] = {}
    rows = iter(rows)
    with path.open("wb") as file:
        while some := list(islice(rows, index.PIECE // 8)):
            spilled = np.empty(len(some), SPILL)
            spilled["segment"] = [numbers.setdefault(_segment(row), len(numbers)) for row in some]
            spilled["position"] = [row.position for row in some]
            spilled.tofile(file)
    return numbers


def _segment(row: IndexRow) -> tuple[Key, str]:
    """Return a row's bucket and cluster."""
    key = (row.task, len(row.references), row.target, row.references, row.droppable, row.fixed)
    return key, row.cluster


def _columns(
    keys: dict[tuple[Key, str], int], ordered: list[tuple[Key, str]], chunks: Sequence[int] | None, scratch: Path
) -> tuple[dict[str, Column], list[int]]:
    """Return the sorted columns of the spilled rows, on disk in `scratch`, and the number of rows of each bucket.

    Args:
        keys: The number of each segment in the spilled rows.
        ordered: The segments, sorted.
        chunks: Samples in each chunk.
        scratch: Folder with the spilled rows.
    """
    # (segments,) the rank of each when they are sorted, its bucket, and its rows.
    spill = OnDisk(scratch / "spill", SPILL, (scratch / "spill").stat().st_size // SPILL.itemsize)
    rank = np.empty(len(keys), np.int64)
    rank[[keys[key] for key in ordered]] = np.arange(len(keys))
    bucket_of = np.cumsum([False] + [first[0] != second[0] for first, second in pairwise(ordered)])
    counts = np.zeros(len(keys), np.int64)
    for piece in pieces(spill):
        counts += np.bincount(rank[piece["segment"]], minlength=len(keys))
    sizes = np.bincount(bucket_of, counts).astype(np.int64)

    # The columns.
    positions, segments = _sort(spill, rank, bucket_of, sizes, scratch)
    columns: dict[str, Column] = {"positions": positions, "blocks": _blocks(positions, sizes, chunks)}
    clusters = sorted({cluster for _, cluster in keys})
    if len(clusters) > 1:
        number = {cluster: i for i, cluster in enumerate(clusters)}
        columns["by_cluster"] = _by_cluster(segments, counts, scratch)
        columns["segment_start"] = np.cumsum(counts) - counts
        columns["segment_cluster"] = np.array([number[cluster] for _, cluster in ordered])
    return columns, sizes.tolist()


def _places(keys: np.ndarray, cursor: np.ndarray) -> np.ndarray:
    """Return the place of each row in a stable counting sort.

    Args:
        keys: (rows,) key of each row, from 0.
        cursor: (keys,) next free place of each key; it is moved on.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    counts = np.bincount(keys, minlength=len(cursor))
    within = np.arange(len(keys)) - (np.cumsum(counts) - counts)[ordered]
    places = np.empty(len(keys), np.int64)
    places[order] = cursor[ordered] + within
    cursor += counts
    return places


def _sort(
    spill: OnDisk, rank: np.ndarray, bucket_of: np.ndarray, sizes: np.ndarray, scratch: Path
) -> tuple[OnDisk, OnDisk]:
    """Return the positions and segments of all rows, by bucket and position, on disk in `scratch`."""
    positions = OnDisk(scratch / "positions", "<u8", len(spill))
    segments = OnDisk(scratch / "segments", "<u4", len(spill))
    cursor = np.cumsum(sizes) - sizes
    for piece in pieces(spill):
        segment = rank[piece["segment"]]
        places = _places(bucket_of[segment], cursor)
        positions.scatter(places, piece["position"])
        segments.scatter(places, segment)
    for end, size in zip(np.cumsum(sizes).tolist(), sizes.tolist()):
        begin = end - size
        if not _rising(pieces(positions, begin, end)):
            order = np.argsort(positions[begin:end], kind="stable")
            for column in (positions, segments):
                column.scatter(np.arange(begin, end), column[begin:end][order])
    return positions, segments


def _rising(pieces: Iterator[np.ndarray]) -> bool:
    """Return whether a column, in pieces, never falls."""
    last = 0
    for piece in pieces:
        if piece[0] < last or np.any(piece[1:] < piece[:-1]):
            return False
        last = piece[-1]
    return True


def _by_cluster(segments: OnDisk, counts: np.ndarray, scratch: Path) -> OnDisk:
    """Return all rows ordered by segment, on disk in `scratch`."""
    rows = OnDisk(scratch / "by_cluster", "<u8", len(segments))
    cursor = np.cumsum(counts) - counts
    first = 0
    for piece in pieces(segments):
        rows.scatter(_places(piece.astype(np.int64), cursor), np.arange(first, first + len(piece)))
        first += len(piece)
    return rows


def _blocks(positions: OnDisk, sizes: np.ndarray, chunks: Sequence[int] | None) -> np.ndarray:
    """Return the first row of every block: a bucket's rows of one chunk, cut where they are too many."""
    ends = np.cumsum(chunks or [0]).astype(np.uint64)
    blocks = []
    for end, size in zip(np.cumsum(sizes).tolist(), sizes.tolist()):
        # Where another chunk begins.
        cuts = _changes(np.searchsorted(ends, piece, "right") for piece in pieces(positions, end - size, end))
        if not chunks or size < SCATTERED * len(cuts):
            cuts = np.arange(0, size, BLOCK)

        # Blocks that are too large, in parts.
        parts = -(np.diff(cuts, append=size) // -LARGEST_BLOCK)
        within = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        blocks.append(end - size + np.repeat(cuts, parts) + LARGEST_BLOCK * within)
    return np.concatenate(blocks)


def _changes(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Return the rows at which a column has another value than at the row before; row 0 is one of them.

    Args:
        pieces: The column, of numbers from 0 up, in pieces.
    """
    found = []
    last = -1
    first = 0
    for piece in pieces:
        found.append(first + np.flatnonzero(np.diff(piece, prepend=last)))
        last = int(piece[-1])
        first += len(piece)
    return np.concatenate(found)
